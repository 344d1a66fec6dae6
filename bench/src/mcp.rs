//! An MCP client over HTTP that keeps its connection, as real ones do.

use std::net::SocketAddr;

use anyhow::ensure;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

const VERSION: &str = "2026-07-28";

/// A client of one gateway. Every request stands alone; all share a connection.
pub(crate) struct McpClient {
    address: SocketAddr,
    token: String,
    connection: SendRequest<Full<Bytes>>,
}

impl McpClient {
    /// Connects.
    pub(crate) async fn connect(address: SocketAddr, token: &str) -> anyhow::Result<McpClient> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(McpClient {
            address,
            token: token.to_owned(),
            connection,
        })
    }

    /// Runs `true` on a host, and checks that it succeeded.
    pub(crate) async fn run_true(&mut self, host: &str) -> anyhow::Result<()> {
        let arguments = json!({"target": host, "argv": ["true"]});
        let message = self.call("run", arguments).await?;
        let result = &message["result"];
        let succeeded = result["isError"] != json!(true)
            && result.to_string().to_lowercase().contains("succeeded");
        ensure!(succeeded, "run answered {message}");
        Ok(())
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> anyhow::Result<Value> {
        let message = json!({
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {
                "name": tool,
                "arguments": arguments,
                "_meta": {
                    "io.modelcontextprotocol/protocolVersion": VERSION,
                    "io.modelcontextprotocol/clientCapabilities": {},
                    "io.modelcontextprotocol/clientInfo": {"name": "muster-bench", "version": "1"},
                },
            },
        });
        let request = Request::post("/mcp")
            .header("host", self.address.to_string())
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", VERSION)
            .header("mcp-method", "tools/call")
            .header("mcp-name", tool)
            .body(Full::new(Bytes::from(message.to_string())))?;
        let response = self.connection.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        ensure!(status == StatusCode::OK, "{status}: {text}");
        // As JSON, or as the data of an event.
        let json = text.lines().find_map(|line| line.strip_prefix("data:"));
        Ok(serde_json::from_str(json.unwrap_or(&text).trim())?)
    }
}
