//! The command line: `millstream <command>`.
//!
//! Exit codes are the same for all commands: 0 everything is as asked; 1 the command ran, and something in the data is not (records
//! refused, sums that do not add up); 2 it could not run (wrong usage, no connection, no such file).

mod admin;
mod answer;
mod checkpoint;
mod demo;
mod doctor;
mod generate;
mod input;
mod inspect;
mod plan;
mod request;
mod savepoint;
mod send;
pub mod sender;
mod session;
mod shards;
pub mod snapshot;
mod tail;
mod tenant;
pub mod usage;
pub mod verify;
mod visible;

use crate::runtime::{self, LocalArgs, WorkerArgs};
use clap::{Parser, Subcommand};
use millstream_kubectl::KubectlArgs;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use admin::{Admin, AdminError};

/// What a command comes to, when it could run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Good,
    /// Exit code 1: the command has said what is not good.
    Bad,
}

/// Ingestion of customer data: records in; users, devices, events and documents out.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the whole pipeline in this process, on embedded stores
    Local(LocalArgs),
    /// Run one stage, on Kafka and MongoDB
    Worker(WorkerArgs),
    /// Send records from files
    Send(send::SendArgs),
    /// Print events, mutations or rejects as NDJSON
    Tail(tail::TailArgs),
    /// Show what is known of one user or device
    Inspect(inspect::InspectArgs),
    /// Print each tenant's sums, and check that they add up
    Usage(usage::UsageArgs),
    /// Show who has which shard, how far, in which role
    Shards(shards::ShardsArgs),
    /// Show, make or publish the plan that says who owns which shard
    Plan(plan::PlanArgs),
    /// Show who may send, or change it, where no operator does
    Tenant(tenant::TenantArgs),
    /// Show which checkpoints there are, or whether they are what they were
    Checkpoint(checkpoint::CheckpointArgs),
    /// Create savepoints, show or verify them, or dispose of them
    Savepoint(savepoint::SavepointArgs),
    /// Look at pipelines in a Kubernetes cluster, and change them by hand (as `kubectl millstream`, too)
    Kubectl(KubectlArgs),
    /// Check a worker's configuration against brokers, topics, document store and this machine; changes nothing
    Doctor(doctor::DoctorArgs),
    /// Write realistic records into files, and what must come of them
    Generate(generate::GenerateArgs),
    /// Start a pipeline, send records through it, and check everything that comes out
    Demo(demo::DemoArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse_from(arguments(std::env::args_os())).command {
        Command::Local(args) => runtime::local(&args).map(|()| Outcome::Good),
        Command::Worker(args) => runtime::worker(&args).map(|()| Outcome::Good),
        Command::Send(args) => send::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Usage(args) => usage::run(&args),
        Command::Shards(args) => shards::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Tenant(args) => tenant::run(&args),
        Command::Checkpoint(args) => checkpoint::run(&args),
        Command::Savepoint(args) => savepoint::run(&args),
        Command::Kubectl(args) => kubectl(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match outcome {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing can be done when even that cannot be written.
            let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("millstream: {error:#}\n"));
            ExitCode::from(2)
        }
    }
}

/// What kubectl calls for `kubectl millstream`, by a link to this program.
const PLUGIN: &str = "kubectl-millstream";

/// As `millstream kubectl`, when it is called as kubectl's plugin.
fn arguments(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    if program.is_some_and(|name| name == PLUGIN) {
        arguments.insert(1, "kubectl".into());
    }
    arguments
}

fn kubectl(args: &KubectlArgs) -> anyhow::Result<Outcome> {
    Ok(match millstream_kubectl::run(args)? {
        millstream_kubectl::Outcome::Good => Outcome::Good,
        millstream_kubectl::Outcome::Bad => Outcome::Bad,
    })
}

/// `millstream tail … | head` ends well: the reader has what it wanted.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.into_iter().any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Writes to standard output; a closed pipe is an error that [`main`] takes for the end.
fn print(text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    std::io::Write::write_fmt(&mut std::io::stdout().lock(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_a_plugin_it_is_called_by_its_link() {
        let of = |given: &[&str]| arguments(given.iter().map(OsString::from));
        assert_eq!(
            of(&["/usr/bin/kubectl-millstream", "status"]),
            ["/usr/bin/kubectl-millstream", "kubectl", "status"]
        );
        assert_eq!(of(&["millstream", "shards"]), ["millstream", "shards"]);
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        let of = |kind: std::io::ErrorKind| anyhow::Error::from(std::io::Error::from(kind)).context("writing");
        assert!(is_broken_pipe(&of(std::io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&of(std::io::ErrorKind::NotFound)));
    }
}
