//! `muster token …`: who may join, and who may ask.

use std::{
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_client::Client;
use muster_proto::v1::{
    CreateJoinTokenRequest, CreateTokenRequest, JoinKind, JoinToken, ListJoinTokensRequest,
    ListTokensRequest, LockTokenRequest, PrincipalKind, Reason, RevokeJoinTokenRequest,
    RevokeTokenRequest, Token, UnlockTokenRequest,
};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    hosts::label,
    json,
    operator::Operator,
    screen::{self, Rows, clean, say},
    time,
};

/// Tokens in one answer.
const PAGE: i32 = 1_000;

#[derive(clap::Subcommand, Debug)]
pub(crate) enum TokenCommand {
    /// Make a join token (host, gateway) or a bearer token (operator, ai, automation)
    #[command(after_help = "Examples:
  muster token create host web-1 --label env=prod
  muster token create host --uses 50 --ttl 2h
  muster token create gateway front
  muster token create ai claude --output claude.token
  muster token create automation nightly --ttl 30d --output nightly.token
  muster token create automation graphs --scope fleet:read --scope jobs:read")]
    Create(Create),
    /// List the tokens that can still be used
    List,
    /// Make a bearer token useless until it is unlocked, at once
    Lock {
        /// As `muster token list` shows it
        token_id: String,
        /// Why, for those who find it locked
        #[arg(long, default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Let a locked bearer token be used again
    Unlock {
        /// As `muster token list` shows it
        token_id: String,
    },
    /// Make a token useless for good, at once
    Revoke {
        /// As `muster token list` shows it
        token_id: String,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct Create {
    /// What the token is for
    kind: Kind,
    /// Name of the host, gateway or principal; a host may bring its own
    name: Option<String>,
    /// How long it can be used [default: 1h for join tokens, 90d for bearer tokens]
    #[arg(long, value_parser = humantime::parse_duration, value_name = "DURATION")]
    ttl: Option<Duration>,
    /// Label that the host gets; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// How many hosts may join with it; then it has no name
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    uses: Option<i32>,
    /// What a bearer token narrows its principal to: fleet:read, fleet:write, jobs:read, jobs:run, files:read or
    /// admin; may be repeated [default: all that the principal may]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Write the secret to this new file, which only you can read, instead of printing it
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What a token is for.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Joins a machine
    Host,
    /// Joins an MCP gateway
    Gateway,
    /// Speaks for a person
    Operator,
    /// Speaks for an AI client
    Ai,
    /// Speaks for a script
    Automation,
}

pub(crate) async fn run(command: TokenCommand, operator: &Operator) -> Result<u8, Failure> {
    match command {
        TokenCommand::Create(create) => create.run(operator).await?,
        TokenCommand::List => list(&operator.connect().await?, operator.json).await?,
        TokenCommand::Lock { token_id, note } => {
            let request = LockTokenRequest { token_id, note };
            let client = operator.connect().await?;
            let locked = client.tokens().lock_token(request).await?.into_inner();
            tell(locked.token, "locked", operator.json)?;
        }
        TokenCommand::Unlock { token_id } => {
            let request = UnlockTokenRequest { token_id };
            let client = operator.connect().await?;
            let unlocked = client.tokens().unlock_token(request).await?.into_inner();
            tell(unlocked.token, "unlocked", operator.json)?;
        }
        TokenCommand::Revoke { token_id } => {
            revoke(&operator.connect().await?, &token_id).await?;
            if operator.json {
                screen::print_json(&json!({"revoked": token_id}))?;
            } else {
                screen::print(&format!("{} revoked\n", clean(&token_id)))?;
            }
        }
    }
    Ok(0)
}

fn tell(token: Option<Token>, done: &str, json: bool) -> Result<(), Failure> {
    let token = token.unwrap_or_default();
    if json {
        screen::print_json(&json::document(&token))?;
    } else {
        screen::print(&format!("{} {done}\n", clean(&token.token_id)))?;
    }
    Ok(())
}

impl Create {
    async fn run(self, operator: &Operator) -> Result<(), Failure> {
        let request = self.request()?;
        // Before the token is made: a secret that cannot be written down would be lost.
        let file = self.output.as_deref().map(SecretFile::create).transpose()?;
        let client = operator.connect().await?;
        let (secret, mut document, hint) = match request {
            Request::Join(request) => {
                let answer = client
                    .enrollment()
                    .create_join_token(request)
                    .await?
                    .into_inner();
                let token = answer.join_token.unwrap_or_default();
                let hint = self.join_hint(&token);
                let document = json!({"join_token": json::document(&token)});
                (answer.join_string, document, hint)
            }
            Request::Bearer(request) => {
                let answer = client.tokens().create_token(request).await?.into_inner();
                let token = answer.token.unwrap_or_default();
                let hint = bearer_hint(&token);
                let document = json!({"token": json::document(&token)});
                (answer.bearer_token, document, hint)
            }
        };
        if let Some(file) = &file {
            file.write(&secret)?;
        }
        if operator.json {
            let name = if self.joins() {
                "join_string"
            } else {
                "bearer_token"
            };
            document[name] = match &file {
                Some(_) => Value::Null,
                None => secret.into(),
            };
            document["file"] = json!(file.as_ref().map(|file| file.path));
            screen::print_json(&document)?;
            return Ok(());
        }
        match &file {
            Some(file) => screen::print(&format!("{}\n", file.path.display()))?,
            None if self.joins() => {
                screen::print(&format!(
                    "MUSTER_JOIN='{secret}' muster {} join\n",
                    self.role()
                ))?;
            }
            None => screen::print(&format!("{secret}\n"))?,
        }
        say(&hint);
        Ok(())
    }

    fn joins(&self) -> bool {
        matches!(self.kind, Kind::Host | Kind::Gateway)
    }

    fn role(&self) -> &'static str {
        if self.kind == Kind::Gateway {
            "gateway"
        } else {
            "agent"
        }
    }

    fn join_hint(&self, token: &JoinToken) -> String {
        let role = self.role();
        let uses = match token.max_uses {
            0 | 1 => "once".to_owned(),
            uses => format!("{uses} times"),
        };
        let until = time::until(token.expire_time.as_ref());
        format!(
            "Run that on the other machine, then `muster {role} run` there. It works {uses}, and expires {until}."
        )
    }

    fn request(&self) -> Result<Request, Failure> {
        let name = self.name.clone().unwrap_or_default();
        let ttl = self.ttl.and_then(time::wire);
        let join = |kind: JoinKind| {
            Request::Join(CreateJoinTokenRequest {
                kind: kind.into(),
                name: name.clone(),
                labels: self.labels.iter().cloned().collect(),
                ttl,
                max_uses: self.uses.unwrap_or(1),
                roles: Vec::new(),
            })
        };
        if !self.scopes.is_empty() && self.joins() {
            return Err(Failure::usage("--scope is for bearer tokens"));
        }
        let principal = match self.kind {
            Kind::Host => {
                if self.uses.is_some_and(|uses| uses > 1) && self.name.is_some() {
                    return Err(Failure::usage("a token for several hosts cannot name them")
                        .next("leave NAME out: each host brings its own"));
                }
                return Ok(join(JoinKind::Host));
            }
            Kind::Gateway => None,
            Kind::Operator => Some(PrincipalKind::Operator),
            Kind::Ai => Some(PrincipalKind::Ai),
            Kind::Automation => Some(PrincipalKind::Automation),
        };
        if self.name.is_none() {
            return Err(Failure::usage("this kind of token needs a NAME"));
        }
        if !self.labels.is_empty() || self.uses.is_some() {
            return Err(Failure::usage("--label and --uses are for hosts"));
        }
        Ok(match principal {
            None => join(JoinKind::Gateway),
            Some(kind) => Request::Bearer(CreateTokenRequest {
                kind: kind.into(),
                name,
                ttl,
                scopes: self.scopes.clone(),
            }),
        })
    }
}

enum Request {
    Join(CreateJoinTokenRequest),
    Bearer(CreateTokenRequest),
}

fn bearer_hint(token: &Token) -> String {
    let principal = json::principal(token.principal.as_ref()).unwrap_or_default();
    let until = time::local(token.expire_time.as_ref());
    format!(
        "{} of {}, valid until {until}. It is shown this once.",
        clean(&token.token_id),
        clean(&principal)
    )
}

/// A new file that only its owner can read.
struct SecretFile<'a> {
    path: &'a Path,
    file: std::fs::File,
}

impl<'a> SecretFile<'a> {
    fn create(path: &'a Path) -> Result<Self, Failure> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                Failure::file(path, &error).next("name a file that does not exist yet")
            })?;
        Ok(Self { path, file })
    }

    fn write(&self, secret: &str) -> Result<(), Failure> {
        let mut file = &self.file;
        file.write_all(format!("{secret}\n").as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|error| {
                Failure::file(self.path, &error).next("revoke the token and make another")
            })
    }
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let mut bearer: Vec<Token> = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListTokensRequest {
            page_size: PAGE,
            page_token,
        };
        let answer = client.tokens().list_tokens(request).await?.into_inner();
        bearer.extend(answer.tokens);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let mut join: Vec<JoinToken> = Vec::new();
    loop {
        let request = ListJoinTokensRequest {
            page_size: PAGE,
            page_token,
        };
        let answer = client
            .enrollment()
            .list_join_tokens(request)
            .await?
            .into_inner();
        join.extend(answer.join_tokens);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if json {
        let bearer: Vec<_> = bearer.iter().map(json::document).collect();
        let join: Vec<_> = join.iter().map(json::document).collect();
        screen::print_json(&json!({"tokens": bearer, "join_tokens": join}))?;
        return Ok(());
    }
    if bearer.is_empty() && join.is_empty() {
        say("no tokens");
        return Ok(());
    }
    screen::print(&table(&bearer, &join))?;
    Ok(())
}

