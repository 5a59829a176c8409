//! What the admin port sees of this process's shards: their condition, their sums, and what they know of a user or device.

use super::checks::Asked;
use super::desk::{Condition, Desk};
use super::fitness::Stores;
use super::membership;
use super::stage::Query;
use crate::admin::{Check, Health, Inspect, Misdirected, NoAnswer, NoUsage, ShardRow, Subject, TenantUsage};
use millstream_model::key::shard_of;
use millstream_plan::view::Duty;
use millstream_stages::action::{ActionStage, Answer, Inspect as Question, inspect};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A shard answers between two batches; one that does not within this time is being opened.
const PATIENCE: Duration = Duration::from_secs(10);
/// A chain of users that became part of others is followed this far: it ends by itself, unless state is damaged.
const MAX_HOPS: usize = 100_000;

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
    /// Asks the shard that knows, when this process owns it.
    fn ask(&self, tenant: &str, question: &Question) -> Result<Answer, NoAnswer> {
        let shard = shard_of(question.group(tenant), self.shards);
        let queries = self.actions.lock().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned();
        let desk = self.desks.iter().find(|desk| desk.stage == "action" && desk.shard == shard);
        let (Some(queries), Some(desk)) = (queries, desk) else { return Err(elsewhere(shard, question)) };
        if !desk.is_owner() {
            return Err(not_owned(desk, question));
        }
        let (answer, answered) = channel();
        let (tenant, what) = (tenant.to_owned(), question.clone());
        let query: Query<ActionStage> = Box::new(move |shard| {
            let found = inspect(shard.state(), &tenant, &what);
            // Whoever asked may have lost patience.
            let _ = answer.send(found.map_err(|error| error.to_string()));
        });
        queries.send(query).map_err(|_| not_owned(desk, question))?;
        match answered.recv_timeout(PATIENCE) {
            Ok(found) => found.map_err(NoAnswer::NotNow),
            Err(RecvTimeoutError::Disconnected) => Err(not_owned(desk, question)),
            Err(RecvTimeoutError::Timeout) => {
                Err(NoAnswer::NotNow(format!("action shard {shard} does not answer within {PATIENCE:?}; try again")))
            }
        }
    }

    /// The shards that keep sums.
    fn with_sums(&self) -> impl Iterator<Item = &Arc<Desk>> {
        self.desks.iter().filter(|desk| desk.stage != "reaction")
    }

    /// Why the sums are not whole yet.
    fn check_sums(&self) -> Result<(), NoUsage> {
        if self.with_sums().next().is_none() {
            return Err(NoUsage::NoShards);
        }
        if let Some(shared) = &self.membership {
            shared.has_place().map_err(NoUsage::NotYet)?;
        }
        match self.with_sums().find(|desk| is_awaited(desk)) {
            None => Ok(()),
            Some(desk) => Err(NoUsage::NotYet(format!("shard {} {} {}", desk.stage, desk.shard, state_of(desk)))),
        }
    }
}

/// A shard that this process is to own, and does not yet.
fn is_awaited(desk: &Desk) -> bool {
    matches!(desk.order().duty, Duty::Own | Duty::TakeOver) && !desk.is_owner()
}

fn state_of(desk: &Desk) -> String {
    match desk.condition() {
        Condition::Retrying(why) | Condition::InDoubt(why) | Condition::Away(why) => format!("is opened again: {why}"),
        Condition::Stopped(why) => format!("stopped: {why}"),
        _ => "is being opened; try again".to_owned(),
    }
}

fn not_owned(desk: &Desk, question: &Question) -> NoAnswer {
    if is_awaited(desk) {
        return NoAnswer::NotNow(format!("action shard {} {}", desk.shard, state_of(desk)));
    }
    elsewhere(desk.shard, question)
}

fn elsewhere(shard: u32, question: &Question) -> NoAnswer {
    let (user, path) = match question {
        Question::UserId { id, path } => (Some(id.to_string()), path.iter().map(ToString::to_string).collect()),
        Question::User(_) | Question::Device(_) => (None, Vec::new()),
    };
    NoAnswer::Elsewhere(Misdirected { shard, user, forwarded_from: path })
}

