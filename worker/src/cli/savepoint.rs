//! `millstream savepoint`: creates savepoints, shows which there are, whether they are what they were, and disposes of them.
//!
//! `list` and `verify` read the object store alone: no worker, and no Kafka, need be there; `dispose` can do without them, too.

use super::Outcome;
use crate::config::{self, Config, ConfigArgs, Millis};
use crate::runtime::stores::{open_log, open_objects};
use anyhow::{Context, bail};
use millstream_plan::unread::age;
use millstream_plan::view::Bounds;
use millstream_shard::objects::ObjectStore;
use millstream_shard::savepoint::create::{Parts, Progress};
use millstream_shard::savepoint::layout::{Begun, Manifest};
use millstream_shard::savepoint::store::{Found, Store};
use millstream_shard::savepoint::{self, SavepointError};
use millstream_shard::topics::Topics;
use millstream_shard::{Clock as _, objects};
use millstream_stores::embedded::SystemClock;
use serde::Serialize;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a terminal is told how far it is.
const TELL: Duration = Duration::from_millis(200);

/// Arguments of `millstream savepoint`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct SavepointArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Create one, while the pipeline works
    Create {
        #[command(flatten)]
        common: Common,
        /// It is given up when it is not complete by then
        #[arg(long, value_name = "DURATION", default_value = "10m")]
        timeout: Millis,
    },
    /// Show which there are
    List(Common),
    /// Read all of one, and compare it with what was written
    Verify {
        #[command(flatten)]
        common: Common,
        /// Which one; the newest that is complete, if none is named
        id: Option<u64>,
    },
    /// Delete one, or what is left of one that was given up
    Dispose {
        #[command(flatten)]
        common: Common,
        /// Which one
        id: u64,
        /// Also one that may still be being created
        #[arg(long)]
        force: bool,
        /// Do not tell the workers: for when Kafka is away. Shards may still be cut for one that was not complete, which costs a transaction each
        #[arg(long)]
        offline: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// What is shown of one.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
struct Row {
    id: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    began_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    complete_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Row {
    fn of(id: u64, found: &Found) -> Row {
        let row = |state| Row {
            id,
            state,
            began_ms: None,
            complete_ms: None,
            generation: None,
            shards: None,
            bytes: None,
            problem: None,
        };
        match found {
            Found::Complete(manifest) => Row {
                began_ms: Some(manifest.began_ms),
                complete_ms: Some(manifest.complete_ms),
                generation: Some(manifest.generation),
                shards: Some(manifest.shards),
                bytes: Some(manifest.bytes()),
                ..row("complete")
            },
            Found::Begun(begun) => {
                let Begun { began_ms, generation, shards, .. } = **begun;
                Row {
                    began_ms: Some(began_ms),
                    generation: Some(generation),
                    shards: Some(shards),
                    ..row("not_complete")
                }
            }
            Found::Damaged(problem) => Row { problem: Some(problem.clone()), ..row("damaged") },
            Found::Remains => row("remains"),
        }
    }

    fn line(&self, now_ms: u64) -> String {
        let none = || "-".to_owned();
        let since = self.began_ms.map_or_else(none, |began_ms| age(now_ms.saturating_sub(began_ms)));
        let took = self.complete_ms.zip(self.began_ms);
        let took = took.map_or_else(none, |(end, begin)| format!("{:.1}s", end.saturating_sub(begin) as f64 / 1e3));
        let megabytes = self.bytes.map_or_else(none, |bytes| format!("{:.1}", bytes as f64 / 1e6));
        let number = |number: Option<u32>| number.map_or_else(none, |number| number.to_string());
        let (generation, shards) = (number(self.generation.map(u32::from)), number(self.shards));
        let remarks = match self.state {
            "not_complete" => "is being created; or that was broken off: then dispose of it",
            "remains" => "is being disposed of, or that was broken off: dispose of it",
            _ => self.problem.as_deref().unwrap_or_default(),
        };
        let line = format!(
            "{:>6}  {:12} {generation:>10} {shards:>6} {megabytes:>10}  {took:>8}  {since:>8}  {remarks}",
            self.id,
            self.state.replace('_', " ")
        );
        format!("{}\n", line.trim_end())
    }
}

/// Runs it; the outcome is bad when one is not what it was.
pub(super) fn run(args: &SavepointArgs) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::Create { common, timeout } => create(common, *timeout),
        Action::List(common) => list(common),
        Action::Verify { common, id } => verify(common, *id),
        Action::Dispose { common, id, force, offline } => dispose(common, *id, *force, *offline),
    }
}

