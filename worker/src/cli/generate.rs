//! `millstream generate`: writes a load into files. The only place that takes the real time for it.

use super::Outcome;
use crate::generate::{self, Options, write};
use anyhow::{Context, ensure};
use std::path::PathBuf;

/// Arguments of `millstream generate`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct GenerateArgs {
    /// Folder for the files and manifest.json; made when it is not there
    #[arg(long)]
    out: PathBuf,
    /// Also write what must come out of the pipeline, as JSON
    #[arg(long)]
    truth: Option<PathBuf>,
    /// Number of tenants
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    tenants: u32,
    /// People per tenant
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    users: u32,
    /// The same seed, options and --now give the same bytes
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// The moment that record times lead up to (RFC 3339) [default: now]
    #[arg(long)]
    now: Option<String>,
    /// How many days before --now people begin; records of more than 30 days ago are refused
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=25))]
    days: u32,
    /// Bad records per good one, 0 to 1
    #[arg(long, default_value_t = 0.01)]
    bad_share: f64,
    /// Repeated deliveries per good record, 0 to 1
    #[arg(long, default_value_t = 0.02)]
    duplicates: f64,
}

/// Runs it.
pub(super) fn run(args: &GenerateArgs) -> anyhow::Result<Outcome> {
    let load = generate::generate(&options(args)?)?;
    let parts = write::write(&load, &args.out)?;
    if let Some(path) = &args.truth {
        write::write_json(path, &load.truth)?;
    }
    for part in &parts {
        super::print(format_args!("{:>9} records  {}\n", part.records, args.out.join(&part.file).display()))?;
    }
    Ok(Outcome::Good)
}

fn options(args: &GenerateArgs) -> anyhow::Result<Options> {
    for (flag, share) in [("--bad-share", args.bad_share), ("--duplicates", args.duplicates)] {
        ensure!((0.0..=1.0).contains(&share), "{flag} must lie between 0 and 1, {share} does not");
    }
    let now_ms = match &args.now {
        Some(text) => millstream_model::value::parse_time(text)
            .with_context(|| format!("--now `{text}` is not RFC 3339, for example 2026-01-31T12:00:00Z"))?,
        None => now_ms(),
    };
    Ok(Options {
        tenants: args.tenants,
        users: args.users,
        seed: args.seed,
        now_ms,
        days: args.days,
        bad_share: args.bad_share,
        duplicates: args.duplicates,
    })
}

/// The real time, milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