impl Inspect for Directory {
    fn usage(&self) -> Result<Vec<TenantUsage>, NoUsage> {
        self.check_sums()?;
        let mut sums: BTreeMap<(String, &'static str), TenantUsage> = BTreeMap::new();
        for desk in self.with_sums() {
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
        Ok(sums.into_values().collect())
    }

    fn shards(&self) -> Vec<ShardRow> {
        match &self.membership {
            None => self.desks.iter().filter_map(|desk| self.own_row(desk)).collect(),
            Some(shared) => shared.reports().iter().flat_map(ShardRow::all).collect(),
        }
    }

    fn inspect(&self, tenant: &str, subject: &Subject) -> Result<Option<Value>, NoAnswer> {
        let mut question = match subject {
            Subject::User(identifier) => Question::User(identifier.clone()),
            Subject::UserId(id) => Question::UserId { id: *id, path: Vec::new() },
            Subject::Device(identifier) => Question::Device(identifier.clone()),
        };
        for _ in 0..MAX_HOPS {
            match self.ask(tenant, &question)? {
                Answer::Ask(next) => question = next,
                Answer::User(user) => return json(&user),
                Answer::Device(device) => return json(&device),
                Answer::Deleted(when) => return Ok(Some(serde_json::json!({ "deleted": when }))),
                Answer::Unknown => return Ok(None),
            }
        }
        let why =
            format!("{subject:?} leads through more than {MAX_HOPS} merges: they go round in a circle; report it");
        Err(NoAnswer::NotNow(why))
    }
}

fn json(view: &impl serde::Serialize) -> Result<Option<Value>, NoAnswer> {
    serde_json::to_value(view).map(Some).map_err(|error| NoAnswer::NotNow(error.to_string()))
}

/// A shard that is owned, or followed within the bound.
pub struct ShardCheck {
    /// Of the shard.
    pub desk: Arc<Desk>,
    /// The stores that it needs.
    pub stores: Vec<Asked>,
}

impl Check for ShardCheck {
    fn name(&self) -> String {
        format!("shard {} {}", self.desk.stage, self.desk.shard)
    }

    fn check(&self) -> Health {
        self.desk.health(Stores {
            are_servers: self.stores.iter().all(|store| store.is_server),
            are_lost: self.stores.iter().any(|store| store.is_server && store.is_lost()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::id::UserId;
    use millstream_model::proto::{Identifier, Stamp, Usage};
    use millstream_plan::status::{Role, ShardStatus};
    use millstream_shard::member::Order;

    fn directory(desks: &[&Arc<Desk>]) -> Directory {
        let mut directory = Directory::new(1, "w");
        desks.iter().for_each(|desk| directory.add((*desk).clone()));
        directory
    }

    fn owned(desk: &Desk) {
        desk.add_usage(&BTreeMap::from([("acme".to_owned(), Usage { accepted: 1, ..Usage::default() })]));
        desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
    }

    #[test]
    fn sums_are_there_when_every_shard_that_is_to_be_owned_is_open() {
        let desks = [("unify", Duty::Own), ("action", Duty::Nothing), ("reaction", Duty::Own)];
        let desks = desks.map(|(stage, duty)| Arc::new(Desk::new(stage, 0, duty)));
        let [unify, action, reaction] = &desks;
        let whole = directory(&[unify, action, reaction]);
        let opening = NoUsage::NotYet("shard unify 0 is being opened; try again".into());
        assert_eq!(whole.usage(), Err(opening));
        owned(unify);
        assert_eq!(whole.usage().map(|rows| rows.len()), Ok(1));
        action.set_order(Order { duty: Duty::TakeOver, ..Order::default() });
        assert!(matches!(whole.usage(), Err(NoUsage::NotYet(why)) if why.contains("action 0")));
        owned(action);
        assert_eq!(whole.usage().map(|rows| rows.len()), Ok(2));
        assert_eq!(directory(&[reaction]).usage(), Err(NoUsage::NoShards));
        assert_eq!(directory(&[]).usage(), Err(NoUsage::NoShards));
    }

    #[test]
    fn a_shard_of_another_process_is_named_and_what_to_ask_there() {
        let identifier = Identifier::new("user_id", "42");
        let id = UserId::create("acme", &identifier, &Stamp::default(), 1);
        let gateway = directory(&[]);
        let asked = gateway.inspect("acme", &Subject::User(identifier.clone()));
        assert_eq!(asked, Err(NoAnswer::Elsewhere(Misdirected::default())), "shard 0, the same question");
        let asked = gateway.inspect("acme", &Subject::UserId(id));
        let user = Some(id.to_string());
        assert_eq!(asked, Err(NoAnswer::Elsewhere(Misdirected { user, ..Misdirected::default() })));
        let desk = Arc::new(Desk::new("action", 0, Duty::Own));
        let mut opening = directory(&[&desk]);
        opening.add_action(0, channel().0);
        let asked = opening.inspect("acme", &Subject::User(identifier.clone()));
        assert!(matches!(asked, Err(NoAnswer::NotNow(why)) if why.contains("opened")));
        desk.set_order(Order { duty: Duty::Standby { prepare: false, soon: false }, ..Order::default() });
        let asked = opening.inspect("acme", &Subject::User(identifier));
        assert!(matches!(asked, Err(NoAnswer::Elsewhere(_))), "{asked:?}");
    }
}
