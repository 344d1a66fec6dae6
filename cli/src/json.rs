//! Messages of the wire as JSON: the fields' own names, enums in lower case without prefix, times in RFC 3339,
//! durations in seconds, absent things as null.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use muster_proto::v1::{
    Action, AttachInputResult, Confinement, Facts, Host, InputStatus, Instruction, Job, JoinToken,
    Lock, OutputChunk, OutputGap, OutputLine, OutputSize, Principal, Reason, Task, Token, Writer,
    action,
};
use serde_json::{Value, json};

use crate::{
    mode,
    time::{rfc3339, seconds},
};

/// The name of an enum's value: `PRESENCE_ONLINE` becomes `online`. Values of tomorrow are `unspecified`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

pub(crate) fn presence(host: &Host) -> String {
    word(host.presence().as_str_name(), "PRESENCE_")
}

pub(crate) fn job_state(job: &Job) -> String {
    word(job.state().as_str_name(), "STATE_")
}

pub(crate) fn task_state(task: &Task) -> String {
    word(task.state().as_str_name(), "STATE_")
}

pub(crate) fn wait(task: &Task) -> Option<String> {
    let name = word(task.wait().as_str_name(), "WAIT_");
    (name != "unspecified").then_some(name)
}

pub(crate) fn reason(task: &Task) -> Option<&'static str> {
    let reason = task.reason();
    (reason != Reason::Unspecified).then(|| reason.name())
}

/// Kind and name, as `operator/ada`.
pub(crate) fn principal(principal: Option<&Principal>) -> Option<String> {
    let principal = principal?;
    let kind = word(principal.kind().as_str_name(), "PRINCIPAL_KIND_");
    Some(format!("{kind}/{}", principal.name))
}

pub(crate) fn host(host: &Host) -> Value {
    json!({
        "host_id": host.host_id,
        "name": host.name,
        "labels": sorted(&host.labels),
        "presence": presence(host),
        "last_heard_time": rfc3339(host.last_heard_time.as_ref()),
        "last_heard_age_s": seconds(host.last_heard_age.as_ref()),
        "facts": host.facts.as_ref().map(facts),
        "instruction": host.instruction.as_ref().map(instruction),
        "create_time": rfc3339(host.create_time.as_ref()),
        "lock": host.lock.as_ref().map(lock),
        "running_tasks": host.running_tasks,
        "pending_tasks": host.pending_tasks,
        "held_tasks": host.held_tasks,
        "owes_upload": host.owes_upload,
        "certificate_expire_time": rfc3339(host.certificate_expire_time.as_ref()),
        "clock_offset_s": seconds(host.clock_offset.as_ref()),
        "identity_conflict": some(&host.identity_conflict),
        "mode": some(mode::text(host.mode())),
        "mode_limit": some(mode::text(host.mode_limit())),
        "mode_note": some(&host.mode_note),
    })
}

fn facts(facts: &Facts) -> Value {
    json!({
        "os": facts.os,
        "distro": facts.distro,
        "distro_version": facts.distro_version,
        "kernel": facts.kernel,
        "arch": facts.arch,
        "cpus": facts.cpus,
        "memory_bytes": facts.memory_bytes,
        "shell": facts.shell,
        "agent_version": facts.agent_version,
        "addresses": facts.addresses,
        "hostname": facts.hostname,
        "user": facts.user,
        "boot_id": facts.boot_id,
        "audit_conflict": some(&facts.audit_conflict),
    })
}

pub(crate) fn instruction(instruction: &Instruction) -> Value {
    json!({
        "text": instruction.text,
        "version": instruction.version,
        "etag": instruction.etag,
        "author": instruction.author,
        "create_time": rfc3339(instruction.create_time.as_ref()),
    })
}

pub(crate) fn job(job: &Job) -> Value {
    let counts: serde_json::Map<String, Value> = job
        .counts
        .iter()
        .map(|count| {
            let state = word(count.state().as_str_name(), "STATE_");
            (state, count.tasks.into())
        })
        .collect();
    json!({
        "job_id": job.job_id,
        "approval_id": some(&job.approval_id),
        "reason": some(&job.reason),
        "request_id": job.request_id,
        "principal": job.principal,
        "selector": job.selector,
        "action": job.action.as_ref().map(action),
        "state": job_state(job),
        "counts": counts,
        "create_time": rfc3339(job.create_time.as_ref()),
        "start_time": rfc3339(job.start_time.as_ref()),
        "end_time": rfc3339(job.end_time.as_ref()),
        "start_deadline_time": rfc3339(job.start_deadline_time.as_ref()),
        "lost_after_s": seconds(job.lost_after.as_ref()),
        "mode": some(mode::text(job.mode())),
        "reason": some(&job.reason),
        "cancel_time": rfc3339(job.cancel_time.as_ref()),
        "cancelled_by": some(&job.cancelled_by),
        "note": some(&job.note),
    })
}

