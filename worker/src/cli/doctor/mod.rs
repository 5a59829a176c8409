//! `millstream doctor`: looks at everything that a worker's configuration stands on, before a worker does, and says what to change.
//!
//! What it guarantees: **it changes nothing, anywhere.** It creates and deletes nothing and produces nothing; it joins no group and takes no transactional id, so that it
//! fences nobody and may run beside workers; it opens no local state. Whether brokers would create a topic they say without doing it.
//!
//! Each check is one [`Finding`]. Facts are gathered by `millstream_stores::{kafka,mongo}::survey`, [`objects`] and [`machine`]; what follows from them is decided by functions
//! that ask nobody: [`cluster`], [`topics`], [`documents`], [`objects`], [`machine`].

mod cluster;
mod documents;
mod finding;
mod kafka;
mod machine;
mod objects;
mod topics;

use super::Outcome;
use crate::config::{self, Config, ConfigArgs, Documents, Log};
use crate::runtime::Role;
use finding::{Finding, Level};

/// How long each question waits for its answer, milliseconds: as long as a server needs that is there, so that one that is away is told soon.
const PATIENCE_MS: u64 = 5_000;

/// Arguments of `millstream doctor`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DoctorArgs {
    /// Which part of the pipeline will run with this configuration (default: any may)
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs it; the outcome is bad when there is a problem.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<Outcome> {
    let config = config::load(&args.config)?;
    if args.config.print_config {
        super::print(format_args!("{}", config.to_yaml()))?;
        return Ok(Outcome::Good);
    }
    let checks: [&dyn Fn() -> Vec<Finding>; 5] = [
        &|| vec![loaded(&config)],
        &|| kafka::check(&config),
        &|| documents::check(&config, args.role),
        &|| objects::check(&config, args.role),
        &|| machine::check(&config, args.role),
    ];
    let mut findings = Vec::new();
    for check in checks {
        let found = check();
        if !args.json {
            found.iter().try_for_each(|finding| super::print(format_args!("{finding}\n")))?;
        }
        findings.extend(found);
    }
    if args.json {
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&findings)?))?;
    } else {
        super::print(format_args!("{}\n", finding::sum(&findings)))?;
    }
    let is_bad = findings.iter().any(|finding| finding.level == Level::Problem);
    Ok(if is_bad { Outcome::Bad } else { Outcome::Good })
}

fn loaded(config: &Config) -> Finding {
    let log = if matches!(config.log, Log::Embedded) { "embedded" } else { "Kafka" };
    let documents = if matches!(config.documents, Documents::Embedded) { "embedded" } else { "MongoDB" };
    let (pipeline, shards, generation) = (&config.pipeline, config.shards.0, config.generation);
    Finding::ok(
        "configuration",
        format!("pipeline {pipeline}, generation {generation}, {shards} shards; log: {log}, documents: {documents}"),
    )
}
