//! `kubectl millstream`: looks at pipelines in a cluster, and changes what a person changes by hand.
//!
//! It is the program `millstream` under another name: `kubectl-millstream` in the PATH, a link, is what kubectl calls for it. What it shows beside the resources themselves is what the operator
//! that leads hears from workers; it asks that one through the API server, which needs leave to `get` `services/proxy` of one Service in the operator's namespace.
//! What it changes, it changes in the resource, and the operator carries it out; it waits until that is done and says what is going on meanwhile.

mod change;
mod cluster;
mod preview;
mod shards;
mod status;
mod wait;

use clap::{Args, Subcommand};
use std::time::Duration;

/// What a command comes to, when it could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as asked.
    Good,
    /// The command has said what is not good.
    Bad,
}

/// Arguments of `kubectl millstream`.
#[derive(Debug, Clone, Args)]
pub struct KubectlArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Show pipelines, their stages and shards: who owns each, who follows it, how far behind
    Status(status::StatusArgs),
    /// Move shards by hand
    #[command(subcommand)]
    Shards(shards::ShardsCommand),
    /// Keep the operator from changing a pipeline; what runs goes on, and fails over
    Pause(change::ChangeArgs),
    /// Let the operator change a pipeline again
    Resume(change::ChangeArgs),
    /// Print the objects that a pipeline in a file would become, without any cluster
    Preview(preview::PreviewArgs),
}

/// Which cluster, and where in it.
#[derive(Debug, Clone, Args)]
struct Where {
    /// Namespace of the pipeline (default: the kubeconfig's)
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Context of the kubeconfig (default: the current one)
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,
    /// Namespace of the operator
    #[arg(long, env = "MILLSTREAM_OPERATOR_NAMESPACE", default_value = "millstream-system", value_name = "NAMESPACE")]
    operator_namespace: String,
    /// Ask the operator at this URL instead of through the API server: that of a port-forward to it, or of one that runs in no Pod
    #[arg(long, env = "MILLSTREAM_OPERATOR_URL", value_name = "URL")]
    operator_url: Option<String>,
}

/// How a change is waited for.
#[derive(Debug, Clone, Args)]
struct Waits {
    /// Return at once: the operator goes on by itself
    #[arg(long)]
    no_wait: bool,
    /// Give up waiting after so many seconds; the operator goes on
    #[arg(long, default_value = "120", value_name = "SECONDS", value_parser = seconds)]
    timeout: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| format!("`{text}` is not a number of seconds"))
}

/// Runs a command.
///
/// # Errors
/// When it could not run: no cluster, no such pipeline, no leave.
pub fn run(args: &KubectlArgs) -> anyhow::Result<Outcome> {
    if let Command::Preview(args) = &args.command {
        return preview::run(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &args.command {
            Command::Status(args) => status::run(args).await,
            Command::Shards(command) => shards::run(command).await,
            Command::Pause(args) => change::run(args, true).await,
            Command::Resume(args) => change::run(args, false).await,
            Command::Preview(args) => preview::run(args),
        }
    })
}

/// Writes to standard output; a closed pipe is an error.
fn print(text: std::fmt::Arguments<'_>) -> std::io::Result<()> {
    std::io::Write::write_fmt(&mut std::io::stdout().lock(), text)
}