/// An action, all of it.
pub(crate) fn action(action: &Action) -> Value {
    let Some(action::Kind::Command(command)) = &action.kind else {
        return Value::Null;
    };
    json!({"command": {
        "argv": command.argv,
        "script": command.script.as_ref().map(|script| json!({
            "text": script.text,
            "shell": some(&script.shell),
        })),
        "cwd": some(&command.cwd),
        "env": command.env,
        "user": some(&command.user),
        "timeout_s": seconds(command.timeout.as_ref()),
        "grace_s": seconds(command.grace.as_ref()),
        "stdin_bytes": command.stdin.len(),
        "open_stdin": command.open_stdin,
        "terminal": command.terminal.as_ref().map(|terminal| json!({
            "rows": terminal.rows,
            "columns": terminal.columns,
            "term": some(&terminal.term),
        })),
        "record": command.record,
        "limits": command.limits.as_ref().map(|limits| json!({
            "nice": limits.nice,
            "memory_bytes": limits.memory_bytes,
            "processes": limits.processes,
            "cpu_millis": limits.cpu_millis,
        })),
        "environment": command.environment.as_ref().map(|environment| json!({
            "inherit": word(environment.inherit().as_str_name(), "INHERIT_"),
            "exclude": environment.exclude,
            "keep_secrets": environment.keep_secrets,
        })),
        "output_limit": command.output_limit.as_ref().map(|limit| json!({
            "policy": word(limit.policy().as_str_name(), "POLICY_"),
            "max_bytes": limit.max_bytes,
        })),
    }})
}

pub(crate) fn input_status(status: InputStatus) -> String {
    word(status.as_str_name(), "INPUT_STATUS_")
}

pub(crate) fn writer(writer: &Writer) -> Value {
    json!({
        "principal": writer.principal,
        "you": writer.you,
        "exclusive": writer.exclusive,
    })
}

pub(crate) fn input_result(result: &AttachInputResult) -> Value {
    let reason = result.reason();
    json!({
        "write_id": result.write_id,
        "status": input_status(result.status()),
        "reason": (reason != Reason::Unspecified).then(|| reason.name()),
        "message": some(&result.message),
    })
}

pub(crate) fn task(task: &Task) -> Value {
    json!({
        "task_id": task.task_id,
        "job_id": task.job_id,
        "host_id": task.host_id,
        "host_name": task.host_name,
        "state": task_state(task),
        "reason": reason(task),
        "message": some(&task.message),
        "exit_code": task.exit_code,
        "signal": some(&task.signal),
        "wait": wait(task),
        "state_time": rfc3339(task.state_time.as_ref()),
        "start_time": rfc3339(task.start_time.as_ref()),
        "end_time": rfc3339(task.end_time.as_ref()),
        "run_time_s": seconds(task.run_time.as_ref()),
        "output_size": task.output_size.as_ref().map(output_size),
        "output_complete": task.output_complete,
        "cancel_time": rfc3339(task.cancel_time.as_ref()),
        "disconnect_time": rfc3339(task.disconnect_time.as_ref()),
        "late_result": some(&task.late_result),
        "confinement": task.confinement.as_ref().map(confinement),
        "doubt": some(&task.doubt),
    })
}

/// How far a task was confined, as its host says.
pub(crate) fn confinement(applied: &Confinement) -> Value {
    json!({
        "mode": some(mode::text(applied.mode())),
        "network": applied.network.as_ref().map(|network| json!({
            "access": word(network.access().as_str_name(), "ACCESS_"),
            "allow": network.allow,
        })),
        "roots": applied.roots,
        "features": applied.features,
    })
}

pub(crate) fn output_size(size: &OutputSize) -> Value {
    json!({
        "stdout_bytes": size.stdout_bytes,
        "stderr_bytes": size.stderr_bytes,
        "dropped_bytes": size.dropped_bytes,
        "last_sequence": size.last_sequence,
    })
}

