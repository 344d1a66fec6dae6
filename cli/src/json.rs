//! Messages of the wire as JSON, by their descriptors: the fields' own names, enums in lower case without prefix, times in
//! RFC 3339, durations in seconds as `NAME_s`, digests in hex. What is absent, empty or unspecified is null; of fields that
//! exclude each other only the one is there that is set.

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use muster_proto::{
    BARE_DESCRIPTOR_SET,
    v1::{Host, Job, Principal, Reason, Task},
};
use prost::{Message, Name};
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, ReflectMessage,
    Value as Field,
};
use serde_json::{Map, Value};

use crate::time::{rfc3339, seconds};

const DURATION: &str = "google.protobuf.Duration";

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

/// Takes some milliseconds, so that only who shows JSON waits for it.
static CONTRACT: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(BARE_DESCRIPTOR_SET)
        .expect("the contract is compiled in, and the tests read it")
});

/// A message with all of its fields.
pub(crate) fn document<M: Message + Name>(message: &M) -> Value {
    let described = CONTRACT.get_message_by_name(&M::full_name());
    let mut fields = DynamicMessage::new(described.expect("the contract holds every message"));
    fields
        .transcode_from(message)
        .expect("a message is what its descriptor says");
    object(&fields)
}

/// A principal by itself: its kind and name are one text, as everywhere.
pub(crate) fn member(member: &Principal) -> Value {
    let mut fields = Map::from_iter([("principal".to_owned(), principal(Some(member)).into())]);
    if let Value::Object(document) = document(member) {
        let others = |(name, _): &(String, Value)| name != "kind" && name != "name";
        fields.extend(document.into_iter().filter(others));
    }
    fields.into()
}

fn object(message: &DynamicMessage) -> Value {
    let mut fields = Map::new();
    for described in message.descriptor().fields() {
        add(&mut fields, message, &described);
    }
    match fields.is_empty() {
        true => Value::Null,
        false => fields.into(),
    }
}

fn add(fields: &mut Map<String, Value>, message: &DynamicMessage, described: &FieldDescriptor) {
    let is_absent = described.supports_presence() && !message.has_field(described);
    let oneof = described.containing_oneof();
    if is_absent && oneof.is_some_and(|oneof| !oneof.is_synthetic()) {
        return;
    }
    let mut put = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    let (name, field) = (described.name(), message.get_field(described));
    match (name, &*field) {
        ("data", Field::Bytes(bytes)) => {
            // A chunk may end within a character.
            let text = std::str::from_utf8(bytes).ok();
            let base64 = text.is_none().then(|| STANDARD.encode(bytes));
            put("text", text.into());
            put("base64", base64.into());
        }
        ("stdin", Field::Bytes(bytes)) => {
            put("stdin_bytes", bytes.len().into());
        }
        // `muster job receipt` shows it.
        ("receipt", Field::Bytes(_)) => {}
        ("counts", Field::List(counts)) => {
            put(name, counts.iter().filter_map(count).collect());
        }
        (_, field) => {
            let is_absent = is_absent || field.as_str() == Some("");
            let kind = described.kind();
            let value = (!is_absent).then(|| value(field, &kind)).into();
            match &kind {
                Kind::Message(of) if of.full_name() == DURATION => put(&format!("{name}_s"), value),
                _ => put(name, value),
            };
        }
    }
}

/// How many tasks are in a state, under the name of the state.
fn count(count: &Field) -> Option<(String, Value)> {
    let object = object(count.as_message()?);
    Some((
        object["state"].as_str()?.to_owned(),
        object["tasks"].clone(),
    ))
}

fn value(field: &Field, kind: &Kind) -> Value {
    match field {
        Field::Bool(is) => (*is).into(),
        Field::I32(number) => (*number).into(),
        Field::I64(number) => (*number).into(),
        Field::U32(number) => (*number).into(),
        Field::U64(number) => (*number).into(),
        Field::F32(number) => (*number).into(),
        Field::F64(number) => (*number).into(),
        Field::String(text) => text.as_str().into(),
        Field::Bytes(bytes) if bytes.is_empty() => Value::Null,
        Field::Bytes(bytes) => HEXLOWER.encode(bytes).into(),
        Field::EnumNumber(number) => match kind {
            Kind::Enum(described) => enumerated(described, *number),
            _ => Value::Null,
        },
        Field::Message(message) => match message.descriptor().full_name() {
            "google.protobuf.Timestamp" => rfc3339(message.transcode_to().ok().as_ref()).into(),
            DURATION => seconds(message.transcode_to().ok().as_ref()).into(),
            "muster.v1.Principal" => principal(message.transcode_to().ok().as_ref()).into(),
            _ => object(message),
        },
        Field::List(list) => list.iter().map(|one| value(one, kind)).collect(),
        Field::Map(map) => {
            // In one order, so that the same reads the same.
            let sorted: BTreeMap<&MapKey, &Field> = map.iter().collect();
            let named = sorted.into_iter().filter_map(|(key, one)| {
                let Kind::Message(entry) = kind else {
                    return None;
                };
                let value = value(one, &entry.map_entry_value_field().kind());
                Some((key.as_str()?.to_owned(), value))
            });
            named.collect()
        }
    }
}

