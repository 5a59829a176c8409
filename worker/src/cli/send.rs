//! `millstream send`: records from files to a gateway.

use super::Outcome;
use super::sender::{self, Failure, Progress, Target};
use super::visible::visible;
use anyhow::ensure;
use indicatif::{ProgressBar, ProgressStyle};
use millstream_model::proto::Source;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Failures that are printed; all of them go to `--failures`.
const SHOWN: usize = 20;

/// How progress looks when it is known how much there is, and when not.
const WITH_TOTAL: &str = "[{bar:30}] {percent:>3}%  {msg}, {bytes_per_sec}, {elapsed}, {eta} to go";
const WITHOUT: &str = "{spinner} {msg}, {bytes_per_sec}, {elapsed}";

/// In whose shape records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SourceName {
    /// Segment's tracking API
    Segment,
    /// The data API of customer-engagement platforms
    DataApi,
    /// Millstream's own
    Native,
}

impl From<SourceName> for Source {
    fn from(name: SourceName) -> Source {
        match name {
            SourceName::Segment => Source::Segment,
            SourceName::DataApi => Source::DataApi,
            SourceName::Native => Source::Native,
        }
    }
}

/// Arguments of `millstream send`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SendArgs {
    /// In whose shape the records are
    #[arg(long, value_enum)]
    source: SourceName,
    /// The tenant's API key
    #[arg(long, env = "MILLSTREAM_KEY", hide_env_values = true)]
    key: String,
    /// Base URL of the gateway
    #[arg(long, default_value = "http://127.0.0.1:8080", env = "MILLSTREAM_TO")]
    to: String,
    /// Records per request
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=2500))]
    batch: u16,
    /// Requests at a time; records of one user or device keep their order
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// How often a request is sent at most, when the gateway cannot be reached or does not know the outcome
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,
    /// Begins the Idempotency-Key of every request: the same files sent again with the same prefix, --batch and --parallel
    /// double nothing, even if their records have no message ids; not with standard input, which is cut by time [default: new each time]
    #[arg(long)]
    idempotency_key_prefix: Option<String>,
    /// Write all refused records (file, line, reason, field, message) to this file, as NDJSON
    #[arg(long)]
    failures: Option<PathBuf>,
    /// NDJSON, or one JSON array; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Runs it.
pub(super) fn run(args: &SendArgs) -> anyhow::Result<Outcome> {
    let target = target(args)?;
    let progress = Progress::default();
    let begun = Instant::now();
    let sent = std::thread::scope(|scope| {
        let sending = scope.spawn(|| sender::send(&target, &args.files, &progress));
        let bar = bar(total(&args.files));
        while !sending.is_finished() {
            let records = progress.accepted.load(Ordering::Relaxed) + progress.refused.load(Ordering::Relaxed);
            bar.set_message(format!("{records} records"));
            bar.set_position(progress.bytes.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(50));
        }
        bar.finish_and_clear();
        sending.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the sender crashed; please report it")))
    });
    report(args, &progress, begun.elapsed())?;
    sent?;
    Ok(if progress.refused.load(Ordering::Relaxed) == 0 { Outcome::Good } else { Outcome::Bad })
}

fn target(args: &SendArgs) -> anyhow::Result<Target> {
    let prefix = args
        .idempotency_key_prefix
        .clone()
        .unwrap_or_else(|| format!("send-{:016x}", StdRng::from_os_rng().random::<u64>()));
    // The rest is for the position; the gateway allows 200 characters.
    ensure!(
        !prefix.trim().is_empty()
            && prefix.len() <= 150
            && prefix.chars().all(|character| character.is_ascii_graphic()),
        "--idempotency-key-prefix must have 1 to 150 visible ASCII characters"
    );
    let key_fits = !args.key.is_empty() && args.key.chars().all(|character| character.is_ascii_graphic());
    ensure!(key_fits, "--key must be visible ASCII characters");
    Ok(Target {
        to: args.to.clone(),
        key: args.key.clone(),
        source: args.source.into(),
        batch: args.batch.into(),
        parallel: args.parallel.into(),
        attempts: args.attempts,
        prefix,
    })
}

/// Bytes of all files; none when one of them is no file, such as standard input.
fn total(files: &[PathBuf]) -> Option<u64> {
    let length =
        |path: &PathBuf| std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    files.iter().map(length).sum()
}

/// Hidden by itself when standard error is no terminal.
fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), WITH_TOTAL),
        None => (ProgressBar::new_spinner(), WITHOUT),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn report(args: &SendArgs, progress: &Progress, took: Duration) -> anyhow::Result<()> {
    let failures = progress.failures();
    if let Some(path) = &args.failures {
        write_failures(path, &failures)?;
    }
    for failure in failures.iter().take(SHOWN) {
        super::print(format_args!("{}\n", describe(failure)))?;
    }
    if failures.len() > SHOWN {
        let more = failures.len() - SHOWN;
        let hint = if args.failures.is_some() { "" } else { "; --failures FILE writes all of them" };
        super::print(format_args!("… and {more} more{hint}\n"))?;
    }
    let (accepted, repeated) = (progress.accepted.load(Ordering::Relaxed), progress.repeated.load(Ordering::Relaxed));
    let repeated = if repeated == 0 { String::new() } else { format!(", {repeated} requests sent again") };
    let rate = accepted as f64 / took.as_secs_f64().max(0.001);
    super::print(format_args!(
        "{accepted} accepted, {} refused in {:.1} s ({rate:.0}/s){repeated}\n",
        failures.len(),
        took.as_secs_f64()
    ))?;
    Ok(())
}

fn describe(failure: &Failure) -> String {
    let Failure { file, line, problem } = failure;
    let field = problem.field.as_ref().map(|field| format!(" [{field}]")).unwrap_or_default();
    visible(&format!("{file}:{line}: {}{field} {}", problem.reason, problem.message)).into_owned()
}

fn write_failures(path: &std::path::Path, failures: &[Failure]) -> anyhow::Result<()> {
    use anyhow::Context;
    let mut text = String::new();
    for failure in failures {
        text.push_str(&serde_json::to_string(failure)?);
        text.push('\n');
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_total_of_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        std::fs::write(&file, "12345\n").unwrap();
        assert_eq!(total(&[file.clone(), file.clone()]), Some(12));
        assert_eq!(total(&[file.clone(), "-".into()]), None);
        assert_eq!(total(&[file, folder.path().join("none")]), None);
    }

    #[test]
    fn only_with_a_total_there_is_an_end_to_be_seen() {
        assert_eq!((bar(Some(12)).length(), bar(None).length()), (Some(12), None));
        assert!([WITH_TOTAL, WITHOUT].iter().all(|template| ProgressStyle::with_template(template).is_ok()));
    }
}
