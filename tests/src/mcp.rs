//! An MCP client that hides nothing: one HTTP request, one answer, every header in the open.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Which of the two ways of speaking MCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// 2025-11-25: a handshake, then a session.
    Legacy,
    /// 2026-07-28: every request stands alone.
    Modern,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The HTTP headers.
    pub headers: HeaderMap,
    /// The JSON-RPC message that answers the request, whether it came as JSON or as an event; null if none did.
    pub message: Value,
    /// The body as it came.
    pub body: String,
}

impl Answer {
    /// The result of a tool; panics with the answer if it is none.
    pub fn tool(&self) -> ToolResult {
        let result = &self.message["result"];
        assert!(
            result.is_object(),
            "no result: {} {}",
            self.status,
            self.body
        );
        ToolResult {
            is_error: result["isError"] == json!(true),
            text: result["content"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|block| block["text"].as_str())
                .collect::<Vec<_>>()
                .join("\n"),
            structured: result["structuredContent"].clone(),
        }
    }
}

/// What a tool said.
#[derive(Debug)]
pub struct ToolResult {
    /// The tool could not do it.
    pub is_error: bool,
    /// Its text.
    pub text: String,
    /// Its structured content; null if none.
    pub structured: Value,
}

/// A client of one gateway.
#[derive(Debug, Clone)]
pub struct McpClient {
    address: SocketAddr,
    era: Era,
    headers: Vec<(String, String)>,
    session: Option<String>,
}

impl McpClient {
    /// A client that sends this bearer token.
    pub fn new(address: SocketAddr, era: Era, token: &str) -> Self {
        Self {
            address,
            era,
            headers: vec![("authorization".into(), format!("Bearer {token}"))],
            session: None,
        }
    }

    /// Sends this header too, or instead.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Leaves a header out.
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(known, _)| known != name);
        self
    }

    /// The session, once there is one.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// Does the handshake where the era has one.
    pub async fn connect(mut self) -> Self {
        if self.era == Era::Legacy {
            let hello = json!({
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "muster-tests", "version": "1"},
            });
            let answer = self.request("initialize", hello).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            self.session = answer
                .headers
                .get("mcp-session-id")
                .map(|id| id.to_str().unwrap().to_owned());
            let done = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
            self.post(done, &[]).await;
        }
        self
    }

    /// Calls a tool.
    pub async fn call(&self, tool: &str, arguments: Value) -> ToolResult {
        let params = json!({"name": tool, "arguments": arguments});
        self.request("tools/call", params).await.tool()
    }

    /// Sends a request.
    pub async fn request(&self, method: &str, mut params: Value) -> Answer {
        let mut headers = Vec::new();
        if self.era == Era::Modern {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({});
            params["_meta"]["io.modelcontextprotocol/clientInfo"] =
                json!({"name": "muster-tests", "version": "1"});
            headers.push(("mcp-method", method.to_owned()));
            if let Some(name) = params["name"].as_str() {
                headers.push(("mcp-name", name.to_owned()));
            }
        }
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.post(message, &headers).await
    }

    /// Posts a JSON-RPC message.
    pub async fn post(&self, message: Value, headers: &[(&str, String)]) -> Answer {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri("/mcp")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream");
        request = match self.era {
            Era::Modern => request.header("mcp-protocol-version", "2026-07-28"),
            Era::Legacy => request.header("mcp-protocol-version", "2025-11-25"),
        };
        if let Some(session) = &self.session {
            request = request.header("mcp-session-id", session);
        }
        if !self.headers.iter().any(|(name, _)| name == "host") {
            request = request.header("host", self.address.to_string());
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let body = Full::new(Bytes::from(message.to_string()));
        self.send(request.body(body).unwrap()).await
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        connection.abort();
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer {
            status: parts.status,
            headers: parts.headers,
            message: response_in(&body),
            body,
        }
    }
}

/// The JSON-RPC response in a body that is JSON or a stream of events.
fn response_in(body: &str) -> Value {
    if let Ok(message) = serde_json::from_str::<Value>(body) {
        return message;
    }
    body.lines()
        .filter_map(|line| line.strip_prefix("data:"))
        .filter_map(|data| serde_json::from_str::<Value>(data.trim()).ok())
        .find(|message| message.get("result").is_some() || message.get("error").is_some())
        .unwrap_or(Value::Null)
}
