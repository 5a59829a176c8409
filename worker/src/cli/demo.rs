//! `millstream demo`: a pipeline of its own, realistic records through it, and a check of everything that comes out.
//!
//! It uses the program as anybody would: `millstream local` as a child process, records over HTTP, results by the admin port. What must come out
//! is known from the generator ([`crate::generate`]) and from `examples/truth.json`; [`super::verify`] compares.

mod load;
mod local;
mod probe;
mod report;

use super::Outcome;
use super::sender::Progress;
use super::snapshot;
use super::usage::{self, Sums};
use super::verify::{Mismatch, Snapshot, verify};
use crate::generate::truth::Truth;
use anyhow::{Context, bail};
use load::Shipment;
use local::Local;
use probe::Freshness;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Arguments of `millstream demo`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DemoArgs {
    /// Number of tenants
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    tenants: u32,
    /// People per tenant
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,
    /// The same seed gives the same people
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Keep configuration, data and log in this folder [default: a temporary one, removed at the end]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Seconds after the last record is acknowledged, in which everything must be done
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    within: u64,
}

/// Runs it.
pub(super) fn run(args: &DemoArgs) -> anyhow::Result<Outcome> {
    let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
    let folder = args.folder.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let (shipments, truth) = load::prepare(args.tenants, args.users, args.seed)?;
    let total: usize = shipments.iter().map(|shipment| shipment.lines.len()).sum();
    super::print(format_args!("starting `millstream local`\n"))?;
    let mut local = Local::start(folder, load::tenants(&shipments))?;
    super::print(format_args!("sending {total} records to {}\n", local.url))?;

    let (freshness, took) = send_all(&local, &shipments, total)?;
    let (snapshot, mismatches) = settle(&mut local, &shipments, &truth, Duration::from_secs(args.within))?;
    report::print_sums(&snapshot, &shipments, total, took)?;
    report::print_freshness(&freshness)?;
    report::print_profile(&local.admin, &truth)?;
    let (verdict, outcome) = report::verdict(&truth, &mismatches);
    super::print(format_args!("{verdict}"))?;
    local.stop()?;
    Ok(outcome)
}

/// Sends everything while probes measure freshness; what they measured, and how long sending took.
fn send_all(local: &Local, shipments: &[Shipment], total: usize) -> anyhow::Result<(Freshness, Duration)> {
    let begun = Instant::now();
    let (sent, probing) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let probes = scope.spawn(|| probe::probe(&local.url, &local.admin, &probing));
        let senders: Vec<_> = shipments.iter().map(|shipment| scope.spawn(|| shipment.send(&local.url))).collect();
        let shower = scope.spawn(|| show_progress(shipments, total, &sent));
        let results: Vec<_> = senders.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let took = begun.elapsed();
        sent.store(true, Ordering::Relaxed);
        probing.store(true, Ordering::Relaxed);
        let crashed = || anyhow::anyhow!("a thread of the demo crashed; please report it");
        shower.join().map_err(|_| crashed())??;
        for result in results {
            result.map_err(|_| crashed())??;
        }
        let freshness = probes.join().map_err(|_| crashed())??;
        Ok((freshness, took))
    })
}

/// A bar on a terminal, else a line per second.
fn show_progress(shipments: &[Shipment], total: usize, sent: &AtomicBool) -> anyhow::Result<()> {
    let count = || {
        let of =
            |progress: &Progress| progress.accepted.load(Ordering::Relaxed) + progress.refused.load(Ordering::Relaxed);
        shipments.iter().map(|shipment| of(&shipment.progress)).sum::<u64>()
    };
    let bar = indicatif::ProgressBar::new(total as u64);
    let is_terminal = std::io::stderr().is_terminal();
    let begun = Instant::now();
    let mut next = Duration::from_secs(1);
    while !sent.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        bar.set_position(count());
        if !is_terminal && begun.elapsed() >= next {
            super::print(format_args!("  {:>3} s  {} of {total} records\n", next.as_secs(), count()))?;
            next += Duration::from_secs(1);
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Waits until all is processed and equal to the truth; or, at the deadline, says what is not.
fn settle(
    local: &mut Local,
    shipments: &[Shipment],
    truth: &Truth,
    within: Duration,
) -> anyhow::Result<(Snapshot, Vec<Mismatch>)> {
    let begun = Instant::now();
    loop {
        if let Some(status) = local.ended()? {
            bail!("`millstream local` ended by itself ({status}). Its last words:\n{}", local.last_words());
        }
        let late = begun.elapsed() > within;
        let rows = match usage::collect(std::slice::from_ref(&local.admin)) {
            // A shard that is opened again: its sums come back.
            Err(error) if error.is_not_ready() && !late => Vec::new(),
            rows => rows?,
        };
        if late || is_drained(&usage::sums(&rows), truth) {
            let mut snapshot =
                snapshot::fetch(std::slice::from_ref(&local.admin), truth.tenants.keys().map(String::as_str))?;
            snapshot.answers = load::answers(shipments);
            let mismatches = verify(truth, &snapshot);
            // The last documents are written after the sums say that everything is processed.
            if late || mismatches.is_empty() {
                return Ok((snapshot, mismatches));
            }
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn is_drained(sums: &BTreeMap<String, Sums>, truth: &Truth) -> bool {
    truth.tenants.iter().all(|(tenant, expected)| {
        sums.get(tenant).is_some_and(|sums| sums.accepted >= expected.accepted && sums.in_progress == 0)
    })
}