/// A pipeline, and where its savepoints are.
struct Place {
    config: Config,
    objects: Arc<dyn ObjectStore>,
    store: Store,
    topics: Topics,
}

fn place(common: &Common) -> anyhow::Result<Place> {
    let config = config::load(&common.config)?;
    let objects = open_objects(&config)?.context(
        "the configuration names no object store, so there are no savepoints: give `objects: {folder: ...}` or `objects: {s3: ...}`",
    )?;
    let topics = Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
    let store = Store::new(objects.clone(), &topics.pipeline);
    Ok(Place { config, objects, store, topics })
}

fn is_embedded(config: &Config) -> bool {
    matches!(config.log, config::Log::Embedded)
}

/// Progress for a terminal, on one line.
struct Line {
    is_shown: bool,
    told: Option<Instant>,
}

impl Line {
    fn new(common: &Common) -> Line {
        Line { is_shown: !common.json && std::io::stderr().is_terminal(), told: None }
    }

    fn tell(&mut self, what: &str) {
        if self.is_shown && self.told.is_none_or(|told| told.elapsed() >= TELL) {
            self.told = Some(Instant::now());
            eprint!("\r\x1b[K{what}");
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.told.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// A name for this creation.
fn by() -> String {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", machine.trim(), std::process::id(), SystemClock.now_ms())
}

fn create(common: &Common, timeout: Millis) -> anyhow::Result<Outcome> {
    let Place { config, objects, topics, .. } = place(common)?;
    if is_embedded(&config) {
        bail!(
            "a pipeline on the embedded log is one process, and nobody else reads its log: savepoints are of pipelines on Kafka; configure `log: {{kafka: ...}}`"
        );
    }
    let bounds = match &config.ownership {
        config::Ownership::Plan(plan) => plan.bounds(),
        config::Ownership::Static => Bounds::default(),
    };
    let parts = Parts { log: open_log(&config)?.0, topics, objects, clock: Arc::new(SystemClock), bounds, by: by() };
    let deadline_ms = SystemClock.now_ms() + u64::try_from(timeout.duration().as_millis()).unwrap_or(u64::MAX / 2);
    let mut line = Line::new(common);
    let made = savepoint::create(&parts, deadline_ms, &mut |progress| {
        line.tell(&match progress {
            Progress::Begun { savepoint } => {
                // Whoever kills this process must know what to dispose of.
                eprintln!("savepoint {savepoint} is begun");
                format!("savepoint {savepoint}")
            }
            Progress::Files { copied, of } => {
                format!("checkpoints: {:.1} of {:.1} MB", copied as f64 / 1e6, of as f64 / 1e6)
            }
            Progress::Cut { shards, of } => format!("{shards} of {of} shards are cut"),
            Progress::Channels { copied, of } => format!("{copied} of {of} channels"),
        });
    });
    drop(line);
    let manifest = made.context("no savepoint was created")?;
    if common.json {
        let row = Row::of(manifest.savepoint, &Found::Complete(Box::new(manifest)));
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&row)?))?;
    } else {
        let Manifest { savepoint, began_ms, complete_ms, .. } = &manifest;
        let seconds = complete_ms.saturating_sub(*began_ms) as f64 / 1e3;
        super::print(format_args!(
            "savepoint {savepoint} is complete: {:.1} MB, {} messages under way, {seconds:.1} s\n",
            manifest.bytes() as f64 / 1e6,
            manifest.messages()
        ))?;
    }
    Ok(Outcome::Good)
}