/// Output as text where it is UTF-8; a chunk may end within a character, then it is base64.
pub(crate) fn chunk(chunk: &OutputChunk) -> Value {
    let (text, base64) = data(&chunk.data);
    json!({
        "task_id": chunk.task_id,
        "sequence": chunk.sequence,
        "stream": word(chunk.stream().as_str_name(), "OUTPUT_STREAM_"),
        "offset": chunk.offset,
        "position": chunk.position,
        "time": rfc3339(chunk.time.as_ref()),
        "text": text,
        "base64": base64,
    })
}

pub(crate) fn gap(gap: &OutputGap) -> Value {
    json!({
        "task_id": gap.task_id,
        "sequence": gap.sequence,
        "stream": word(gap.stream().as_str_name(), "OUTPUT_STREAM_"),
        "offset": gap.offset,
        "position": gap.position,
        "length": gap.length,
        "cause": gap.cause,
    })
}

pub(crate) fn line(line: &OutputLine) -> Value {
    let (text, base64) = data(&line.data);
    json!({
        "stream": word(line.stream().as_str_name(), "OUTPUT_STREAM_"),
        "position": line.position,
        "number": line.number,
        "match": line.r#match,
        "text": text,
        "base64": base64,
    })
}

fn data(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

pub(crate) fn token(token: &Token) -> Value {
    json!({
        "token_id": token.token_id,
        "principal": principal(token.principal.as_ref()),
        "create_time": rfc3339(token.create_time.as_ref()),
        "expire_time": rfc3339(token.expire_time.as_ref()),
        "last_used_time": rfc3339(token.last_used_time.as_ref()),
        "author": token.author,
        "scopes": token.scopes,
        "lock": token.lock.as_ref().map(lock),
    })
}

pub(crate) fn member(member: &Principal) -> Value {
    json!({
        "principal": principal(Some(member)),
        "roles": member.roles,
        "owner": some(&member.owner),
        "lock": member.lock.as_ref().map(lock),
        "create_time": rfc3339(member.create_time.as_ref()),
        "last_used_time": rfc3339(member.last_used_time.as_ref()),
    })
}

fn lock(lock: &Lock) -> Value {
    json!({
        "create_time": rfc3339(lock.create_time.as_ref()),
        "author": lock.author,
        "note": lock.note,
    })
}

pub(crate) fn join_token(token: &JoinToken) -> Value {
    json!({
        "join_token_id": token.join_token_id,
        "kind": word(token.kind().as_str_name(), "JOIN_KIND_"),
        "name": some(&token.name),
        "labels": sorted(&token.labels),
        "create_time": rfc3339(token.create_time.as_ref()),
        "expire_time": rfc3339(token.expire_time.as_ref()),
        "max_uses": token.max_uses,
        "uses": token.uses,
        "author": token.author,
    })
}

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn sorted(
    map: &std::collections::HashMap<String, String>,
) -> std::collections::BTreeMap<&String, &String> {
    map.iter().collect()
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::{OutputStream, host::Presence, task::State};

    use super::*;

    #[test]
    fn enums_lose_their_prefix() {
        let host = Host {
            presence: Presence::Online.into(),
            ..Host::default()
        };
        assert_eq!(super::host(&host)["presence"], "online");
        let task = Task {
            state: State::TimedOut.into(),
            reason: Reason::Timeout.into(),
            ..Task::default()
        };
        let task = super::task(&task);
        assert_eq!(task["state"], "timed_out");
        assert_eq!(task["reason"], "TIMEOUT");
        assert_eq!(task["wait"], Value::Null);
        assert_eq!(task["exit_code"], Value::Null);
    }

    #[test]
    fn output_is_text_where_it_can_be() {
        let mut chunk = OutputChunk {
            stream: OutputStream::Stderr.into(),
            data: "schön".into(),
            ..OutputChunk::default()
        };
        let value = super::chunk(&chunk);
        assert_eq!(
            (&value["text"], &value["stream"]),
            (&json!("schön"), &json!("stderr"))
        );
        chunk.data = vec![0xff].into();
        let value = super::chunk(&chunk);
        assert_eq!(
            (&value["text"], &value["base64"]),
            (&Value::Null, &json!("/w=="))
        );
    }
}
