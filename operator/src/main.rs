//! `millstream-operator`: reconciles the pipelines of a cluster, or of one namespace, until it is told to end.

use anyhow::{Context, Result};
use clap::Parser;
use kube::Client;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Reconciles IngestionPipeline resources.
#[derive(Debug, Parser)]
#[command(name = "millstream-operator", version)]
struct Args {
    /// Only the pipelines of this namespace (default: of all).
    #[arg(long, env = "MILLSTREAM_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    watch_namespace: Option<String>,
    /// The namespace that the operator runs in: its Pods may look at workers.
    #[arg(long, env = "MILLSTREAM_OPERATOR_NAMESPACE", default_value = "millstream-system", value_name = "NAMESPACE")]
    namespace: String,
    /// What is logged, in the syntax of `RUST_LOG`.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    log_filter: String,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millstream-operator: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let filter: tracing_subscriber::EnvFilter =
        args.log_filter.parse().with_context(|| format!("`{}` is no filter of log lines", args.log_filter))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).json().init();
    tokio::runtime::Runtime::new()?.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("told to end");
    };
    let client = Client::try_default()
        .await
        .context("cannot tell where the API server is: run inside of a cluster, or with KUBECONFIG")?;
    let version = client.apiserver_version().await.context("the API server does not answer")?;
    let watched = args.watch_namespace.as_deref().filter(|namespace| !namespace.is_empty());
    tracing::info!(api_server = %version.git_version, namespace = watched.unwrap_or("(all)"), "reconciling");
    millstream_operator::controller::run(client, watched, &args.namespace, stop).await;
    Ok(())
}
