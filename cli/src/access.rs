//! `muster access …`: principals, their roles and their locks.

use muster_client::Client;
use muster_proto::v1::{
    CreateJoinTokenRequest, CreatePrincipalRequest, JoinKind, ListPrincipalsRequest,
    LockPrincipalRequest, Principal, PrincipalKind, UnlockPrincipalRequest, UpdatePrincipalRequest,
    lock_principal_request::Tasks,
};
use serde_json::json;

use crate::{
    failure::Failure,
    json,
    operator::Operator,
    screen::{self, Rows, clean, say},
    time,
    tokens::{self, TokenCommand},
};

/// Principals in one answer.
const PAGE: i32 = 1_000;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum AccessCommand {
    /// List principals: roles, owner, lock, last use
    List,
    /// Show one principal
    Show {
        /// As operator/ada
        principal: String,
    },
    /// Make a principal, without a credential yet
    #[command(after_help = "Examples:
  muster access create operator/ada --role admin
  muster access create automation/nightly --role viewer")]
    Create {
        /// As operator/ada, ai/claude or automation/nightly
        principal: String,
        /// A role; may be repeated [default: that of its kind]
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
    },
    /// Make a join string with which a person becomes an operator: `muster login`
    #[command(after_help = "Examples:
  muster access invite ada
  muster access invite ada --role admin --ttl 15m")]
    Invite {
        /// Name of the operator
        name: String,
        /// A role that it gets if it is new; may be repeated [default: operator]
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        /// How long the join string can be used [default: 1h]
        #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
        ttl: Option<std::time::Duration>,
    },
    /// Give a principal these roles, and no others
    SetRoles {
        /// As operator/ada
        principal: String,
        /// Its roles
        #[arg(required = true)]
        roles: Vec<String>,
    },
    /// Cut a principal, and every ai that it owns, off within a second
    Lock {
        /// As operator/ada
        principal: String,
        /// Why, for those who find it locked
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
        /// What becomes of their tasks
        #[arg(long, value_enum, default_value_t = Fate::Leave)]
        tasks: Fate,
    },
    /// Let a locked principal take part again
    Unlock {
        /// As operator/ada
        principal: String,
    },
    /// Tokens: let machines join, let people, AI clients and scripts ask
    #[command(subcommand)]
    Token(TokenCommand),
}

/// What becomes of tasks.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They are cancelled
    Cancel,
    /// They go on
    Leave,
}

pub(crate) async fn run(command: AccessCommand, operator: &Operator) -> Result<u8, Failure> {
    if let AccessCommand::Token(command) = command {
        return tokens::run(command, operator).await;
    }
    let client = operator.connect().await?;
    let mut door = client.principals();
    match command {
        AccessCommand::List => list(&client, operator.json).await?,
        AccessCommand::Show { principal } => {
            let all = principals(&client).await?;
            let named = |one: &&Principal| json::principal(Some(one)).as_ref() == Some(&principal);
            let Some(found) = all.iter().find(named) else {
                return Err(Failure::usage(format!("there is no {}", clean(&principal)))
                    .next("`muster access list` shows the principals"));
            };
            show(Some(found.clone()), "", operator.json)?;
        }
        AccessCommand::Create { principal, roles } => {
            let (kind, name) = kind_and_name(&principal)?;
            let request = CreatePrincipalRequest {
                kind: kind.into(),
                name,
                roles,
            };
            let made = door.create_principal(request).await?.into_inner();
            show(made.principal, "", operator.json)?;
        }
        AccessCommand::Invite { name, roles, ttl } => {
            let request = CreateJoinTokenRequest {
                kind: JoinKind::Operator.into(),
                name,
                ttl: ttl.and_then(time::wire),
                roles,
                ..CreateJoinTokenRequest::default()
            };
            invite(&client, request, operator.json).await?;
        }
        AccessCommand::SetRoles { principal, roles } => {
            let request = UpdatePrincipalRequest { principal, roles };
            let changed = door.update_principal(request).await?.into_inner();
            show(changed.principal, "", operator.json)?;
        }
        AccessCommand::Lock {
            principal,
            note,
            tasks,
        } => {
            let tasks = match tasks {
                Fate::Cancel => Tasks::Cancel,
                Fate::Leave => Tasks::Leave,
            };
            let request = LockPrincipalRequest {
                principal,
                note,
                tasks: tasks.into(),
            };
            let locked = door.lock_principal(request).await?.into_inner();
            show(locked.principal, "locked", operator.json)?;
            if tasks == Tasks::Cancel {
                say(&format!(
                    "open jobs being cancelled: {}",
                    locked.cancelled_jobs
                ));
            }
        }
        AccessCommand::Unlock { principal } => {
            let request = UnlockPrincipalRequest { principal };
            let unlocked = door.unlock_principal(request).await?.into_inner();
            show(unlocked.principal, "unlocked", operator.json)?;
        }
        // Was done above, before a connection.
        AccessCommand::Token(_) => {}
    }
    Ok(0)
}