/// Without the prefix that its type's names have in common. Values of tomorrow are `unspecified`.
fn enumerated(described: &EnumDescriptor, number: i32) -> Value {
    let none = described.default_value();
    let prefix = none.name().trim_end_matches("UNSPECIFIED");
    let Some(value) = described.get_value(number) else {
        return "unspecified".into();
    };
    let text = value.name().trim_start_matches(prefix);
    match described.full_name() {
        _ if value == none => Value::Null,
        "muster.v1.Reason" => text.into(),
        "muster.v1.Mode" => text.to_lowercase().replace('_', "-").into(),
        _ => text.to_lowercase().into(),
    }
}
#[cfg(test)]
mod tests {
    use muster_proto::v1::{
        Action, Command, Mode, Network, OutputChunk, OutputStream, PrincipalKind, Token,
        action::Kind, host::Presence, job, network::Access, task::State,
    };
    use prost_types::Timestamp;
    use serde_json::json;

    use super::*;

    #[test]
    fn enums_lose_their_prefix() {
        let host = Host {
            presence: Presence::Online.into(),
            ..Host::default()
        };
        assert_eq!(document(&host)["presence"], "online");
        let task = Task {
            state: State::TimedOut.into(),
            reason: Reason::Timeout.into(),
            ..Task::default()
        };
        let task = document(&task);
        assert_eq!(task["state"], "timed_out");
        assert_eq!(task["reason"], "TIMEOUT");
        assert_eq!(task["wait"], Value::Null);
        assert_eq!(task["exit_code"], Value::Null);
    }

    #[test]
    fn a_job_has_every_field_as_scripts_know_it() {
        let job = Job {
            job_id: "j-1".into(),
            action: Some(Action {
                kind: Some(Kind::Command(Command {
                    argv: vec!["printf".into(), String::new()],
                    stdin: "abc".into(),
                    timeout: Some(prost_types::Duration {
                        seconds: 90,
                        nanos: 0,
                    }),
                    ..Command::default()
                })),
            }),
            counts: vec![job::Count {
                state: State::TimedOut.into(),
                tasks: 2,
            }],
            create_time: Some(Timestamp::default()),
            mode: Mode::ReadOnly.into(),
            network: Some(Network {
                access: Access::List.into(),
                allow: vec!["*:443".into()],
            }),
            ..Job::default()
        };
        let job = document(&job);
        assert_eq!(job["counts"], json!({"timed_out": 2}));
        assert_eq!(job["create_time"], "1970-01-01T00:00:00.000Z");
        assert_eq!(job["mode"], "read-only");
        let network = json!({"access": "list", "allow": ["*:443"]});
        assert_eq!(job["network"], network);
        let command = &job["action"]["command"];
        assert_eq!(command["argv"], json!(["printf", ""]));
        assert_eq!(
            (&command["timeout_s"], &command["stdin_bytes"]),
            (&json!(90.0), &json!(3))
        );
        for absent in ["end_time", "lost_after_s", "reason", "note"] {
            assert_eq!(job.get(absent), Some(&Value::Null), "{absent}");
        }
    }

    #[test]
    fn a_principal_is_one_text_and_labels_are_in_order() {
        let owner = Principal {
            kind: PrincipalKind::Operator.into(),
            name: "ada".into(),
            ..Principal::default()
        };
        let shown = member(&owner);
        assert_eq!(shown["principal"], "operator/ada");
        assert!(shown.get("kind").is_none() && shown.get("name").is_none());
        let token = Token {
            principal: Some(owner),
            ..Token::default()
        };
        assert_eq!(document(&token)["principal"], "operator/ada");
        let label = |name: &str| (name.to_owned(), "1".to_owned());
        let host = Host {
            labels: ["c", "a", "b"].map(label).into(),
            ..Host::default()
        };
        let labels = document(&host)["labels"].to_string();
        assert_eq!(labels, r#"{"a":"1","b":"1","c":"1"}"#);
    }

    #[test]
    fn output_is_text_where_it_can_be() {
        let mut chunk = OutputChunk {
            stream: OutputStream::Stderr.into(),
            data: "schön".into(),
            ..OutputChunk::default()
        };
        let value = document(&chunk);
        assert_eq!(
            (&value["text"], &value["stream"]),
            (&json!("schön"), &json!("stderr"))
        );
        chunk.data = vec![0xff].into();
        let value = document(&chunk);
        assert_eq!(
            (&value["text"], &value["base64"]),
            (&Value::Null, &json!("/w=="))
        );
    }
}
