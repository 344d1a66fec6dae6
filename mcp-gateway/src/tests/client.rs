//! An MCP client by hand, in both eras, so that what goes over the wire is in plain sight.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy, rt::TokioExecutor};
use muster_client::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use super::fake::Fake;
use crate::{
    config::Config,
    control_plane::ControlPlane,
    handler::{Shared, Who},
    http::serve,
    slots::Slots,
};

/// A gateway in front of a fake control plane.
pub(super) struct World {
    pub(super) fake: Fake,
    pub(super) address: SocketAddr,
    pub(super) stop: CancellationToken,
    pub(super) served: tokio::task::JoinHandle<()>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) body: String,
}

/// A client with its token, and its session if it is of the older era.
#[derive(Clone)]
pub(super) struct McpClient {
    address: SocketAddr,
    token: Option<String>,
    session: Option<String>,
}

pub(super) const MODERN: &str = "2026-07-28";
pub(super) const LEGACY: &str = "2025-11-25";

pub(super) fn shared(address: SocketAddr, who: Who) -> Arc<Shared> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    Arc::new(Shared {
        control_plane: Arc::new(ControlPlane::new([Client::from_channel(channel)])),
        who,
        slots: Slots::default(),
    })
}

impl World {
    pub(super) async fn start() -> Self {
        let (fake, control_plane) = Fake::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let shared = shared(control_plane, Who::Request);
        let stopped = stop.clone();
        let served =
            tokio::spawn(async move { serve(shared, &Config::default(), listener, stopped).await });
        Self {
            fake,
            address,
            stop,
            served,
        }
    }

    pub(super) fn modern(&self) -> McpClient {
        McpClient {
            address: self.address,
            token: Some("mst_ai_one".into()),
            session: None,
        }
    }

    pub(super) async fn legacy(&self) -> McpClient {
        self.modern().open().await
    }
}

impl McpClient {
    pub(super) fn with_token(&self, token: Option<&str>) -> Self {
        Self {
            token: token.map(str::to_owned),
            ..self.clone()
        }
    }

    /// Shakes hands as older clients do.
    pub(super) async fn open(mut self) -> Self {
        let answer = self
            .post(
                &[],
                &json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
                    "protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}
                }}),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let result = &answer.messages()[0]["result"];
        assert_eq!(result["serverInfo"]["name"], "muster");
        assert_eq!(result["protocolVersion"], LEGACY);
        self.session = Some(
            answer.headers["mcp-session-id"]
                .to_str()
                .unwrap()
                .to_owned(),
        );
        let answer = self
            .post(
                &[],
                &json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
            )
            .await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        self
    }

    pub(super) fn session(&self) -> &str {
        self.session.as_deref().unwrap()
    }

    fn request(
        &self,
        method: Method,
        headers: &[(&str, &str)],
        body: String,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}/mcp", self.address))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(session) = &self.session {
            request = request
                .header("mcp-session-id", session)
                .header("mcp-protocol-version", LEGACY);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::from(body)).unwrap()
    }

    pub(super) async fn send(
        &self,
        method: Method,
        headers: &[(&str, &str)],
        body: String,
    ) -> Answer {
        self.send_watching(method, headers, body, |_| ()).await
    }

    /// Shows what has come of the answer, whenever more has.
    async fn send_watching(
        &self,
        method: Method,
        headers: &[(&str, &str)],
        body: String,
        mut watch: impl FnMut(&str),
    ) -> Answer {
        let request = self.request(method, headers, body);
        let client = legacy::Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = async {
            let (parts, mut stream) = client.request(request).await.unwrap().into_parts();
            let mut body = String::new();
            while let Some(frame) = stream.frame().await {
                if let Ok(data) = frame.unwrap().into_data() {
                    body.push_str(std::str::from_utf8(&data).unwrap());
                    watch(&body);
                }
            }
            Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            }
        };
        tokio::time::timeout(Duration::from_secs(20), answer)
            .await
            .expect("an answer within 20 s")
    }

    pub(super) async fn post(&self, headers: &[(&str, &str)], body: &Value) -> Answer {
        self.send(Method::POST, headers, body.to_string()).await
    }

    /// A request in this client's era.
    pub(super) async fn ask(&self, method: &str, params: Value, meta: Value) -> Answer {
        self.ask_watching(method, params, meta, |_| ()).await
    }

    /// The same, shown what has come of the answer.
    pub(super) async fn ask_watching(
        &self,
        method: &str,
        mut params: Value,
        meta: Value,
        watch: impl FnMut(&str),
    ) -> Answer {
        let name = params
            .get("name")
            .or(params.get("uri"))
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        params["_meta"] = meta;
        let headers: Vec<(&str, &str)> = if self.session.is_some() {
            Vec::new()
        } else {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!(MODERN);
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
            params["_meta"]["io.modelcontextprotocol/clientInfo"] =
                json!({"name": "test", "version": "1"});
            let mut headers = vec![("mcp-protocol-version", MODERN), ("mcp-method", method)];
            if !name.is_empty() {
                headers.push(("mcp-name", &name));
            }
            headers
        };
        let message = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.send_watching(Method::POST, &headers, message.to_string(), watch)
            .await
    }

    /// Calls a tool and returns its result.
    pub(super) async fn tool(&self, name: &str, arguments: Value) -> Value {
        let answer = self
            .ask(
                "tools/call",
                json!({"name": name, "arguments": arguments}),
                json!({}),
            )
            .await;
        answer.result()
    }

    /// Calls a tool that answers with text: the text, and whether it is an error.
    pub(super) async fn text(&self, name: &str, arguments: Value) -> (String, bool) {
        let result = self.tool(name, arguments).await;
        assert!(
            result.get("structuredContent").is_none(),
            "text or structure, never both"
        );
        let text = result["content"][0]["text"].as_str().unwrap().to_owned();
        (text, result["isError"].as_bool().unwrap())
    }
}

impl Answer {
    /// The messages of an answer, as JSON or as an event stream.
    pub(super) fn messages(&self) -> Vec<Value> {
        if self.body.starts_with('{') {
            return vec![serde_json::from_str(&self.body).unwrap()];
        }
        self.body
            .lines()
            .filter_map(|line| line.strip_prefix("data:"))
            .filter(|data| !data.trim().is_empty())
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    pub(super) fn result(&self) -> Value {
        let messages = self.messages();
        let last = messages
            .last()
            .unwrap_or_else(|| panic!("{} {}", self.status, self.body));
        assert!(last.get("error").is_none(), "{last}");
        last["result"].clone()
    }
}
