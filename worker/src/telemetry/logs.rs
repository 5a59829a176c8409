//! Structured logs on standard error: text for people or one JSON object per line. Lines of a request carry its trace and request ids,
//! as fields of the span `request` that the gateway opens.

use crate::config::{LogFormat, Telemetry};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging for the process.
///
/// # Errors
/// The filter cannot be read, or logging has been started before.
pub fn init(config: &Telemetry) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log_filter).map_err(|error| {
        anyhow::anyhow!(
            "telemetry.log_filter `{}`: {error}; write for example info,millstream=debug",
            config.log_filter
        )
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}
