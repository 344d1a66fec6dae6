//! `muster policy …`: who may do what, and why.

mod edit;
mod explain;
mod files;

use std::{collections::BTreeMap, path::PathBuf};

use muster_client::Client;
use muster_control_plane::PolicyFiles;
use muster_proto::v1::{
    GetPolicyRequest, GetPolicyResponse, ListPolicyVersionsRequest, Policy, PolicyRule,
    ResumePrincipalRequest, SetPolicyRequest,
};
use serde_json::{Value, json};

use crate::{
    failure::{Failure, exit},
    operator::Operator,
    screen::{self, Rows, clean, clean_lines, say},
    time,
};

/// Versions in one answer.
const PAGE: i32 = 100;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum PolicyCommand {
    /// Show the policies that stand: a table of them, or one file
    #[command(after_help = "Examples:
  muster policy show
  muster policy show ai.cedar
  muster policy show schema
  muster policy show --version 3 limits.toml")]
    Show {
        /// A file, or "schema"
        file: Option<String>,
        /// An older version; 0 is what is shipped
        #[arg(long, value_name = "N")]
        version: Option<i64>,
    },
    /// Replace the policies by these files, once they fit the schema
    #[command(after_help = "Examples:
  muster policy set policies/                     the whole set, from a directory
  muster policy set --add web-team.cedar          this file beside those that stand
  muster policy set --remove ai.cedar --note 'no AI clients any more'
  muster policy set --dry-run policies/")]
    Set {
        /// Files (*.cedar, limits.toml), or directories of them
        paths: Vec<PathBuf>,
        /// Keep the files that stand and are not among these
        #[arg(long)]
        add: bool,
        /// Take this file away from those that stand; may be repeated
        #[arg(long, value_name = "FILE")]
        remove: Vec<String>,
        /// Why
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
        /// Check them there and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Edit the policies that stand with $EDITOR
    Edit {
        /// Which file; a new name makes a new file
        file: String,
        /// Why
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Check files against the schema, without a control plane
    Check {
        /// Files (*.cedar, limits.toml), or directories of them
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Say why somebody may do something or not, by which policy, and who could grant it
    Explain(explain::Explain),
    /// Try a table of cases, on files or on the policies that stand; ends with 1 where one does not hold
    #[command(after_help = "Examples:
  muster policy test cases.toml                   on the policies that stand
  muster policy test cases.toml --files policies/ without a control plane
  muster policy test cases.toml --shipped

A case:
  [[case]]
  name = \"an ai may not do everything in production\"
  principal = \"ai/claude\"             roles = [\"ai\"] is what an ai has unless the case says others
  action = \"command.run\"
  labels = { env = \"prod\" }
  mode = \"unrestricted\"
  expect = \"deny\"                     allow, deny, needs-approval or needs-confirmation")]
    Test {
        /// The table, in TOML
        table: PathBuf,
        /// Try these files, or directories of them, without a control plane; may be repeated
        #[arg(long, value_name = "PATH")]
        files: Vec<PathBuf>,
        /// Try the policies that are shipped, without a control plane
        #[arg(long, conflicts_with = "files")]
        shipped: bool,
    },
    /// List the versions of the policies, newest first
    Versions,
    /// Let a principal go on that was suspended for going over a limit
    Resume {
        /// As ai/claude
        principal: String,
    },
}

pub(crate) async fn run(command: PolicyCommand, operator: &Operator) -> Result<u8, Failure> {
    match command {
        PolicyCommand::Show { file, version } => {
            let client = operator.connect().await?;
            show(
                &get(&client, version).await?,
                file.as_deref(),
                operator.json,
            )?;
        }
        PolicyCommand::Set {
            paths,
            add,
            remove,
            note,
            dry_run,
        } => {
            let given = files::read(&paths)?;
            let client = operator.connect().await?;
            let standing = get(&client, None).await?.policy.unwrap_or_default();
            let mut files: BTreeMap<String, String> = given;
            if add || paths.is_empty() {
                for (name, text) in standing.files {
                    files.entry(name).or_insert(text);
                }
            }
            for name in &remove {
                if files.remove(name).is_none() {
                    return Err(Failure::usage(format!(
                        "there is no file {name:?} to remove"
                    )));
                }
            }
            if paths.is_empty() && remove.is_empty() {
                return Err(Failure::usage("name files, or one to --remove"));
            }
            let request = SetPolicyRequest {
                files: files.into_iter().collect(),
                etag: standing.etag,
                note,
                validate_only: dry_run,
            };
            set(&client, request, operator.json).await?;
        }
        PolicyCommand::Edit { file, note } => {
            let client = operator.connect().await?;
            edit::run(&client, &file, note, operator.json).await?;
        }
        PolicyCommand::Check { paths } => {
            let policies = files::policies(files::read(&paths)?)?;
            if operator.json {
                screen::print_json(&json!({"policies": policies.count()}))?;
            } else {
                screen::print(&format!("{} policies fit the schema\n", policies.count()))?;
            }
        }
        PolicyCommand::Explain(explain) => return explain.run(operator).await,
        PolicyCommand::Test {
            table,
            files,
            shipped,
        } => {
            let text = std::fs::read_to_string(&table);
            let text = text.map_err(|error| Failure::file(&table, &error))?;
            let policies = match (shipped, files.is_empty()) {
                (true, _) => PolicyFiles::shipped(),
                (false, false) => files::policies(files::read(&files)?)?,
                (false, true) => {
                    let client = operator.connect().await?;
                    let standing = get(&client, None).await?.policy.unwrap_or_default();
                    files::policies(standing.files.into_iter().collect())?
                }
            };
            return test(&policies, &table, &text, operator.json);
        }
        PolicyCommand::Versions => versions(&operator.connect().await?, operator.json).await?,
        PolicyCommand::Resume { principal } => {
            let client = operator.connect().await?;
            let request = ResumePrincipalRequest {
                principal: principal.clone(),
            };
            client.principals().resume_principal(request).await?;
            if operator.json {
                screen::print_json(&json!({"resumed": principal}))?;
            } else {
                screen::print(&format!("{} goes on\n", clean(&principal)))?;
            }
        }
    }
    Ok(0)
}

async fn get(client: &Client, version: Option<i64>) -> Result<GetPolicyResponse, Failure> {
    let request = GetPolicyRequest { version };
    Ok(client.policy().get_policy(request).await?.into_inner())
}

async fn set(client: &Client, request: SetPolicyRequest, json: bool) -> Result<(), Failure> {
    let dry = request.validate_only;
    let answer = client.policy().set_policy(request).await?.into_inner();
    let policy = answer.policy.unwrap_or_default();
    if json {
        screen::print_json(&json!({"policy": document(&policy)}))?;
    } else if dry {
        screen::print(&format!("{} policies fit the schema\n", policy.rules.len()))?;
    } else {
        screen::print(&format!("version {} stands\n", policy.version))?;
    }
    Ok(())
}

fn show(found: &GetPolicyResponse, file: Option<&str>, json: bool) -> Result<(), Failure> {
    let policy = found.policy.clone().unwrap_or_default();
    if let Some(file) = file {
        let text = match file {
            "schema" => Some(&found.schema),
            name => policy.files.get(name),
        };
        let text = text.ok_or_else(|| {
            let mut names: Vec<&str> = policy.files.keys().map(String::as_str).collect();
            names.sort_unstable();
            Failure::usage(format!("there is no file {file:?}"))
                .next(format!("it is one of {}, or schema", names.join(", ")))
        })?;
        return if json {
            screen::print_json(&json!({"file": file, "text": text})).map_err(Failure::from)
        } else {
            screen::print(&clean_lines(text)).map_err(Failure::from)
        };
    }
    if json {
        screen::print_json(&json!({"policy": document(&policy)}))?;
        return Ok(());
    }
    let mut rows = Rows::new(&["POLICY", "EFFECT", "WHERE", "TEXT"]);
    for rule in &policy.rules {
        rows.add([&rule.id, &effect(rule), &place(rule), &rule.text]);
    }
    screen::print(&rows.render())?;
    say(&match policy.version {
        0 => "these are the policies that are shipped; `muster policy edit FILE` changes them"
            .to_owned(),
        version => format!(
            "version {version} by {}, {}",
            policy.author,
            time::ago(policy.create_time.as_ref())
        ),
    });
    Ok(())
}

fn test(
    policies: &PolicyFiles,
    path: &std::path::Path,
    text: &str,
    json: bool,
) -> Result<u8, Failure> {
    let tried = policies
        .try_cases(text)
        .map_err(|problem| Failure::usage(format!("{}: {problem}", path.display())))?;
    let failed: Vec<_> = tried.iter().filter(|case| !case.holds()).collect();
    if json {
        let cases = tried.iter().map(|case| {
            json!({
                "name": case.name,
                "holds": case.holds(),
                "expected": case.expected,
                "found": case.found,
                "rules": case.rules,
            })
        });
        let cases: Vec<Value> = cases.collect();
        screen::print_json(&json!({"cases": cases, "failed": failed.len()}))?;
    } else {
        for case in &failed {
            let by = match case.rules.as_slice() {
                [] => "no policy permits it".to_owned(),
                rules => format!("by {}", rules.join(", ")),
            };
            screen::print(&format!(
                "{}: expected {}, found {} ({})\n",
                clean(&case.name),
                case.expected,
                case.found,
                clean(&by)
            ))?;
        }
        screen::print(&format!(
            "{} of {} cases hold\n",
            tried.len() - failed.len(),
            tried.len()
        ))?;
    }
    Ok(if failed.is_empty() {
        0
    } else {
        exit::SOME_FAILED
    })
}

async fn versions(client: &Client, json: bool) -> Result<(), Failure> {
    let mut found: Vec<Policy> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListPolicyVersionsRequest {
            page_size: PAGE,
            page_token,
        };
        let answer = client.policy().list_policy_versions(request).await?;
        let answer = answer.into_inner();
        found.extend(answer.policies);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if json {
        let found: Vec<Value> = found.iter().map(document).collect();
        screen::print_json(&json!({"policies": found}))?;
        return Ok(());
    }
    let mut rows = Rows::new(&["VERSION", "AUTHOR", "SET", "NOTE"]);
    for policy in &found {
        rows.add([
            policy.version.to_string(),
            policy.author.clone(),
            time::ago(policy.create_time.as_ref()),
            policy.note.clone(),
        ]);
    }
    rows.add(["0", "", "", "what is shipped"]);
    screen::print(&rows.render()).map_err(Failure::from)
}

fn effect(rule: &PolicyRule) -> String {
    let effect = if rule.permits { "permits" } else { "forbids" };
    match (rule.needs.as_str(), rule.permits) {
        ("", _) => effect.to_owned(),
        ("approval", permits) => {
            let until = if permits { "after" } else { "until" };
            format!("{effect} {until} {} × {}", rule.approvals, rule.approvers)
        }
        (needs, permits) => {
            let until = if permits { "after" } else { "until" };
            format!("{effect} {until} {needs}")
        }
    }
}

fn place(rule: &PolicyRule) -> String {
    format!("{}:{}", rule.file, rule.line)
}

fn rule(rule: &PolicyRule) -> Value {
    json!({
        "id": rule.id,
        "text": rule.text,
        "file": rule.file,
        "line": rule.line,
        "permits": rule.permits,
        "needs": rule.needs,
        "approvals": rule.approvals,
        "approvers": rule.approvers,
    })
}

fn document(policy: &Policy) -> Value {
    let files: BTreeMap<_, _> = policy.files.iter().collect();
    json!({
        "version": policy.version,
        "etag": policy.etag,
        "author": policy.author,
        "note": policy.note,
        "create_time": time::rfc3339(policy.create_time.as_ref()),
        "rules": policy.rules.iter().map(rule).collect::<Vec<_>>(),
        "files": files,
    })
}
