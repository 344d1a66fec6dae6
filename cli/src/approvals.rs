//! `muster approval …`: what waits for somebody's word, exactly, and giving it.

use std::{collections::HashMap, time::Duration};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use muster_client::{Client, actions};
use muster_proto::v1::{
    AnswerApprovalRequest, Approval, ApprovalAnswer, GetApprovalRequest, ListApprovalsRequest,
    Mode, approval,
};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    grants, json,
    operator::Operator,
    screen::{self, Fields, Rows, clean, say},
    time,
};

/// Approvals in one answer.
const PAGE: i32 = 1_000;

/// How often it is looked at what waits.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Names of hosts in the details of an approval for people; JSON has all of them.
const NAMES_MAX: usize = 200;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum ApprovalCommand {
    /// List what waits for an answer
    List {
        /// Those that were decided, too
        #[arg(long)]
        all: bool,
    },
    /// Tell of each as it comes, and of what became of it, until interrupted
    #[command(after_help = "Examples:
  muster approval watch
  muster approval watch --json | jq -r .approval.approval_id")]
    Watch,
    /// Show exactly what is to happen, where, and who has answered
    Show {
        /// As `muster approval list` shows it
        approval_id: String,
    },
    /// Approve what `show` shows
    Approve {
        /// As `muster approval list` shows it
        approval_id: String,
        /// Why; kept with the answer
        #[arg(long, default_value = "")]
        note: String,
        /// Only if it is still this: the digest that `show` showed. Without it, what is to happen is shown first, and
        /// asked about on a terminal.
        #[arg(long, value_name = "HEX", value_parser = digest)]
        digest: Option<Digest>,
    },
    /// Decline; this is final
    Decline {
        /// As `muster approval list` shows it
        approval_id: String,
        /// Why; whoever asked reads it
        #[arg(long, default_value = "")]
        note: String,
    },
}

/// What somebody has looked at.
#[derive(Debug, Clone)]
pub(crate) struct Digest(Vec<u8>);

fn digest(text: &str) -> Result<Digest, String> {
    match HEXLOWER_PERMISSIVE.decode(text.as_bytes()) {
        Ok(bytes) if bytes.len() == 32 => Ok(Digest(bytes)),
        _ => Err("it is 64 hexadecimal digits, as `muster approval show` shows them".to_owned()),
    }
}

pub(crate) async fn run(command: ApprovalCommand, operator: &Operator) -> Result<u8, Failure> {
    let client = operator.connect().await?;
    match command {
        ApprovalCommand::List { all } => list(&client, all, operator.json).await?,
        ApprovalCommand::Watch => watch(&client, operator.json).await?,
        ApprovalCommand::Show { approval_id } => {
            show(&get(&client, approval_id).await?, operator.json)?;
        }
        ApprovalCommand::Approve {
            approval_id,
            note,
            digest,
        } => {
            let digest = match digest {
                Some(Digest(digest)) => digest,
                None => looked_at(&client, &approval_id).await?,
            };
            let answer = ApprovalAnswer::Approve;
            let answered = send(&client, approval_id, answer, note, digest).await?;
            told(&answered, operator.json)?;
        }
        ApprovalCommand::Decline { approval_id, note } => {
            let answer = ApprovalAnswer::Decline;
            let answered = send(&client, approval_id, answer, note, Vec::new()).await?;
            told(&answered, operator.json)?;
        }
    }
    Ok(0)
}

async fn get(client: &Client, approval_id: String) -> Result<Approval, Failure> {
    let request = GetApprovalRequest { approval_id };
    let answer = client.approvals().get_approval(request).await?.into_inner();
    Ok(answer.approval.unwrap_or_default())
}

/// Shows what is to happen and asks; nobody approves unseen.
async fn looked_at(client: &Client, id: &str) -> Result<Vec<u8>, Failure> {
    let approval = get(client, id.to_owned()).await?;
    if !screen::can_ask() {
        return Err(
            Failure::usage("nobody is there to look at it").next(format!(
                "look at it with `muster approval show {id}`, then add --digest"
            )),
        );
    }
    eprint!("{}", details(&approval));
    match screen::ask("Approve this? [y/N]").await?.as_str() {
        "y" | "yes" => Ok(approval.digest.to_vec()),
        _ => Err(Failure::usage("not approved").next(format!(
            "`muster approval decline {id}` refuses it for good"
        ))),
    }
}

