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
    /// Capabilities that the server tells.
    capabilities: Value,
}

impl McpClient {
    /// A client that sends this bearer token.
    pub fn new(address: SocketAddr, era: Era, token: &str) -> Self {
        Self {
            address,
            era,
            headers: vec![("authorization".into(), format!("Bearer {token}"))],
            session: None,
            capabilities: json!({}),
        }
    }

    /// Says that it can show its person a form.
    pub fn with_a_person(mut self) -> Self {
        self.capabilities = json!({"elicitation": {"form": {}}});
        self
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
                "capabilities": self.capabilities,
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

    /// Calls a tool, and has the person answer what they are asked; returns the questions too.
    pub async fn call_answering(
        &self,
        tool: &str,
        arguments: Value,
        answer: Value,
    ) -> (ToolResult, Vec<Value>) {
        let mut params = json!({"name": tool, "arguments": arguments});
        if self.era == Era::Legacy {
            let (message, headers) = self.message("tools/call", params);
            let request = self.posted(&message, &headers);
            let mut questions = Vec::new();
            let answered = self.send(request, async |event| {
                if event["method"] == "elicitation/create" {
                    questions.push(event["params"].clone());
                    let reply = json!({"jsonrpc": "2.0", "id": event["id"], "result": answer});
                    self.post(reply, &[]).await;
                }
            });
            return (answered.await.tool(), questions);
        }
        let asked = self.request("tools/call", params.clone()).await;
        let result = asked.message["result"].clone();
        if result["resultType"] != "input_required" {
            return (asked.tool(), Vec::new());
        }
        let wanted = result["inputRequests"].as_object().unwrap().clone();
        let mut questions = Vec::new();
        for (name, question) in wanted {
            params["inputResponses"][name] = answer.clone();
            questions.push(question["params"].clone());
        }
        params["requestState"] = result["requestState"].clone();
        (self.request("tools/call", params).await.tool(), questions)
    }

    /// Sends a request.
    pub async fn request(&self, method: &str, params: Value) -> Answer {
        let (message, headers) = self.message(method, params);
        self.post(message, &headers).await
    }

    fn message(&self, method: &str, mut params: Value) -> (Value, Vec<(&'static str, String)>) {
        let mut headers = Vec::new();
        if self.era == Era::Modern {
            params["_meta"]["io.modelcontextprotocol/protocolVersion"] = json!("2026-07-28");
            params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
                self.capabilities.clone();
            params["_meta"]["io.modelcontextprotocol/clientInfo"] =
                json!({"name": "muster-tests", "version": "1"});
            headers.push(("mcp-method", method.to_owned()));
            if let Some(name) = params["name"].as_str() {
                headers.push(("mcp-name", name.to_owned()));
            }
        }
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        (message, headers)
    }

    /// Posts a JSON-RPC message.
    pub async fn post(&self, message: Value, headers: &[(&str, String)]) -> Answer {
        self.send(self.posted(&message, headers), async |_| ())
            .await
    }

    fn posted(&self, message: &Value, headers: &[(&str, String)]) -> Request<Full<Bytes>> {
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
        request.body(body).unwrap()
    }

    /// Sends a request; `on_event` hears each event of the answer as it comes.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        mut on_event: impl AsyncFnMut(Value),
    ) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.unwrap();
        let (parts, mut stream) = response.into_parts();
        let (mut body, mut told) = (String::new(), 0);
        while let Some(frame) = stream.frame().await {
            let Ok(data) = frame.unwrap().into_data() else {
                continue;
            };
            body.push_str(&String::from_utf8_lossy(&data));
            while let Some(length) = body[told..].find('\n') {
                let line = body[told..told + length].trim_end().to_owned();
                told += length + 1;
                let event = line.strip_prefix("data:").map(|data| data.trim());
                if let Some(event) = event.and_then(|event| serde_json::from_str(event).ok()) {
                    on_event(event).await;
                }
            }
        }
        connection.abort();
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
