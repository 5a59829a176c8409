//! `millstream checkpoint`: which checkpoints there are, and whether they are what they were.
//!
//! It reads the object store alone, and changes nothing: no worker, and no Kafka, need be there.

use super::Outcome;
use crate::config::{self, Config, ConfigArgs};
use crate::runtime::stores::open_objects;
use anyhow::Context;
use millstream_model::key::StateKey;
use millstream_shard::checkpoint::layout::{Entry, Manifest, Pointer, ShardName, hex};
use millstream_shard::checkpoint::repository::{Repository, RepositoryError};
use millstream_shard::objects::ObjectError;
use millstream_shard::state::{StateStore, StoreError};
use millstream_stores::rocks::{Resources, RocksState};
use serde::Serialize;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Stages whose shards have checkpoints.
const STAGES: [&str; 2] = ["unify", "action"];
/// Bytes of one request.
const PART: usize = 4 << 20;
/// For reading a checkpoint as the store that it is of.
const CACHE_BYTES: usize = 32 << 20;

/// Arguments of `millstream checkpoint`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CheckpointArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Show which checkpoints there are
    List(Common),
    /// Download checkpoints, and compare every file with what was uploaded, and the state with its digest
    Verify {
        #[command(flatten)]
        common: Common,
        /// Also those before the newest one of each shard
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Only this stage
    #[arg(long)]
    stage: Option<String>,
    /// Only this shard
    #[arg(long)]
    shard: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// What is shown of a checkpoint.
#[derive(Debug, Serialize)]
struct Row {
    stage: String,
    shard: u32,
    #[serde(flatten)]
    entry: Entry,
    /// Who restores it now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    leased_by: Vec<String>,
    /// Why it is of no use; of `verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

/// Runs it; the outcome is bad when a shard has no checkpoint, or one is not what it was.
pub(super) fn run(args: &CheckpointArgs) -> anyhow::Result<Outcome> {
    match &args.action {
        Action::List(common) => list(common),
        Action::Verify { common, all } => verify(common, *all),
    }
}

/// The checkpoints of the shards that are asked for.
fn repositories(common: &Common, config: &Config) -> anyhow::Result<Vec<Repository>> {
    let objects = open_objects(config)?.context(
        "the configuration names no object store, so there are no checkpoints: give `objects: {folder: ...}` or `objects: {s3: ...}`",
    )?;
    if let Some(stage) = common.stage.as_ref().filter(|stage| !STAGES.contains(&stage.as_str())) {
        anyhow::bail!("`{stage}` is no stage with checkpoints: use {}", STAGES.join(" or "));
    }
    if let Some(shard) = common.shard.filter(|shard| *shard >= config.shards.0) {
        anyhow::bail!("there is no shard {shard}: the pipeline has {}", config.shards.0);
    }
    let stages = STAGES.iter().filter(|stage| common.stage.as_ref().is_none_or(|only| only == *stage));
    let shards = (0..config.shards.0).filter(|shard| common.shard.is_none_or(|only| only == *shard));
    let all = stages.flat_map(|stage| shards.clone().map(move |shard| (*stage, shard)));
    let of = |(stage, shard): (&str, u32)| ShardName {
        pipeline: config.pipeline.to_string(),
        generation: config.generation,
        stage: stage.to_owned(),
        shard,
        shards: config.shards.0,
    };
    Ok(all.map(|it| Repository::new(objects.clone(), of(it))).collect())
}

fn rows(repository: &Repository, pointer: Pointer) -> Vec<Row> {
    let ShardName { stage, shard, .. } = repository.of();
    let leases = pointer.leases;
    let row = |entry: Entry| {
        let of_it = leases.iter().filter(|lease| lease.manifest == entry.manifest);
        let leased_by = of_it.map(|lease| lease.holder.clone()).collect();
        Row { stage: stage.clone(), shard: *shard, entry, leased_by, problem: None }
    };
    pointer.checkpoints.into_iter().map(row).collect()
}

fn list(common: &Common) -> anyhow::Result<Outcome> {
    let config = config::load(&common.config)?;
    let (mut all, mut without) = (Vec::new(), Vec::new());
    for repository in repositories(common, &config)? {
        let rows = rows(&repository, repository.pointer()?.unwrap_or_default());
        if rows.is_empty() {
            without.push(format!("{}-{}", repository.of().stage, repository.of().shard));
        }
        all.extend(rows);
    }
    show(common, &all)?;
    if !without.is_empty() && !common.json {
        super::print(format_args!("no checkpoint yet: {}\n", without.join(", ")))?;
    }
    Ok(if without.is_empty() { Outcome::Good } else { Outcome::Bad })
}

fn verify(common: &Common, all: bool) -> anyhow::Result<Outcome> {
    let config = config::load(&common.config)?;
    let (mut verified, mut is_good) = (Vec::new(), true);
    for repository in repositories(common, &config)? {
        let mut rows = rows(&repository, repository.pointer()?.unwrap_or_default());
        is_good &= !rows.is_empty();
        if !all {
            rows.truncate(1);
        }
        for mut row in rows {
            let checked = repository.manifest(&row.entry.manifest).map_err(RepositoryError::from);
            row.problem = match checked.and_then(|it| check(&repository, &it)) {
                Ok(()) => None,
                Err(RepositoryError::Objects(error @ ObjectError::Damaged { .. })) => Some(error.to_string()),
                Err(error) => return Err(error.into()),
            };
            // A pipeline that works has dropped it meanwhile.
            if row.problem.is_some() && !repository.pointer()?.unwrap_or_default().keeps(&row.entry.manifest) {
                continue;
            }
            is_good &= row.problem.is_none();
            if !common.json {
                let Row { stage, shard, entry, problem, .. } = &row;
                let said = problem.as_deref().unwrap_or("is what it was");
                super::print(format_args!("{stage}-{shard} batch {}: {said}\n", entry.batch))?;
            }
            verified.push(row);
        }
    }
    if common.json {
        super::print(format_args!("{}\n", serde_json::to_string_pretty(&verified)?))?;
    } else {
        let good = verified.iter().filter(|row| row.problem.is_none()).count();
        super::print(format_args!("{good} of {} checkpoints are what they were\n", verified.len()))?;
    }
    Ok(if is_good { Outcome::Good } else { Outcome::Bad })
}

/// Makes a store of a checkpoint, and adds its state up.
fn check(repository: &Repository, manifest: &Arc<Manifest>) -> Result<(), RepositoryError> {
    let here = |why: String| RepositoryError::Here { name: format!("a checkpoint of {} bytes", manifest.bytes()), why };
    let folder = tempfile::tempdir().map_err(|error| here(error.to_string()))?;
    let resources = Resources::new(CACHE_BYTES);
    let store = RocksState::open(&folder.path().join("state"), &resources).map_err(|error| here(error.to_string()))?;
    let mut failure = None;
    let restored = store.restore(&mut |staging| {
        manifest.files.iter().try_for_each(|file| {
            repository.download(file, PART, &mut *staging.create(&file.name)?).map_err(|error| {
                let said = StoreError::Failed(error.to_string());
                failure = Some(error);
                said
            })
        })
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    let damaged = |why: String| RepositoryError::Objects(ObjectError::Damaged { name: repository.full(""), why });
    restored.map_err(|error| match error {
        StoreError::Damaged(why) => damaged(why),
        error => here(error.to_string()),
    })?;
    let position = store.position().map_err(|error| damaged(error.to_string()))?;
    if !position.as_ref().is_some_and(|position| manifest.is_of(position)) {
        return Err(damaged(format!("its files are of another position than batch {}", manifest.batch)));
    }
    let mut digest = 0_u64;
    let mut add = |key: &StateKey, value: &[u8]| {
        digest = digest.wrapping_add(millstream_model::id::entry_hash(key.as_bytes(), value));
    };
    store.scan(&[], &mut add).map_err(|error| damaged(error.to_string()))?;
    if hex(digest) != manifest.state_digest {
        return Err(damaged(format!("its state adds up to {}, and not to {}", hex(digest), manifest.state_digest)));
    }
    Ok(())
}

fn show(common: &Common, rows: &[Row]) -> anyhow::Result<()> {
    if common.json {
        return Ok(super::print(format_args!("{}\n", serde_json::to_string_pretty(rows)?))?);
    }
    let mut text = format!(
        "{:8} {:>5} {:>10} {:>12} {:>10}  {:>8}  remarks\n",
        "stage", "shard", "batch", "position", "MB", "age"
    );
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    for Row { stage, shard, entry, leased_by, .. } in rows {
        let Entry { batch, changelog_offset, bytes, taken_ms, .. } = entry;
        let megabytes = format!("{:.1}", *bytes as f64 / 1e6);
        let age = millstream_plan::unread::age(now_ms.saturating_sub(*taken_ms));
        let remarks =
            if leased_by.is_empty() { String::new() } else { format!("is restored by {}", leased_by.join(", ")) };
        text += format!("{stage:8} {shard:>5} {batch:>10} {changelog_offset:>12} {megabytes:>10}  {age:>8}  {remarks}")
            .trim_end();
        text.push('\n');
    }
    Ok(super::print(format_args!("{text}"))?)
}