async fn send(
    client: &Client,
    approval_id: String,
    answer: ApprovalAnswer,
    note: String,
    digest: Vec<u8>,
) -> Result<Approval, Failure> {
    let request = AnswerApprovalRequest {
        approval_id,
        answer: answer.into(),
        note,
        digest: digest.into(),
    };
    let answered = client
        .approvals()
        .answer_approval(request)
        .await?
        .into_inner();
    Ok(answered.approval.unwrap_or_default())
}

fn told(approval: &Approval, as_json: bool) -> Result<(), Failure> {
    if as_json {
        screen::print_json(&json!({"approval": document(approval)}))?;
    } else {
        let id = clean(&approval.approval_id).into_owned();
        screen::print(&format!("{id} {}\n", standing(approval)))?;
    }
    Ok(())
}

/// Tells of approvals as they come and change. Asked for again and again: they go at the pace of people.
async fn watch(client: &Client, as_json: bool) -> Result<(), Failure> {
    let mut told: HashMap<String, String> = HashMap::new();
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(|error| Failure::internal(format!("no signals: {error}")))?;
    loop {
        let awaited = load(client, false).await?;
        for approval in &awaited {
            let standing = standing(approval);
            if told.get(&approval.approval_id) != Some(&standing) {
                told.insert(approval.approval_id.clone(), standing);
                tell(approval, as_json)?;
            }
        }
        let awaits = |id: &String| awaited.iter().any(|one| one.approval_id == *id);
        let over: Vec<String> = told.keys().filter(|id| !awaits(id)).cloned().collect();
        for id in over {
            told.remove(&id);
            // One that was deleted meanwhile has nothing more to tell.
            if let Ok(approval) = get(client, id).await {
                tell(&approval, as_json)?;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = ended.recv() => return Ok(()),
        }
    }
}

fn tell(approval: &Approval, as_json: bool) -> Result<(), Failure> {
    if as_json {
        screen::print_json_line(&json!({"approval": document(approval)}))?;
        return Ok(());
    }
    screen::print(&format!(
        "{} {}: {} asks for {}\n",
        clean(&approval.approval_id),
        standing(approval),
        clean(&approval.principal),
        clean(&what(approval).chars().take(200).collect::<String>()),
    ))?;
    Ok(())
}

async fn list(client: &Client, all: bool, as_json: bool) -> Result<(), Failure> {
    let approvals = load(client, all).await?;
    if as_json {
        let approvals: Vec<_> = approvals.iter().map(document).collect();
        screen::print_json(&json!({"approvals": approvals}))?;
        return Ok(());
    }
    if approvals.is_empty() {
        say("nothing waits for an answer");
        return Ok(());
    }
    let mut rows = Rows::new(&[
        "APPROVAL", "STATE", "BY", "ASKED", "EXPIRES", "WHERE", "WHAT",
    ]);
    for approval in &approvals {
        let place = match &approval.grant {
            Some(grant) => grant.selector.clone(),
            None => approval.selector.clone(),
        };
        rows.add([
            approval.approval_id.clone(),
            standing(approval),
            approval.principal.clone(),
            time::ago(approval.create_time.as_ref()),
            time::until(approval.expire_time.as_ref()),
            place,
            what(approval).chars().take(60).collect(),
        ]);
    }
    screen::print(&rows.render())?;
    Ok(())
}

/// What waits, or all there are.
async fn load(client: &Client, all: bool) -> Result<Vec<Approval>, Failure> {
    let mut approvals = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListApprovalsRequest {
            states: match all {
                true => Vec::new(),
                false => vec![approval::State::Awaiting.into()],
            },
            page_size: PAGE,
            page_token,
        };
        let page = client
            .approvals()
            .list_approvals(request)
            .await?
            .into_inner();
        approvals.extend(page.approvals);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(approvals);
        }
    }
}

fn show(approval: &Approval, as_json: bool) -> Result<(), Failure> {
    if as_json {
        screen::print_json(&json!({"approval": document(approval)}))?;
    } else {
        screen::print(&details(approval))?;
    }
    Ok(())
}

/// "awaiting 1 of 2 by admin", "declined".
fn standing(approval: &Approval) -> String {
    let state = json::word(approval.state().as_str_name(), "STATE_");
    if approval.state() != approval::State::Awaiting {
        return state;
    }
    let approve = |answer: &&approval::Answer| answer.answer() == ApprovalAnswer::Approve;
    let given = approval.answers.iter().filter(approve).count();
    format!("{state} {given} of {} by {}", approval.count, approval.from)
}

