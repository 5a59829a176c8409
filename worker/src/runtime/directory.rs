//! What the admin port sees of this process's shards: their condition, their sums, and what they know of a user or device.

use super::desk::{Condition, Desk};
use super::membership;
use super::stage::Query;
use crate::admin::{Check, Inspect, ShardRow, Subject, TenantUsage};
use millstream_model::key::shard_of;
use millstream_model::proto::Identifier;
use millstream_stages::action::{ActionStage, Answer, Inspect as Question, inspect};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A shard answers between two batches; one that does not within this time is being opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// A chain of users that became part of others is followed this far.
const MAX_HOPS: usize = 64;

/// The shards of this process.
pub struct Directory {
    shards: u32,
    worker: String,
    desks: Vec<Arc<Desk>>,
    actions: Mutex<BTreeMap<u32, Sender<Query<ActionStage>>>>,
    /// Of a process that follows the plan.
    membership: Option<Arc<membership::Shared>>,
}

impl Directory {
    /// Of a pipeline with so many shards per stage; none of them is here yet.
    pub fn new(shards: u32, worker: &str) -> Directory {
        let worker = worker.to_owned();
        Directory { shards, worker, desks: Vec::new(), actions: Mutex::default(), membership: None }
    }

    /// Adds a shard.
    pub fn add(&mut self, desk: Arc<Desk>) {
        self.desks.push(desk);
    }

    /// Says where other processes' shards are seen.
    pub fn set_membership(&mut self, shared: Arc<membership::Shared>) {
        self.membership = Some(shared);
    }

    /// Adds the way to ask an action shard.
    pub fn add_action(&mut self, shard: u32, queries: Sender<Query<ActionStage>>) {
        self.actions.lock().unwrap_or_else(PoisonError::into_inner).insert(shard, queries);
    }

    /// All shards.
    pub fn desks(&self) -> &[Arc<Desk>] {
        &self.desks
    }

    fn own_row(&self, desk: &Desk) -> Option<ShardRow> {
        Some(ShardRow::of(&self.worker, &desk.id(), &desk.status()?))
    }
}

impl Directory {
    /// Asks the shard that knows; shards of other processes cannot be asked from here.
    fn ask(&self, tenant: &str, what: Question) -> Result<Answer, String> {
        let shard = shard_of(what.group(tenant), self.shards);
        let queries = self.actions.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned();
        let Some(queries) = queries else {
            return Err(format!(
                "action shard {shard} of {} is not in this process; ask the one that owns it",
                self.shards
            ));
        };
        let (answer, answered) = channel();
        let tenant = tenant.to_owned();
        let query: Query<ActionStage> = Box::new(move |shard| {
            let found = inspect(shard.state(), &tenant, &what);
            // Whoever asked may have lost patience.
            let _ = answer.send(found.map_err(|error| error.to_string()));
        });
        let elsewhere = || {
            format!(
                "action shard {shard} is not owned by this process now; `millstream shards` says who owns it. If it is being opened here, try again"
            )
        };
        queries.send(query).map_err(|_| elsewhere())?;
        answered.recv_timeout(PATIENCE).map_err(|_| elsewhere())?
    }
}

impl Inspect for Directory {
    fn usage(&self) -> Vec<TenantUsage> {
        let mut sums: BTreeMap<(String, &'static str), TenantUsage> = BTreeMap::new();
        for desk in &self.desks {
            for (tenant, usage) in desk.usage() {
                let row = sums.entry((tenant.clone(), desk.stage)).or_insert_with(|| TenantUsage {
                    tenant,
                    stage: desk.stage.to_owned(),
                    ..TenantUsage::default()
                });
                row.accepted += usage.accepted;
                row.duplicates += usage.duplicates;
                row.rejects += usage.rejects;
                row.effects += usage.effects;
                row.mutations += usage.mutations;
                row.events += usage.events;
            }
        }
        sums.into_values().collect()
    }

    fn shards(&self) -> Vec<ShardRow> {
        match &self.membership {
            None => self.desks.iter().filter_map(|desk| self.own_row(desk)).collect(),
            Some(shared) => shared.reports().iter().flat_map(ShardRow::all).collect(),
        }
    }

    fn inspect(&self, subject: Subject, tenant: &str, identifier: &Identifier) -> Result<Option<Value>, String> {
        let mut question = match subject {
            Subject::User => Question::User(identifier.clone()),
            Subject::Device => Question::Device(identifier.clone()),
        };
        for _ in 0..MAX_HOPS {
            match self.ask(tenant, question)? {
                Answer::Ask(next) => question = next,
                Answer::User(user) => return json(&user),
                Answer::Device(device) => return json(&device),
                Answer::Deleted(when) => return Ok(Some(serde_json::json!({ "deleted": when }))),
                Answer::Unknown => return Ok(None),
            }
        }
        Err(format!("{identifier} leads through more than {MAX_HOPS} merges"))
    }
}

fn json(view: &impl serde::Serialize) -> Result<Option<Value>, String> {
    serde_json::to_value(view).map(Some).map_err(|error| error.to_string())
}

/// A shard is ready when it works.
pub struct ShardCheck(pub Arc<Desk>);

impl Check for ShardCheck {
    fn name(&self) -> String {
        format!("shard {} {}", self.0.stage, self.0.shard)
    }

    fn check(&self) -> Result<(), String> {
        match self.0.condition() {
            Condition::Running | Condition::Hampered(_) | Condition::Following | Condition::Closed => Ok(()),
            Condition::Opening => Err("is being opened".into()),
            Condition::Retrying(message) => Err(format!("is opened again: {message}")),
            Condition::Stopped(message) => Err(format!("stopped: {message}")),
        }
    }
}
