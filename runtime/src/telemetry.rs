//! Tracing to stderr and OTLP.
//!
//! Logs go to standard error, for people or as JSON; spans go to an OTLP collector where one is
//! configured. [`trace`] carries the trace from one process to the next.

pub mod trace;

use std::{
    env,
    io::{self, IsTerminal as _},
    str::FromStr,
    time::Duration,
};

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    Layer,
    filter::{Targets, filter_fn},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

/// What says too much by itself: the MCP library tells of each request three times.
const QUIET: (&str, Level) = ("rmcp", Level::WARN);

/// How long the last spans may take to leave at exit.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// What is written about the process itself, and where to.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Telemetry")]
#[group(skip)]
pub struct Config {
    /// How logs look on standard error.
    #[arg(
        long,
        env = "MUSTER_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "human",
        global = true
    )]
    pub log_format: LogFormat,

    /// What is logged: a level (error, warn, info, debug, trace), or levels by module, as
    /// "info,muster_agent=debug". Roles that serve alone log at info, everything else at warn.
    #[arg(long, env = "MUSTER_LOG", value_name = "FILTER", global = true)]
    pub log: Option<LogFilter>,

    /// OTLP collector for traces (gRPC), as "http://localhost:4317". Without it, the standard
    /// OTEL_EXPORTER_OTLP_ENDPOINT counts; without both, no trace leaves the process.
    #[arg(long, env = "MUSTER_OTLP_ENDPOINT", value_name = "URL", global = true)]
    pub otlp_endpoint: Option<Endpoint>,
}

/// How logs look.
#[derive(clap::ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq)]
pub struct LogFilter(Targets);

impl FromStr for LogFilter {
    type Err = tracing_subscriber::filter::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The address of a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(String);

impl FromStr for Endpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let uri = text.parse::<http::Uri>().map_err(|_| "not a URL")?;
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some() => Ok(Self(text.to_owned())),
            _ => Err("expected http://HOST:PORT or https://HOST:PORT"),
        }
    }
}

/// Telemetry that runs. Stop it at exit, or the last spans are lost.
#[must_use = "stop it at exit, or the last spans are lost"]
#[derive(Debug)]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The exporter refuses its settings.
    #[error("the OTLP exporter did not start: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Something else in this process already collects logs.
    #[error("logging did not start: {0}")]
    Logging(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts telemetry for the process. `service` names it in traces ("muster-agent"); `level` is what is
/// logged unless a setting says otherwise. Call it once, inside the runtime: the exporter needs one.
pub fn start(
    config: &Config,
    service: &'static str,
    level: Level,
) -> Result<Telemetry, StartError> {
    let filter = match &config.log {
        Some(LogFilter(targets)) => targets.clone(),
        None => Targets::new().with_default(level).with_targets([QUIET]),
    };
    let provider = match endpoint(config) {
        Some(endpoint) => Some(provider(endpoint, service)?),
        None => None,
    };
    // The exporter speaks gRPC itself: only our own spans leave, or it would trace its own calls.
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer()
            .with_tracer(provider.tracer(service))
            .with_filter(filter_fn(is_ours))
    });
    tracing_subscriber::registry()
        .with(logs(config.log_format).with_filter(filter))
        .with(spans)
        .try_init()?;
    Ok(Telemetry { provider })
}

impl Telemetry {
    /// Sends what is left, for at most 3 s.
    pub async fn stop(self) {
        let Some(provider) = self.provider else {
            return;
        };
        // Flushing blocks its thread, and the exporter needs the runtime meanwhile.
        let flush = move || provider.shutdown_with_timeout(FLUSH_LIMIT);
        match tokio::task::spawn_blocking(flush).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last spans were not exported: {error}"),
            Err(error) => tracing::warn!(%error, "the exporter broke: {error}"),
        }
    }
}

fn endpoint(config: &Config) -> Option<String> {
    let standard = || {
        [
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]
        .into_iter()
        .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
    };
    match &config.otlp_endpoint {
        Some(Endpoint(text)) => Some(text.clone()),
        None => standard(),
    }
}

fn provider(endpoint: String, service: &'static str) -> Result<SdkTracerProvider, StartError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(Resource::builder().with_service_name(service).build())
        .build())
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("muster") && *metadata.level() <= Level::INFO
}

fn logs<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    match format {
        LogFormat::Human => layer.with_ansi(colours()).with_target(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// Colours are for a terminal, unless its user wants none (<https://no-color.org>).
fn colours() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_endpoints_are_checked() {
        assert!("info,muster_agent=debug".parse::<LogFilter>().is_ok());
        assert!("muster=loud".parse::<LogFilter>().is_err());
        assert!("http://localhost:4317".parse::<Endpoint>().is_ok());
        for wrong in ["localhost:4317", "ftp://x", "/path", ""] {
            assert!(wrong.parse::<Endpoint>().is_err(), "{wrong}");
        }
    }
}
