//! Every setting of the gateway and its default.

use std::net::{Ipv4Addr, SocketAddr};

/// How the gateway is reached.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Gateway")]
#[group(skip)]
pub struct Config {
    /// Where MCP clients connect, over HTTP. Only processes of this machine can, unless another address is
    /// given; then put TLS in front.
    #[arg(
        long,
        env = "MUSTER_MCP_LISTEN",
        value_name = "IP:PORT",
        default_value_t = DEFAULT_LISTEN
    )]
    pub mcp_listen: SocketAddr,

    /// Names under which clients reach it besides localhost (the Host header): NAME or NAME:PORT.
    #[arg(
        long,
        env = "MUSTER_MCP_ALLOWED_HOSTS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub mcp_allowed_hosts: Vec<String>,

    /// Web origins that may call it besides those of this machine: https://NAME:PORT, or https://NAME:* for
    /// any port.
    #[arg(long, env = "MUSTER_MCP_ALLOWED_ORIGINS", value_name = "ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub mcp_allowed_origins: Vec<String>,
}

/// Where MCP is served unless a setting says otherwise.
pub const DEFAULT_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8765);

impl Default for Config {
    fn default() -> Self {
        Self {
            mcp_listen: DEFAULT_LISTEN,
            mcp_allowed_hosts: Vec::new(),
            mcp_allowed_origins: Vec::new(),
        }
    }
}

impl Config {
    /// What may stand in the Host header.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let own = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let given = self.mcp_allowed_hosts.iter().cloned();
        own.into_iter().chain(given).collect()
    }

    /// What may stand in the Origin header, if there is one.
    pub(crate) fn origins(&self) -> Vec<String> {
        let own = ["localhost", "127.0.0.1", "[::1]"].map(|name| format!("http://{name}:*"));
        let given = self.mcp_allowed_origins.iter().cloned();
        own.into_iter().chain(given).collect()
    }
}

/// An origin names its port: one without would let every port in.
fn origin(text: &str) -> Result<String, String> {
    let (_, rest) = text
        .split_once("://")
        .ok_or("an origin begins with http:// or https://")?;
    let (_, port) = rest
        .rsplit_once(':')
        .ok_or("an origin ends with :PORT, or :* for any port")?;
    if port == "*" || port.parse::<u16>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("an origin ends with :PORT, or :* for any port".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_names_its_port() {
        assert!(origin("https://panel.example:443").is_ok());
        assert!(origin("https://panel.example:*").is_ok());
        assert!(origin("https://panel.example").is_err());
        assert!(origin("panel.example:443").is_err());
    }
}
