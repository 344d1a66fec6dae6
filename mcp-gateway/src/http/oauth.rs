//! The resource server's side of OAuth 2.1: where tokens come from, and what they have to reach.
//!
//! Who a token speaks for is not judged here: it goes to the control plane, as a token of our own does.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use muster_proto::v1::OAuth;
use serde_json::{Value, json};

/// Where the metadata of RFC 9728 is, for the resource at "/" and for the one at `PATH`.
pub(super) const METADATA: [&str; 2] = [
    "/.well-known/oauth-protected-resource",
    "/.well-known/oauth-protected-resource/mcp",
];

/// What a client that knows nothing better should ask for: to look, and to work.
const FIRST: &str = "fleet:read jobs:read jobs:run files:read";

/// The metadata of this resource.
pub(super) fn metadata(oauth: Option<&OAuth>) -> Response {
    let Some(oauth) = oauth else {
        let body = "no authorization server is set; an operator makes tokens with \"muster token create ai NAME\"\n";
        return (StatusCode::NOT_FOUND, body).into_response();
    };
    Json(json!({
        "resource": oauth.audience,
        "authorization_servers": [oauth.issuer],
        "scopes_supported": oauth.scopes,
        "bearer_methods_supported": ["header"],
        "resource_name": "Muster",
    }))
    .into_response()
}

/// Where a client that was refused finds the metadata: between the origin and the path of the resource.
fn metadata_address(audience: &str) -> Option<String> {
    let (scheme, rest) = audience.split_once("://")?;
    let (host, path) = match rest.split_once('/') {
        Some((host, path)) => (host, format!("/{path}")),
        None => (rest, String::new()),
    };
    let path = path.trim_end_matches('/');
    Some(format!("{scheme}://{host}{}{path}", METADATA[0]))
}

/// A `WWW-Authenticate` challenge. `error` as RFC 6750 names it; `scope`: all that the call needs.
pub(super) fn challenge(
    oauth: Option<&OAuth>,
    error: Option<&str>,
    scope: Option<&str>,
) -> HeaderValue {
    let mut challenge = "Bearer realm=\"muster\"".to_owned();
    let mut add = |name: &str, value: &str| {
        // What comes from settings must not end the quotes.
        let value = value.replace(['"', '\\'], "");
        challenge.push_str(&format!(", {name}=\"{value}\""));
    };
    if let Some(error) = error {
        add("error", error);
    }
    if let Some(address) = oauth.and_then(|oauth| metadata_address(&oauth.audience)) {
        add("resource_metadata", &address);
        add("scope", scope.unwrap_or(FIRST));
    } else if let Some(scope) = scope {
        add("scope", scope);
    }
    HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Bearer realm=\"muster\""))
}

/// Not without more scopes: says all that the call needs.
pub(super) fn insufficient(oauth: Option<&OAuth>, scope: Option<&str>) -> Response {
    let scope = scope.unwrap_or(FIRST);
    let body = format!("the token does not reach that far; the call needs: {scope}\n");
    let mut response = (StatusCode::FORBIDDEN, body).into_response();
    let challenge = challenge(oauth, Some("insufficient_scope"), Some(scope));
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge);
    response
}

/// All scopes that a message needs, if it calls a tool of ours.
pub(super) fn needed(message: &[u8]) -> Option<&'static str> {
    let message: Value = serde_json::from_slice(message).ok()?;
    // Older clients may send several at once; whatever is in there beyond the first the control plane judges.
    let message = message
        .as_array()
        .and_then(|all| all.first())
        .unwrap_or(&message);
    if message["method"] != "tools/call" {
        return None;
    }
    Some(match message["params"]["name"].as_str()? {
        "host_list" => "fleet:read",
        "host_set" => "fleet:read fleet:write",
        "run" => "jobs:read jobs:run",
        "file_read" => "jobs:read files:read",
        "job_get" | "job_list" => "jobs:read",
        "job_input" | "job_cancel" | "grant_request" => "jobs:read jobs:run",
        _ => return None,
    })
}

/// Whether scopes that were given, empty for all, cover all that is needed.
pub(super) fn covers(given: &[String], needed: &str) -> bool {
    given.is_empty()
        || needed
            .split(' ')
            .all(|scope| given.iter().any(|has| has == scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oauth() -> OAuth {
        OAuth {
            issuer: "https://id.example.org".to_owned(),
            audience: "https://muster.example.org/mcp".to_owned(),
            scopes: vec!["fleet:read".to_owned()],
        }
    }

    #[test]
    fn a_challenge_says_where_tokens_come_from_and_what_they_need() {
        let text = challenge(Some(&oauth()), None, None);
        assert_eq!(
            text,
            "Bearer realm=\"muster\", resource_metadata=\"https://muster.example.org/.well-known/oauth-protected-resource/mcp\", scope=\"fleet:read jobs:read jobs:run files:read\""
        );
        assert_eq!(
            challenge(None, Some("invalid_token"), None),
            "Bearer realm=\"muster\", error=\"invalid_token\""
        );
        assert_eq!(
            metadata_address("https://h").unwrap(),
            "https://h/.well-known/oauth-protected-resource"
        );
    }

    #[test]
    fn a_tool_needs_its_scopes() {
        let call =
            |name: &str| json!({"method": "tools/call", "params": {"name": name}}).to_string();
        assert_eq!(needed(call("run").as_bytes()), Some("jobs:read jobs:run"));
        assert_eq!(needed(b"{\"method\": \"tools/list\"}"), None);
        assert_eq!(needed(b"not json"), None);
        let given = ["jobs:read".to_owned()];
        assert!(covers(&given, "jobs:read") && !covers(&given, "jobs:read jobs:run"));
        assert!(covers(&[], "admin"));
    }

    /// Every tool that there is has its scopes.
    #[test]
    fn no_tool_is_forgotten() {
        let definitions: Value =
            serde_json::from_str(include_str!("../tools/definitions.json")).unwrap();
        let names: Vec<String> = match &definitions {
            Value::Object(tools) => tools.keys().cloned().collect(),
            Value::Array(tools) => tools
                .iter()
                .map(|tool| tool["name"].as_str().unwrap().to_owned())
                .collect(),
            other => panic!("{other}"),
        };
        assert!(!names.is_empty());
        for name in names {
            let call = json!({"method": "tools/call", "params": {"name": name}}).to_string();
            assert!(needed(call.as_bytes()).is_some(), "{name}");
        }
    }
}