fn list(common: &Common) -> anyhow::Result<Outcome> {
    let store = place(common)?.store;
    let mut rows = Vec::new();
    for id in store.ids()? {
        rows.extend(store.find(id)?.map(|found| Row::of(id, &found)));
    }
    if common.json {
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&rows)?))?;
    } else if rows.is_empty() {
        super::print(format_args!("no savepoint\n"))?;
    } else {
        let now_ms = SystemClock.now_ms();
        let head = format!(
            "{:>6}  {:12} {:>10} {:>6} {:>10}  {:>8}  {:>8}  remarks\n",
            "id", "state", "generation", "shards", "MB", "took", "age"
        );
        let lines: String = rows.iter().map(|row| row.line(now_ms)).collect();
        super::print(format_args!("{head}{lines}"))?;
    }
    Ok(if rows.iter().any(|row| row.problem.is_some()) { Outcome::Bad } else { Outcome::Good })
}

fn verify(common: &Common, id: Option<u64>) -> anyhow::Result<Outcome> {
    let store = place(common)?.store;
    let manifest = match id {
        Some(id) => match store.find(id)? {
            Some(Found::Complete(manifest)) => *manifest,
            Some(Found::Damaged(problem)) => return said(common, id, Some(&problem), ""),
            Some(_) => bail!("savepoint {id} is not complete"),
            None => bail!("there is no savepoint {id}; `millstream savepoint list` shows which there are"),
        },
        None => newest(&store)?.context("there is no savepoint that is complete")?,
    };
    let mut line = Line::new(common);
    let verified = savepoint::verify(&store, &manifest, &mut |read, of| {
        line.tell(&format!("{:.1} of {:.1} MB", read as f64 / 1e6, of as f64 / 1e6));
    });
    drop(line);
    match verified {
        Ok(it) => {
            said(common, manifest.savepoint, None, &format!("{} objects, {:.1} MB", it.objects, it.bytes as f64 / 1e6))
        }
        Err(SavepointError::Damaged(damage)) => said(common, manifest.savepoint, Some(&damage.to_string()), ""),
        Err(error) => Err(error.into()),
    }
}

fn newest(store: &Store) -> Result<Option<Manifest>, objects::ObjectError> {
    for id in store.ids()?.into_iter().rev() {
        if let Some(Found::Complete(manifest)) = store.find(id)? {
            return Ok(Some(*manifest));
        }
    }
    Ok(None)
}

fn said(common: &Common, id: u64, problem: Option<&str>, read: &str) -> anyhow::Result<Outcome> {
    if common.json {
        let said = serde_json::json!({"id": id, "problem": problem});
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&said)?))?;
    } else {
        match problem {
            None => super::print(format_args!("savepoint {id} is what it was: {read}\n"))?,
            Some(problem) => super::print(format_args!("savepoint {id} is damaged: {problem}\n"))?,
        }
    }
    Ok(if problem.is_none() { Outcome::Good } else { Outcome::Bad })
}

fn dispose(common: &Common, id: u64, force: bool, offline: bool) -> anyhow::Result<Outcome> {
    let Place { config, objects, store, topics } = place(common)?;
    match store.find(id)? {
        None => bail!("there is no savepoint {id}; `millstream savepoint list` shows which there are"),
        Some(Found::Begun(begun)) if SystemClock.now_ms() < begun.deadline_ms && !force => {
            let left = age(begun.deadline_ms.saturating_sub(SystemClock.now_ms()));
            bail!(
                "savepoint {id} may be being created, by {}, for {left} more; `--force` disposes of it now, and its creation fails",
                begun.by
            );
        }
        Some(_) => {}
    }
    let log = if offline || is_embedded(&config) { None } else { Some(open_log(&config)?.0) };
    savepoint::dispose(&objects, &topics, log.as_deref(), id).with_context(|| {
        format!("savepoint {id} is not gone as a whole: do it again (`--offline` does it without Kafka)")
    })?;
    if common.json {
        super::print(format_args!("{}\n", serde_json::json!({"id": id, "disposed": true})))?;
    } else {
        super::print(format_args!("savepoint {id} is gone\n"))?;
    }
    Ok(Outcome::Good)
}
