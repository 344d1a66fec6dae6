//! `muster agent status`: who this machine is to its control plane, and how its agent is.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use muster_agent::{Answer, SERVICE};
use muster_client::identity::Identity;
use muster_runtime::{
    config::DataDir,
    service::{Layout, Manager, Standing},
};
use prost_types::Timestamp;
use serde_json::{Value, json};

use crate::{
    failure::{Failure, exit},
    roles::service::standing_json,
    screen::{self, Fields, clean},
    time,
};

pub(super) async fn show(data_dir: &DataDir, json: bool) -> Result<(), Failure> {
    let layout =
        Layout::installed(&SERVICE, data_dir).map_err(|error| Failure::usage(error.to_string()))?;
    let directory = layout.data_dir.join("agent");
    let identity = Identity::load(&directory).map_err(|error| {
        Failure::new(exit::NOT_ALLOWED, error.to_string()).next(
            "join first: MUSTER_JOIN=… muster agent join; the state of a system service is for root to see",
        )
    })?;
    // The machine's service is told of only where this directory is the one that it serves.
    let standing = Manager(layout.scope)
        .standing(SERVICE.name)
        .filter(|standing| standing.loaded);
    let answer = muster_agent::ask(&directory).await;
    let text = match json {
        true => format!(
            "{:#}\n",
            as_json(
                &identity,
                standing.as_ref(),
                answer.as_ref().ok(),
                &directory
            )
        ),
        false => as_fields(&identity, standing.as_ref(), answer, &directory),
    };
    Ok(screen::print(&text)?)
}

fn as_json(
    identity: &Identity,
    standing: Option<&Standing>,
    answer: Option<&Option<Answer>>,
    directory: &Path,
) -> Value {
    let expires = Timestamp::from(identity.expires());
    let answer = answer.and_then(Option::as_ref);
    json!({"agent": {
        "name": identity.name(),
        "host_id": identity.host_id(),
        "control_plane": identity.address(),
        "spiffe_id": identity.spiffe_id().to_string(),
        "certificate_expire_time": time::rfc3339(Some(&expires)),
        "directory": directory,
        "service": standing.map(standing_json),
        "running": answer.is_some(),
        "version": answer.map(|answer| &answer.version),
        "process_id": answer.map(|answer| answer.process_id),
        "connection": answer.map(|answer| json!({
            "attached": answer.connection.attached,
            "since_time": time::rfc3339(Some(&moment(answer.connection.since_ms))),
            "message": answer.connection.words,
        })),
        "permits": answer.and_then(|answer| answer.permits.as_ref()),
        "tasks": answer.map(|answer| json!({
            "waiting": answer.tasks.waiting,
            "running": answer.tasks.running,
            "unreported": answer.tasks.unreported,
        })),
    }})
}

fn as_fields(
    identity: &Identity,
    standing: Option<&Standing>,
    answer: std::io::Result<Option<Answer>>,
    directory: &Path,
) -> String {
    let expires = Timestamp::from(identity.expires());
    let until = match identity.expires() <= SystemTime::now() {
        true => format!(
            "{} (expired: a running agent gets a new one)",
            time::local(Some(&expires))
        ),
        false => format!(
            "{} ({})",
            time::local(Some(&expires)),
            time::until(Some(&expires))
        ),
    };
    let mut fields = Fields::new();
    fields
        .add("name", identity.name())
        .add("id", identity.host_id().unwrap_or_default())
        .add("control plane", identity.address())
        .add("certificate until", until)
        .add("directory", directory.display().to_string())
        .add(
            "service",
            standing.map_or_else(|| "not installed".to_owned(), Standing::describe),
        );
    match answer {
        Ok(Some(answer)) => {
            let since = moment(answer.connection.since_ms);
            let since = format!("since {}", time::local(Some(&since)));
            let connection = match answer.connection.attached {
                true => format!("attached {since}"),
                false => format!("not attached, {since}: {}", answer.connection.words),
            };
            let tasks = answer.tasks;
            fields
                .add(
                    "agent",
                    format!("version {}, process {}", answer.version, answer.process_id),
                )
                .add("connection", connection)
                .add(
                    "mode",
                    answer.permits.as_ref().map_or_else(
                        || "not known".to_owned(),
                        |permits| clean(&permits.describe()).into_owned(),
                    ),
                )
                .add(
                    "tasks",
                    format!(
                        "{} running, {} waiting to start, {} not fully reported",
                        tasks.running, tasks.waiting, tasks.unreported
                    ),
                );
        }
        Ok(None) => {
            fields.add("agent", "does not run");
        }
        Err(error) => {
            fields.add("agent", format!("does not answer: {error}"));
        }
    }
    fields.render()
}

fn moment(milliseconds: i64) -> Timestamp {
    let since = Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0));
    Timestamp::from(UNIX_EPOCH + since)
}
