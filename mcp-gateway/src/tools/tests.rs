use super::*;

/// Every byte of a definition is read by every model that connects.
const BYTES_MAX: usize = 960;
const INPUT_BYTES_MAX: usize = 1_150;
const RUN_BYTES_MAX: usize = 1_600;

#[test]
fn definitions_stay_small_and_whole() {
    let mut total = 0;
    for tool in definitions() {
        let name = tool.name.as_ref();
        let bytes = serde_json::to_string(tool).unwrap().len();
        let limit = match name {
            "run" => RUN_BYTES_MAX,
            "job_input" => INPUT_BYTES_MAX,
            _ => BYTES_MAX,
        };
        assert!(
            bytes <= limit,
            "{name} takes {bytes} bytes, {limit} are allowed"
        );
        total += bytes;

        let words = tool
            .description
            .as_ref()
            .unwrap()
            .split_whitespace()
            .count();
        assert!(
            (20..=45).contains(&words),
            "{name} is described in {words} words"
        );
        assert!(tool.title.is_some());
        let hints = tool.annotations.as_ref().unwrap();
        assert!(hints.read_only_hint.is_some() && hints.destructive_hint.is_some());
        assert!(hints.idempotent_hint.is_some() && hints.open_world_hint.is_some());

        assert!(name.len() <= 30 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let schema = &tool.input_schema;
        assert_eq!(schema["type"], "object");
        assert_eq!(schema["additionalProperties"], false);
        for (property, value) in schema["properties"].as_object().unwrap() {
            assert!(
                value["type"].is_string(),
                "{name}.{property} is of one type"
            );
        }
    }
    assert!(total <= 8_400, "all tools take {total} bytes");
    let names: Vec<&str> = definitions()
        .iter()
        .map(|tool| tool.name.as_ref())
        .collect();
    assert_eq!(
        names,
        [
            "host_list",
            "host_set",
            "run",
            "file_read",
            "job_get",
            "job_input",
            "job_cancel",
            "grant_request"
        ]
    );
}

#[test]
fn what_comes_later_is_absent() {
    for tool in definitions() {
        for later in ["max_parallel", "stop_after_failures"] {
            assert!(
                tool.input_schema["properties"].get(later).is_none(),
                "{later}"
            );
        }
    }
}
