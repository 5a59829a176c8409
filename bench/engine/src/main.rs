//! The engine's figures: `make bench-engine`.
//!
//! Processor time per million records of the shard runtime on real Kafka and RocksDB, beside librdkafka alone with the same input and output in
//! the same run; freshness and processor time at a low rate; memory. One Kafka broker is started on loopback and stopped at the end. Each measurement
//! runs in a process of its own ([`scenario`]), which this program starts; loading, and the reader that sees what becomes visible, stay in this one.
//! What is measured and how: docs/src/design/engine-figures.md.

mod cost;
mod engine;
mod figures;
mod load;
mod raw;
mod scenario;
// The tests' servers, without the tests: these would bring the whole program along, to be compiled with full optimisation.
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../../../tests/src/servers/mod.rs"]
mod servers;
mod stage;
mod suite;
mod visible;
mod window;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use scenario::{Scenario, Who};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "The engine's figures, on a Kafka broker of its own")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Shorter phases: to try things out. The figures of a full run are the ones to quote.
    #[arg(long)]
    quick: bool,
    /// Only the parts whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure so often, each time ours and the limit one after the other.
    #[arg(long)]
    rounds: Option<usize>,
    /// Where the figures are written; nowhere by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// One measurement, in this process (used by the program itself).
    #[command(hide = true)]
    Measure { scenario: String },
}

/// The batches of a shard are many small allocations that live and die together; the system's allocator spends a third of the processor on
/// them (docs/src/design/engine-figures.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    let args = Args::parse();
    match args.command {
        Some(Command::Measure { scenario }) => measure(&scenario),
        None => {
            let figures = suite::run(args.quick, &args.only, args.rounds)?;
            print!("\n{figures}");
            args.out.map_or(Ok(()), |path| figures.write(&path))
        }
    }
}

fn measure(scenario: &str) -> Result<()> {
    let scenario: Scenario = serde_json::from_str(scenario).context("not a scenario")?;
    match scenario.who {
        Who::Shards => engine::run(&scenario),
        Who::Raw => raw::run(&scenario),
    }
}