fn table(bearer: &[Token], join: &[JoinToken]) -> String {
    let mut rows = Rows::new(&["TOKEN", "FOR", "USED", "EXPIRES", "AUTHOR"]);
    for token in bearer {
        let mut what = json::principal(token.principal.as_ref()).unwrap_or_default();
        if !token.scopes.is_empty() {
            what = format!("{what} ({})", token.scopes.join(", "));
        }
        if token.lock.is_some() {
            what.push_str(", locked");
        }
        rows.add([
            token.token_id.clone(),
            what,
            time::ago(token.last_used_time.as_ref()),
            time::until(token.expire_time.as_ref()),
            token.author.clone(),
        ]);
    }
    for token in join {
        let kind = json::word(token.kind().as_str_name(), "JOIN_KIND_");
        let name = if token.name.is_empty() {
            "any"
        } else {
            &token.name
        };
        rows.add([
            token.join_token_id.clone(),
            format!("joining {kind}/{name}"),
            format!("{} of {}", token.uses, token.max_uses),
            time::until(token.expire_time.as_ref()),
            token.author.clone(),
        ]);
    }
    rows.render()
}

/// Bearer and join tokens have ids of their own; people need not know which is which.
async fn revoke(client: &Client, token_id: &str) -> Result<(), Failure> {
    let request = RevokeTokenRequest {
        token_id: token_id.to_owned(),
    };
    let Err(status) = client.tokens().revoke_token(request).await else {
        return Ok(());
    };
    let error = muster_client::ClientError::from(status);
    if error.reason() != Some(Reason::TokenNotFound) {
        return Err(error.into());
    }
    let request = RevokeJoinTokenRequest {
        join_token_id: token_id.to_owned(),
    };
    client.enrollment().revoke_join_token(request).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        create: Create,
    }

    fn request(arguments: &str) -> Result<Request, Failure> {
        let arguments = std::iter::once("create").chain(arguments.split(' '));
        Program::try_parse_from(arguments).unwrap().create.request()
    }

    #[test]
    fn a_kind_decides_the_token() {
        let Ok(Request::Join(request)) = request("host --uses 5 --label env=prod --ttl 2h") else {
            panic!("a join token");
        };
        assert_eq!((request.max_uses, request.ttl.unwrap().seconds), (5, 7_200));
        assert_eq!(request.labels["env"], "prod");
        let Ok(Request::Bearer(request)) = super::tests::request("ai claude") else {
            panic!("a bearer token");
        };
        assert_eq!(
            (request.kind(), &*request.name),
            (PrincipalKind::Ai, "claude")
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for wrong in [
            "host web-1 --uses 2",
            "ai",
            "gateway",
            "operator ada --uses 2",
            "ai c --label a=b",
            "host --scope jobs:run",
        ] {
            assert!(request(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_file_is_private_and_new() {
        use std::os::unix::fs::PermissionsExt as _;
        let path = std::env::temp_dir().join(format!("muster-secret-{}", std::process::id()));
        SecretFile::create(&path)
            .unwrap()
            .write("mst_ai_x")
            .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mst_ai_x\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(SecretFile::create(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
