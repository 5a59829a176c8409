//! `millstream tail`: events, mutations or rejects as NDJSON.

use super::{Admin, Outcome};
use std::io::Write;

/// What to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Topic {
    /// Enriched events
    Events,
    /// Changes to documents
    Mutations,
    /// Records that were not processed, with the reason
    Rejects,
}

/// Arguments of `millstream tail`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct TailArgs {
    /// What to print
    #[arg(value_enum)]
    topic: Topic,
    /// Base URL of an admin port
    #[arg(long, default_value = "http://127.0.0.1:9090", env = "MILLSTREAM_ADMIN")]
    admin: String,
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<String>,
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
}

/// Runs it.
pub(super) fn run(args: &TailArgs) -> anyhow::Result<Outcome> {
    let path = match args.topic {
        Topic::Events => "/v1/tail/events",
        Topic::Mutations => "/v1/tail/mutations",
        Topic::Rejects => "/v1/tail/rejects",
    };
    let mut query = vec![("follow", if args.follow { "true" } else { "false" })];
    query.extend(args.tenant.as_deref().map(|tenant| ("tenant", tenant)));
    let mut out = std::io::stdout().lock();
    Admin::new(&args.admin)?.lines::<anyhow::Error>(path, &query, &mut |line| {
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        Ok(true)
    })?;
    out.flush()?;
    Ok(Outcome::Good)
}
