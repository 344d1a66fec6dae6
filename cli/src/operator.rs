//! How operator commands reach the control plane, and as whom.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_client::{Client, ClientError, Credentials, enrollment, identity::Identity};

use crate::failure::Failure;

/// Which control plane, as whom, and for whose eyes.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Operator")]
pub(crate) struct Operator {
    /// Where the control plane listens, as HOST:PORT [default: where the credential comes from]
    #[arg(long, env = "MUSTER_ADDRESS", value_name = "HOST:PORT", global = true)]
    address: Option<String>,

    /// File with a bearer token to use instead of the operator's certificate. MUSTER_TOKEN can hold the
    /// token itself.
    #[arg(long, env = "MUSTER_TOKEN_FILE", value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,

    /// Certificate of the control plane's authority, to check it with a token [default: operator/ca.pem in
    /// the data directory]
    #[arg(long, env = "MUSTER_CA", value_name = "FILE", global = true)]
    ca: Option<PathBuf>,

    /// Print JSON: one document, or one object a line for what streams.
    #[arg(long, global = true, help_heading = None::<&str>)]
    pub(crate) json: bool,

    /// Where the operator's certificate is kept.
    #[arg(skip)]
    data_dir: PathBuf,
}

impl Operator {
    /// With the data directory, which a flag of every command names.
    pub(crate) fn within(self, data_dir: PathBuf) -> Self {
        Self { data_dir, ..self }
    }

    /// The certificate of the control plane's authority, named or where it is kept.
    pub(crate) fn authority(&self) -> PathBuf {
        let kept = || self.data_dir.join("operator").join("ca.pem");
        self.ca.clone().unwrap_or_else(kept)
    }

    /// Whether somebody named that.
    pub(crate) fn names_authority(&self) -> bool {
        self.ca.is_some()
    }

    /// Connects: with a token where one is given, else with the operator's certificate.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let directory = self.data_dir.join("operator");
        let Some(token) = self.token()? else {
            let identity = fresh(Identity::load(&directory).map_err(ClientError::from)?).await;
            let address = self.address.as_deref().unwrap_or(identity.address());
            let credentials = Credentials::Directory(directory);
            let connected = Client::connect(address, &credentials).await;
            let outdated =
                matches!(&connected, Err(ClientError::Connect(error)) if error.is_outdated());
            // The authority behind the certificate was dropped; the key still proves who this is.
            if outdated && enrollment::rejoin(&identity).await.is_ok() {
                return Ok(Client::connect(address, &credentials).await?);
            }
            return Ok(connected?);
        };
        let authority = self.authority();
        let credentials = Credentials::Token { token, authority };
        let known = || fs::read_to_string(directory.join("address")).ok();
        let address = self.address.clone().or_else(known).ok_or_else(|| {
            Failure::usage("no address is known for the control plane")
                .next("name it with --address HOST:PORT or MUSTER_ADDRESS")
        })?;
        Ok(Client::connect(address.trim(), &credentials).await?)
    }

    fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.token_file {
            let text = fs::read_to_string(path).map_err(|error| Failure::file(path, &error))?;
            return Ok(Some(text.trim().to_owned()));
        }
        // Never a flag: arguments are visible to everybody on the machine.
        let token = std::env::var("MUSTER_TOKEN").unwrap_or_default();
        Ok(Some(token).filter(|token| !token.is_empty()))
    }
}

/// A renewal that takes longer than this waits for the next command.
const RENEW_LIMIT: Duration = Duration::from_secs(3);

/// The identity, renewed if it is past half of its life and the control plane can be asked.
pub(crate) async fn fresh(identity: Identity) -> Identity {
    if !identity.renew_in(0.5).is_zero() || identity.is_expired() {
        return identity;
    }
    let renewed = tokio::time::timeout(RENEW_LIMIT, enrollment::renew_or_rejoin(&identity)).await;
    match renewed {
        Ok(Ok(renewed)) => renewed,
        // It still counts; the next command tries again.
        _ => identity,
    }
}

/// The identity in a directory, if there is one that can be read.
pub(crate) fn known(directory: &Path) -> Option<Identity> {
    Identity::load(directory).ok()
}
