//! Structured logs on standard error: text for people or one JSON object per line. Lines of a request carry its trace and request ids,
//! as fields of the span `request` that the gateway opens; what a stage says about one record carries the record's `trace_id`, when its
//! trace is sampled. At the level `debug` there is a line per request, and one per rejected record.

use crate::config::{LogFormat, Telemetry};
use std::io::IsTerminal;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging for the process.
///
/// # Errors
/// The filter cannot be read, or logging has been started before.
pub fn init(config: &Telemetry) -> anyhow::Result<()> {
    let subscriber = subscriber(config, std::io::stderr, std::io::stderr().is_terminal())?;
    let started = tracing::subscriber::set_global_default(subscriber);
    started.map_err(|error| anyhow::anyhow!("logging cannot be started: {error}"))
}

/// What writes the lines to `writer`, with colours when it is a terminal.
///
/// # Errors
/// The filter cannot be read.
pub fn subscriber<W>(config: &Telemetry, writer: W, colours: bool) -> anyhow::Result<Box<dyn Subscriber + Send + Sync>>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&config.log_filter).map_err(|error| {
        anyhow::anyhow!(
            "telemetry.log_filter `{}`: {error}; write for example info,millstream=debug",
            config.log_filter
        )
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    Ok(match config.log_format {
        LogFormat::Text => Box::new(builder.with_ansi(colours).finish()),
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_current_span(true).with_span_list(false).finish())
        }
    })
}
