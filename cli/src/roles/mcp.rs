//! `muster mcp`: MCP over standard input and output, for AI clients that start it themselves.

use std::path::PathBuf;

use muster_client::{Client, ClientError, identity::Identity};
use muster_mcp_gateway::keep_fresh;
use muster_runtime::tls::connect_lazily;

use super::stop_on_signal;
use crate::{failure::Failure, operator::fresh};

#[derive(clap::Args, Debug)]
#[command(after_help = "Register it:
  claude mcp add muster -- muster mcp
  codex mcp add muster -- muster mcp
  code --add-mcp '{\"name\":\"muster\",\"command\":\"muster\",\"args\":[\"mcp\"]}'

It uses the operator's certificate in the data directory and acts as an AI that this operator owns, \
never as the operator. Logs go to standard error.")]
pub(crate) struct Mcp {
    /// Where the control plane listens, as HOST:PORT [default: where the credential comes from]
    #[arg(long, env = "MUSTER_ADDRESS", value_name = "HOST:PORT")]
    address: Option<String>,

    /// Name of the AI that calls are made as [default: the operator's with "-mcp" added]
    #[arg(long, env = "MUSTER_AI_NAME", value_name = "NAME")]
    ai_name: Option<String>,
}

impl Mcp {
    pub(crate) async fn run(self, data_dir: PathBuf) -> Result<u8, Failure> {
        let stop = stop_on_signal()?;
        let directory = data_dir.join("operator");
        let identity = fresh(Identity::load(&directory).map_err(ClientError::from)?).await;
        let address = self.address.as_deref().unwrap_or(identity.address());
        let tls = identity.client_tls().map_err(ClientError::from)?;
        let client = Client::from_channel(connect_lazily(address, &tls));
        let ai_name = self
            .ai_name
            .unwrap_or_else(|| format!("{}-mcp", identity.spiffe_id().name));
        // AI clients keep it running for weeks.
        let fresh = keep_fresh(identity, tls, client.clone(), stop.clone());
        let fresh = tokio::spawn(fresh);
        let served = muster_mcp_gateway::serve_stdio(client, ai_name, stop).await;
        fresh.abort();
        served.map_err(|error| Failure::internal(error.to_string()))?;
        Ok(0)
    }
}
