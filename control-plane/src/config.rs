//! Every setting and its default.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    approvals::webhook::WebhookConfig,
    oauth::{Oauth, OauthConfig},
    output::OutputConfig,
};

/// How a control plane runs.
#[derive(clap::Args, Debug, Clone)]
#[group(skip)]
#[command(next_help_heading = "Control plane")]
pub struct Config {
    /// Where the control plane keeps ledger, output and authority: `control-plane` in the data directory.
    /// Set by the program, as it follows from `--data-dir`.
    #[arg(skip)]
    pub directory: PathBuf,

    /// Where agents, operators and gateways connect.
    #[arg(
        long,
        env = "MUSTER_LISTEN",
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:8766"
    )]
    pub listen: SocketAddr,

    /// Names or addresses under which others reach this control plane, as "muster.example.org" or
    /// "10.0.0.5:8766". The first goes into join strings; all go into the certificate.
    #[arg(
        long,
        env = "MUSTER_ADVERTISE",
        value_name = "HOST[:PORT],...",
        value_delimiter = ',',
        value_parser = advertised
    )]
    pub advertise: Vec<String>,

    /// Trust domain of the SPIFFE ids. Cannot be changed later: every certificate carries it.
    #[arg(
        long,
        env = "MUSTER_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "muster.internal",
        value_parser = trust_domain
    )]
    pub trust_domain: String,

    /// How long certificates of hosts and gateways live; they are renewed at half of it.
    #[arg(
        long,
        env = "MUSTER_CERTIFICATE_LIFETIME",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = lifetime
    )]
    pub certificate_lifetime: Duration,

    /// How often agents give a sign of life.
    #[arg(
        long,
        env = "MUSTER_HEARTBEAT_INTERVAL",
        value_name = "DURATION",
        default_value = "10s",
        value_parser = interval
    )]
    pub heartbeat_interval: Duration,

    /// A host unheard for this long is suspect.
    #[arg(
        long,
        env = "MUSTER_SUSPECT_AFTER",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = interval
    )]
    pub suspect_after: Duration,

    /// A host unheard for this long is offline.
    #[arg(
        long,
        env = "MUSTER_OFFLINE_AFTER",
        value_name = "DURATION",
        default_value = "45s",
        value_parser = interval
    )]
    pub offline_after: Duration,

    /// Somebody who is attached to a task and unheard for this long is taken for gone.
    #[arg(
        long,
        env = "MUSTER_CLIENT_GONE_AFTER",
        value_name = "DURATION",
        default_value = "25s",
        value_parser = interval
    )]
    pub client_gone_after: Duration,

    /// Connections that may be open at once; more are dropped as they come.
    #[arg(
        long,
        env = "MUSTER_MAX_CONNECTIONS",
        value_name = "NUMBER",
        default_value_t = 32_768,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)
    )]
    pub max_connections: u32,

    /// How long jobs stay listed after their end; at least 7 days, as their request ids are remembered with them.
    #[arg(
        long,
        env = "MUSTER_JOB_AGE",
        value_name = "DURATION",
        default_value = "90d",
        value_parser = job_age
    )]
    pub job_age: Duration,

    /// How long an approval is awaited before it expires; at most 7 days.
    #[arg(
        long,
        env = "MUSTER_APPROVAL_EXPIRES_AFTER",
        value_name = "DURATION",
        default_value = "1h",
        value_parser = approval_expires_after
    )]
    pub approval_expires_after: Duration,

    /// Who is told of approvals.
    #[command(flatten)]
    pub webhook: WebhookConfig,

    /// How much output is kept.
    #[command(flatten)]
    pub output: OutputConfig,

    /// Whose access tokens count beside our own.
    #[command(flatten)]
    pub oauth: OauthConfig,
}

impl Config {
    /// The defaults, in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            listen: SocketAddr::from(([127, 0, 0, 1], 8766)),
            advertise: Vec::new(),
            trust_domain: "muster.internal".to_owned(),
            certificate_lifetime: Duration::from_secs(24 * 3600),
            heartbeat_interval: Duration::from_secs(10),
            suspect_after: Duration::from_secs(25),
            offline_after: Duration::from_secs(45),
            client_gone_after: Duration::from_secs(25),
            max_connections: 32_768,
            job_age: Duration::from_secs(90 * 24 * 3600),
            approval_expires_after: Duration::from_secs(3600),
            webhook: WebhookConfig::default(),
            output: OutputConfig::default(),
            oauth: OauthConfig::default(),
        }
    }

    /// What single settings cannot show: whether they fit together.
    pub fn check(&self) -> Result<(), String> {
        if self.heartbeat_interval >= self.suspect_after {
            return Err(format!(
                "--suspect-after ({}) must exceed --heartbeat-interval ({}), or every host is suspect",
                humantime::format_duration(self.suspect_after),
                humantime::format_duration(self.heartbeat_interval),
            ));
        }
        if self.suspect_after > self.offline_after {
            return Err(format!(
                "--offline-after ({}) must not be less than --suspect-after ({})",
                humantime::format_duration(self.offline_after),
                humantime::format_duration(self.suspect_after),
            ));
        }
        Oauth::new(&self.oauth)?;
        Ok(())
    }
}

fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration < least || duration > most {
        return Err(format!(
            "it must be from {} to {}",
            humantime::format_duration(least),
            humantime::format_duration(most)
        ));
    }
    Ok(duration)
}

fn interval(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(100), Duration::from_secs(3600))
}

fn lifetime(text: &str) -> Result<Duration, String> {
    duration(
        text,
        Duration::from_secs(2),
        Duration::from_secs(366 * 24 * 3600),
    )
}

fn job_age(text: &str) -> Result<Duration, String> {
    const DAY: u64 = 24 * 3600;
    duration(
        text,
        Duration::from_secs(7 * DAY),
        Duration::from_secs(3660 * DAY),
    )
}

fn approval_expires_after(text: &str) -> Result<Duration, String> {
    duration(
        text,
        Duration::from_secs(1),
        Duration::from_secs(7 * 24 * 3600),
    )
}

fn trust_domain(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.is_empty() || text.len() > 255 || !text.chars().all(plain) {
        return Err("it must be 1 to 255 of a-z, 0-9, \"-\" and \".\"".to_owned());
    }
    Ok(text.to_owned())
}

fn advertised(text: &str) -> Result<String, String> {
    let (host, port) = split(text);
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/#@".contains(c)) {
        return Err("it must be a name or an address, with or without a port".to_owned());
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => Err(format!("{port:?} is no port")),
        _ => Ok(text.to_owned()),
    }
}

/// Splits "HOST", "HOST:PORT", "[V6]:PORT" or "V6" into host, without brackets, and port.
pub(crate) fn split(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        assert_eq!(split("a.example"), ("a.example", None));
        assert_eq!(split("a.example:1"), ("a.example", Some("1")));
        assert_eq!(split("[::1]:1"), ("::1", Some("1")));
        assert_eq!(split("::1"), ("::1", None));
    }

    #[test]
    fn settings_that_do_not_fit_together_are_named() {
        let mut config = Config::new(PathBuf::new());
        config.check().unwrap();
        config.heartbeat_interval = Duration::from_secs(30);
        assert!(config.check().unwrap_err().contains("--suspect-after"));
    }

    #[test]
    fn the_defaults_in_code_are_those_of_the_flags() {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            config: Config,
        }
        let parsed = <Program as clap::Parser>::parse_from(["program"]).config;
        let new = Config::new(PathBuf::new());
        assert_eq!(format!("{parsed:?}"), format!("{new:?}"));
    }
}
