//! Settings about access tokens.

use std::path::PathBuf;

/// Whose access tokens (JWT, RFC 9068) count beside our own, for MCP clients that come by OAuth 2.1.
#[derive(clap::Args, Debug, Clone)]
#[group(skip)]
#[command(next_help_heading = "Control plane")]
pub struct OauthConfig {
    /// Authorization server whose access tokens count, exactly as their `iss` says it. With it come the next two.
    #[arg(long, env = "MUSTER_OAUTH_ISSUER", value_name = "URL")]
    pub oauth_issuer: Option<String>,

    /// The resource that access tokens must be for, as their `aud` says it: where MCP clients reach the gateway, as
    /// "https://muster.example.org/mcp".
    #[arg(long, env = "MUSTER_OAUTH_AUDIENCE", value_name = "URL")]
    pub oauth_audience: Option<String>,

    /// The issuer's keys (JWKS): an https address, or a file.
    #[arg(long, env = "MUSTER_OAUTH_JWKS", value_name = "URL|FILE")]
    pub oauth_jwks: Option<String>,

    /// Authorities (PEM) by which the address of the keys is checked [default: the system's].
    #[arg(long, env = "MUSTER_OAUTH_CA", value_name = "FILE")]
    pub oauth_ca: Option<PathBuf>,

    /// The claim that names the principal.
    #[arg(
        long,
        env = "MUSTER_OAUTH_PRINCIPAL_CLAIM",
        value_name = "CLAIM",
        default_value = "sub"
    )]
    pub oauth_principal_claim: String,

    /// The kind of principal that the claim names: operator, ai or automation.
    #[arg(
        long,
        env = "MUSTER_OAUTH_PRINCIPAL_KIND",
        value_name = "KIND",
        default_value = "ai"
    )]
    pub oauth_principal_kind: String,

    /// Claims that name another principal than they say, as "ada@example.org=operator/ada".
    #[arg(
        long,
        env = "MUSTER_OAUTH_PRINCIPALS",
        value_name = "CLAIM=PRINCIPAL,...",
        value_delimiter = ','
    )]
    pub oauth_principals: Vec<String>,
}

impl Default for OauthConfig {
    fn default() -> Self {
        Self {
            oauth_issuer: None,
            oauth_audience: None,
            oauth_jwks: None,
            oauth_ca: None,
            oauth_principal_claim: "sub".to_owned(),
            oauth_principal_kind: "ai".to_owned(),
            oauth_principals: Vec::new(),
        }
    }
}
