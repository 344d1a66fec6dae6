//! How operator commands reach the control plane, and as whom.

use std::{fs, path::PathBuf};

use muster_client::{Client, Credentials, identity::Identity};

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

    /// Connects: with a token where one is given, else with the operator's certificate.
    pub(crate) async fn connect(&self) -> Result<Client, Failure> {
        let directory = self.data_dir.join("operator");
        let Some(token) = self.token()? else {
            let identity = Identity::load(&directory).map_err(muster_client::ClientError::from)?;
            let address = self.address.as_deref().unwrap_or(identity.address());
            let credentials = Credentials::Directory(directory);
            return Ok(Client::connect(address, &credentials).await?);
        };
        let authority = self.ca.clone().unwrap_or_else(|| directory.join("ca.pem"));
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