async fn invite(
    client: &Client,
    request: CreateJoinTokenRequest,
    json: bool,
) -> Result<(), Failure> {
    let answer = client.enrollment().create_join_token(request).await?;
    let answer = answer.into_inner();
    let token = answer.join_token.unwrap_or_default();
    if json {
        screen::print_json(&json!({
            "join_token": json::document(&token),
            "join_string": answer.join_string,
        }))?;
        return Ok(());
    }
    screen::print(&format!(
        "MUSTER_JOIN='{}' muster login\n",
        answer.join_string
    ))?;
    say(&format!(
        "Hand that to {} over a way that nobody else reads. It works once, and expires {}.",
        clean(&token.name),
        time::until(token.expire_time.as_ref())
    ));
    Ok(())
}

fn kind_and_name(text: &str) -> Result<(PrincipalKind, String), Failure> {
    let wrong = || {
        Failure::usage(format!("{} is no principal that can be made", clean(text)))
            .next("name it as operator/ada, ai/claude or automation/nightly")
    };
    let (kind, name) = text.split_once('/').ok_or_else(wrong)?;
    let kind = match kind {
        "operator" => PrincipalKind::Operator,
        "ai" => PrincipalKind::Ai,
        "automation" => PrincipalKind::Automation,
        _ => return Err(wrong()),
    };
    Ok((kind, name.to_owned()))
}

async fn principals(client: &Client) -> Result<Vec<Principal>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListPrincipalsRequest {
            page_size: PAGE,
            page_token,
        };
        let answer = client.principals().list_principals(request).await?;
        let answer = answer.into_inner();
        all.extend(answer.principals);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(all);
        }
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let all = principals(client).await?;
    if json {
        let all: Vec<_> = all.iter().map(json::member).collect();
        screen::print_json(&json!({"principals": all}))?;
        return Ok(());
    }
    let mut rows = Rows::new(&["PRINCIPAL", "ROLES", "OWNER", "LOCKED", "USED"]);
    for one in &all {
        let locked = one.lock.as_ref().map(|lock| {
            let since = time::ago(lock.create_time.as_ref());
            format!("{since} by {} {}", lock.author, lock.note)
        });
        rows.add([
            json::principal(Some(one)).unwrap_or_default(),
            one.roles.join(","),
            one.owner.clone(),
            locked.unwrap_or_default(),
            time::ago(one.last_used_time.as_ref()),
        ]);
    }
    screen::print(&rows.render())?;
    Ok(())
}

/// Shows a principal, or says what was done to it.
fn show(principal: Option<Principal>, done: &str, json: bool) -> Result<(), Failure> {
    let principal = principal.unwrap_or_default();
    if json {
        screen::print_json(&json::member(&principal))?;
        return Ok(());
    }
    let name = json::principal(Some(&principal)).unwrap_or_default();
    if !done.is_empty() {
        screen::print(&format!("{} {done}\n", clean(&name)))?;
        return Ok(());
    }
    let mut fields = screen::Fields::new();
    fields.add("principal", name);
    fields.add("roles", principal.roles.join(", "));
    fields.add("owner", &principal.owner);
    fields.add("created", time::local(principal.create_time.as_ref()));
    fields.add("used", time::ago(principal.last_used_time.as_ref()));
    if let Some(lock) = &principal.lock {
        let since = time::local(lock.create_time.as_ref());
        fields.add("locked", format!("since {since} by {}", lock.author));
        fields.add("note", &lock.note);
    }
    screen::print(&fields.render())?;
    Ok(())
}