fn what(approval: &Approval) -> String {
    match &approval.grant {
        Some(grant) => format!("grant: {}", grants::what(grant)),
        // Quotes show each value for itself, and every character of it.
        None => actions::quoted(approval.action.as_ref()),
    }
}

fn details(approval: &Approval) -> String {
    let mut fields = Fields::new();
    fields
        .add("approval", &approval.approval_id)
        .add("state", standing(approval))
        .add("cause", &approval.cause)
        .add("asked by", &approval.principal)
        .add("owner", &approval.owner)
        .add("rules", approval.rules.join(", "))
        .add("job", &approval.job_id)
        .add("what", what(approval));
    if let Some(action) = &approval.action {
        fields.add("exactly", json::document(action).to_string());
    }
    if approval.grant.is_none() {
        let far = match approval.mode() {
            Mode::Unspecified => "as far as each host lets it",
            said => said.text(),
        };
        fields.add("mode", far);
        let names = approval.hosts.iter().take(NAMES_MAX);
        let mut names: Vec<String> = names
            .map(|host| format!("{} ({})", host.host_name, host.host_id))
            .collect();
        if approval.hosts.len() > NAMES_MAX {
            names.push(format!(
                "and {} more: --json",
                approval.hosts.len() - NAMES_MAX
            ));
        }
        fields.add(
            "hosts",
            format!("{}: {}", approval.host_count, names.join(", ")),
        );
    }
    // The words of whoever asks, which nobody has checked.
    fields.add("reason given", format!("{:?}", approval.reason));
    for answer in &approval.answers {
        let word = json::word(answer.answer().as_str_name(), "APPROVAL_ANSWER_");
        let when = time::local(answer.time.as_ref());
        fields.add(
            "answer",
            format!("{word} by {} {when} {}", answer.principal, answer.note),
        );
    }
    fields
        .add("can answer", approval.answerers.join(", "))
        .add("expires", time::until(approval.expire_time.as_ref()))
        .add("digest", HEXLOWER.encode(&approval.digest));
    fields.render()
}

fn document(approval: &Approval) -> Value {
    let mut document = json::document(approval);
    // A host of an approval has always been known by `name`.
    for host in document["hosts"].as_array_mut().into_iter().flatten() {
        if let Some(host) = host.as_object_mut() {
            let name = host.remove("host_name").unwrap_or_default();
            host.insert("name".to_owned(), name);
        }
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_64_hexadecimal_digits() {
        let text = "0f".repeat(32);
        assert_eq!(HEXLOWER.encode(&digest(&text).unwrap().0), text);
        for wrong in ["", "0f", &"0g".repeat(32), &"+f".repeat(32)] {
            assert!(digest(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_approved_is_shown_as_it_is_and_the_reason_as_words() {
        use muster_proto::v1::{Action, Command, action::Kind};
        let approval = Approval {
            action: Some(Action {
                kind: Some(Kind::Command(Command {
                    argv: vec!["rm".into(), "-rf".into(), "/tmp/a b".into()],
                    ..Command::default()
                })),
            }),
            reason: "harmless\u{1b}[2J".into(),
            count: 2,
            from: "admin".into(),
            state: approval::State::Awaiting.into(),
            ..Approval::default()
        };
        assert_eq!(what(&approval), r#"["rm","-rf","/tmp/a b"]"#);
        let shown = details(&approval);
        assert!(
            !shown.contains('\u{1b}') && shown.contains("reason given"),
            "{shown}"
        );
        assert_eq!(standing(&approval), "awaiting 0 of 2 by admin");
    }

    #[test]
    fn a_document_names_hosts_as_it_always_did_and_digests_in_hex() {
        let approval = Approval {
            digest: vec![0x0f, 0xa0].into(),
            hosts: vec![approval::Host {
                host_id: "h-1".into(),
                host_name: "web-1".into(),
            }],
            ..Approval::default()
        };
        let shown = document(&approval);
        assert_eq!(shown["digest"], "0fa0");
        assert_eq!(shown["hosts"], json!([{"host_id": "h-1", "name": "web-1"}]));
        assert_eq!(shown.get("network"), Some(&Value::Null));
    }
}
