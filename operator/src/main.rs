//! `millstream-operator`: reconciles the pipelines of a cluster, or of one namespace, until it is told to end.

use anyhow::{Context, Result};
use clap::Parser;
use futures::FutureExt;
use millstream_operator::admin::{self, Admin};
use millstream_operator::client;
use millstream_operator::controller::{self, Settings};
use millstream_operator::leader::{LeaderLabel, service};
use millstream_operator::lease::Claim;
use millstream_operator::terminating::Terminating;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Of whom one leads.
const LEASE: &str = "millstream-operator";
/// What one is called that is not in a Pod.
const NAMELESS: &str = "millstream-operator";
/// How long reconciliations that are under way may take at the end, and the last look at a namespace that is being deleted.
const LAST_WORK: Duration = Duration::from_secs(5);
/// Exit code of one that has lost its lease.
const LOST: i32 = 3;

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
    /// The name of its Pod, which it labels while it leads (default: it runs in none, and no Service leads to it).
    #[arg(long, env = "MILLSTREAM_OPERATOR_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Where Kubernetes asks whether it lives and is ready.
    #[arg(long, env = "MILLSTREAM_ADMIN_LISTEN", default_value = "0.0.0.0:9090", value_name = "ADDRESS")]
    admin_listen: SocketAddr,
    /// After so many seconds a request to the API server that has no answer is given up, and tried again later.
    #[arg(long, env = "MILLSTREAM_API_TIMEOUT_SECONDS", default_value_t = 65, value_parser = clap::value_parser!(u64).range(1..), value_name = "SECONDS")]
    api_timeout_seconds: u64,
    /// What is logged, in the syntax of `RUST_LOG`.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    log_filter: String,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("millstream-operator: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let filter: tracing_subscriber::EnvFilter =
        args.log_filter.parse().with_context(|| format!("`{}` is no filter of log lines", args.log_filter))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).json().init();
    tokio::runtime::Runtime::new()?.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<ExitCode> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let told = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("told to end");
    };
    let told = told.shared();
    let admin = Arc::new(Admin::default());
    let listener = admin::listen(args.admin_listen).await;
    let listener = listener.with_context(|| format!("cannot listen on the admin port {}", args.admin_listen))?;
    let serving = tokio::spawn(admin::serve(listener, Arc::clone(&admin)));
    let client = tokio::select! {
        client = client::connect(Duration::from_secs(args.api_timeout_seconds)) => client?,
        () = told.clone() => return Ok(ExitCode::SUCCESS),
    };
    admin.is_ready.store(true, Ordering::Relaxed);
    let watched = args.watch_namespace.as_deref().filter(|namespace| !namespace.is_empty());
    let lease = match watched {
        Some(namespace) => format!("{LEASE}-{namespace}"),
        None => LEASE.to_owned(),
    };
    let pod = args.name.as_deref().filter(|name| !name.is_empty());
    if pod.is_none() {
        let service = service(watched);
        tracing::info!(
            service,
            "it is not in a Pod (no --name): this Service does not lead to it, and kubectl millstream asks it with --operator-url"
        );
    }
    let name = pod.unwrap_or(NAMELESS);
    let settings =
        Settings { watched: watched.map(str::to_owned), namespace: args.namespace.clone(), name: name.to_owned() };
    let terminating = Terminating::new(client.clone(), &settings, Arc::clone(&admin.metrics));
    let terminating = tokio::spawn(terminating.run(told.clone()));
    let identity = format!("{name}-{:08x}", rand::random::<u32>());
    let label = LeaderLabel::new(client.clone(), &args.namespace, pod);
    tracing::info!(lease, identity, namespace = watched.unwrap_or("(all)"), "waiting to lead");
    let claim = Claim::new(client.clone(), &args.namespace, &lease, &identity);
    let waiting = async {
        label.clear().await;
        tokio::select! {
            leading = claim.acquire() => leading,
            never = label.keep(false, None) => match never {},
        }
    };
    let mut leading = tokio::select! {
        leading = waiting => leading,
        () = told.clone() => {
            looked(terminating).await;
            return Ok(ExitCode::SUCCESS);
        }
    };
    tracing::info!(lease, "leading");
    admin.metrics.leads(true);
    // A Pod's name, and what tells its processes apart.
    let former = leading.former().and_then(|identity| identity.rsplit_once('-')).map(|(pod, _)| pod.to_owned());
    let lost = tokio::select! {
        ended = serving => {
            let why = ended.map_or_else(|error| error.to_string(), |served| format!("{served:?}"));
            anyhow::bail!("the admin port {} is not served: {why}", args.admin_listen)
        }
        why = leading.keep() => Some(why),
        never = label.keep(true, former.as_deref()) => match never {},
        // A controller that is told to end before it has heard what there is waits for that, in vain.
        () = async { told.clone().await; tokio::time::sleep(LAST_WORK).await } => None,
        ended = controller::run(client, &settings, &admin, told.clone()) => {
            ended?;
            None
        }
    };
    match lost {
        None => {
            leading.release().await;
            label.clear().await;
            looked(terminating).await;
        }
        Some(why) => {
            // Another one leads from now on: whatever is under way here must not go on.
            eprintln!("millstream-operator: {why}; this process ends");
            std::process::exit(LOST);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the last look at a namespace that is being deleted, which began when this process was told to end.
async fn looked(terminating: tokio::task::JoinHandle<()>) {
    if let Ok(Err(error)) = tokio::time::timeout(LAST_WORK, terminating).await {
        tracing::error!(%error, "nobody looked whether a namespace is being deleted");
    }
}
