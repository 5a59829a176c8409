//! Transactions that their coordinator has forgotten, and what is made of them.
//!
//! Once both ids of a shard are initialised, no transaction of theirs can be open: an init returns when what its id had open is decided, and the decision has
//! landed. One that is open all the same was forgotten by its coordinator: Kafka 4 takes the partitions of a decided transaction that have no leader at that
//! moment for deleted, and writes no marker there, as when a broker starts again that has the only replica. It *hangs* in these partitions, in all of the transaction's or in some. Readers would
//! wait behind it for ever; a new owner would not see what was committed behind it; and the next transaction of the same id there would end it together with
//! itself, whatever had been decided.
//!
//! # Protocol
//! - **No two hang**: an owner that may have lost a commit since it was told of it looks whether all its partitions have it before it begins another transaction ([`Written::settle_doubt`]). So of a
//!   shard nothing but its last transaction hangs. A new owner ends what hangs before its first transaction ([`Written::end_hanging`]).
//! - **One outcome**: what hangs is ended as the rest of it was. Whatever a batch writes says by its [origin](crate::log::ORIGIN) which batch it was: if the changelog has the
//!   batch, what hangs of it elsewhere is committed, else aborted. If it hangs in the changelog itself, it is committed when any other partition shows something of it, else aborted: then
//!   nobody has seen anything of it. (While a transaction of somebody else hides what one of them has of it, the shard waits.)
//! - It is ended by a transaction of each id, since nobody knows whose it is, with an empty message in each of these partitions. Readers skip empty messages.
//!
//! Others write to the exchange and to rejects, too. What they have open there is not ended by our ids.
//!
//! An owner that was told of its commit may have stored its state: what is stored by an owner counts only once its last batch was met in the changelog ([`Follower::prove`]).

use crate::ShardError;
use crate::follower::Follower;
use crate::log::{Ends, Log, LogError, ORIGIN, Outgoing, TopicPartition, Transactional, View};
use crate::mutant::{self, Mutant};
use crate::output;
use crate::topics::Topics;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long one look waits for the log to move.
const POLL: Duration = Duration::from_millis(200);
/// How often is looked whether a transaction is still open, a poll apart: before it is ended, and after that.
const PATIENCE_WITH_MARKERS: u32 = 5;
const PATIENCE_WITH_ENDS: u32 = 50;
/// How often an owner in doubt looks, one look after the other: others have transactions open in the exchange all the time, each for some tens of milliseconds.
const LOOKS_IN_DOUBT: u32 = 50;
/// How far back is looked for something of a batch that hangs in the changelog.
const LOOK_BACK: u64 = 10_000;

/// Where messages end, by partition.
pub(crate) type At = BTreeMap<TopicPartition, u64>;

/// Which batch of a shard wrote a message, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    epoch: u64,
    batch: u64,
}

/// What hangs, with its origin.
type Hanging = Vec<(TopicPartition, Option<Origin>)>;

/// The origin of what a batch writes, as text: `<stage>/<shard>/<epoch>/<batch>`.
pub(crate) fn origin(stage: &str, shard: u32, epoch: u64, batch: u64) -> String {
    format!("{}{epoch}/{batch}", writer(stage, shard))
}

fn writer(stage: &str, shard: u32) -> String {
    format!("{stage}/{shard}/")
}

/// All that a shard writes to.
#[derive(Debug)]
pub(crate) struct Written {
    /// How origins of the shard begin.
    writer: String,
    changelog: TopicPartition,
    /// Those that nobody else writes to, the changelog first.
    own: Vec<TopicPartition>,
    /// The exchange, and rejects, which are of two stages.
    shared: Vec<TopicPartition>,
}

impl Written {
    pub(crate) fn of(topics: &Topics, stage: &str, shard: u32) -> Written {
        let changelog = TopicPartition::new(topics.changelog(stage), shard);
        let Topics { exchange, rejects, shards, .. } = topics;
        let outputs = output::topics_of(stage, topics);
        let own = outputs.iter().filter(|topic| ![exchange, rejects].contains(topic));
        let own = own.map(|topic| TopicPartition::new((*topic).clone(), shard));
        let own = std::iter::once(changelog.clone()).chain(own).collect();
        let sent_to = 0..if outputs.contains(&exchange) { *shards } else { 0 };
        let exchange = sent_to.map(|number| TopicPartition::new(exchange.clone(), number));
        let shared = exchange.chain([TopicPartition::new(rejects.clone(), shard)]).collect();
        Written { writer: writer(stage, shard), changelog, own, shared }
    }

    /// Nothing may build on a commit that was forgotten after it was told: the next one of the same id would end it in some of its partitions only. To be called before
    /// each transaction of an owner, and now and then while it has none.
    ///
    /// # Errors
    /// [`ShardError::Reopen`] when it may be so.
    pub(crate) fn settle_doubt(&self, producer: &mut dyn Transactional, log: &dyn Log) -> Result<(), ShardError> {
        let Some(why) = producer.take_doubt() else { return Ok(()) };
        let all: Vec<TopicPartition> = self.own.iter().chain(&self.shared).cloned().collect();
        let all = if mutant::is(Mutant::DoubtOfChangelogOnly) { vec![self.changelog.clone()] } else { all };
        let mut open = ends(log, &all, Ends::is_held_back)?;
        for _ in 0..LOOKS_IN_DOUBT {
            if open.is_empty() {
                return Ok(());
            }
            open = still_open(log, &open)?;
        }
        let at = open.keys().next().unwrap_or(&self.changelog);
        Err(ShardError::Reopen(format!("{at} is held back, and the last commit is in doubt: {why}")))
    }

    /// Where the partitions end that others write to as well. To be asked before the inits.
    pub(crate) fn shared_ends(&self, log: &dyn Log) -> Result<At, ShardError> {
        Ok(ends(log, &self.shared, |_| true)?)
    }

    /// Ends what hangs, by clients of both ids, which were initialised after `shared` was asked.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end_hanging(
        &self,
        log: &dyn Log,
        clients: [&mut dyn Transactional; 2],
        shared: &At,
        follower: &mut Follower,
    ) -> Result<(), ShardError> {
        let mut held = ends(log, &self.own, Ends::is_held_back)?;
        let open = still_open(log, shared)?;
        let ours = self.newest(log, &open)?;
        held.extend(open.into_iter().filter(|(at, _)| ours.contains_key(at)));
        if held.is_empty() {
            return Ok(());
        }
        // What a marker ends is visible a moment later, if at all.
        follower.read_to_end(log)?;
        for _ in 0..PATIENCE_WITH_MARKERS {
            if held.is_empty() {
                return Ok(());
            }
            follower.follow(POLL)?;
            held = still_open(log, &held)?;
        }
        follower.read_to_end(log)?;
        let (committed, aborted) = self.decide(log, &held, follower)?;
        for client in clients {
            self.end_in(client, &committed, true)?;
            self.end_in(client, &aborted, false)?;
        }
        held.retain(|at, _| self.own.contains(at));
        for _ in 0..PATIENCE_WITH_ENDS {
            held = still_open(log, &held)?;
            if held.is_empty() {
                return Ok(());
            }
            follower.follow(POLL)?;
        }
        let at = held.keys().next().unwrap_or(&self.changelog);
        Err(ShardError::Reopen(format!(
            "{at} is held back by a transaction that the shard's transactional ids do not end; if it stays so, \
             `kafka-transactions.sh find-hanging` names it, and `abort` ends it"
        )))
    }

    /// What hangs: that which is to be committed, and the rest.
    fn decide(&self, log: &dyn Log, held: &At, follower: &Follower) -> Result<(Hanging, Hanging), ShardError> {
        let position = follower.position();
        // The newest batch that the log has: not what an owner has stored that was not met there.
        let newest = position.batch_number.saturating_sub(u64::from(position.own_batch));
        let is_seen = held.contains_key(&self.changelog) && self.is_seen(log, newest)?;
        let origins = self.newest(log, held)?;
        let all = held.keys().map(|at| (at.clone(), origins.get(at).copied()));
        let is_committed = |(_, origin): &(TopicPartition, Option<Origin>)| {
            !mutant::is(Mutant::HangingAborted) && (is_seen || origin.is_some_and(|origin| origin.batch <= newest))
        };
        Ok(all.partition(is_committed))
    }

    /// Does any partition show something of a batch behind this one?
    fn is_seen(&self, log: &dyn Log, newest: u64) -> Result<bool, ShardError> {
        let behind = |(_, origin): &(u64, Origin)| origin.batch > newest;
        let (mut visible, mut hidden) = (Vec::new(), Vec::new());
        for at in self.own.iter().skip(1).chain(&self.shared) {
            let (start, end) = log.bounds(at)?;
            visible.push((at.clone(), start.max(end.saturating_sub(LOOK_BACK))));
            hidden.push((at.clone(), end));
        }
        if self.written(log, &visible, View::Committed)?.iter().flatten().any(behind) {
            return Ok(true);
        }
        for ((at, end), written) in hidden.iter().zip(self.written(log, &hidden, View::Everything)?) {
            // What hangs there itself is the first that readers do not see.
            if written.iter().find(|it| behind(it)).is_some_and(|(offset, _)| offset > end) {
                return Err(ShardError::Reopen(format!(
                    "{} is held back, and {at} as well, by a transaction of somebody else",
                    self.changelog
                )));
            }
        }
        Ok(false)
    }

    /// What this shard wrote last to each of these partitions, of what readers do not see yet; where it wrote something.
    fn newest(&self, log: &dyn Log, to: &At) -> Result<BTreeMap<TopicPartition, Origin>, LogError> {
        let of: Vec<TopicPartition> = to.keys().cloned().collect();
        let hidden: Vec<(TopicPartition, u64)> =
            of.iter().cloned().zip(log.ends(&of)?.iter().map(|ends| ends.visible)).collect();
        let written = self.written(log, &hidden, View::Everything)?;
        let newest = of.into_iter().zip(written);
        Ok(newest.filter_map(|(at, written)| Some((at, written.last()?.1))).collect())
    }

    /// What of this shard is in each of these partitions, from an offset on, with its offset.
    fn written(
        &self,
        log: &dyn Log,
        from: &[(TopicPartition, u64)],
        view: View,
    ) -> Result<Vec<Vec<(u64, Origin)>>, LogError> {
        let mut written = vec![Vec::new(); from.len()];
        log.origins(from, view, &mut |index, offset, origin| {
            let origin = origin.strip_prefix(&self.writer).and_then(parse);
            if let (Some(origin), Some(here)) = (origin, written.get_mut(index)) {
                here.push((offset, origin));
            }
        })?;
        Ok(written)
    }

    /// Ends whatever the client's id has open in these partitions.
    fn end_in(&self, client: &mut dyn Transactional, hanging: &Hanging, commit: bool) -> Result<(), LogError> {
        if hanging.is_empty() {
            return Ok(());
        }
        client.begin()?;
        for (TopicPartition { topic, partition }, origin) in hanging {
            // This may come to hang in its turn.
            let origin = origin.map(|Origin { epoch, batch }| format!("{}{epoch}/{batch}", self.writer));
            let headers: Vec<(&str, &str)> = origin.iter().map(|origin| (ORIGIN, origin.as_str())).collect();
            client.send(Outgoing { topic, partition: *partition, key: &[], payload: &[], headers: &headers })?;
        }
        if commit { client.commit() } else { client.abort() }
    }
}

/// `<epoch>/<batch>`.
fn parse(text: &str) -> Option<Origin> {
    let (epoch, batch) = text.split_once('/')?;
    Some(Origin { epoch: epoch.parse().ok()?, batch: batch.parse().ok()? })
}

/// Aborts whatever the client's id has open in a partition.
pub(crate) fn abort_in(client: &mut dyn Transactional, at: &TopicPartition) -> Result<(), LogError> {
    client.begin()?;
    client.send(Outgoing { topic: &at.topic, partition: at.partition, key: &[], payload: &[], headers: &[] })?;
    client.abort()
}

/// Is a transaction open in this partition?
pub(crate) fn is_held_back(log: &dyn Log, at: &TopicPartition) -> Result<bool, LogError> {
    Ok(log.ends(std::slice::from_ref(at))?.iter().any(Ends::is_held_back))
}

/// Where those of these partitions end of which that is to be known.
fn ends(log: &dyn Log, of: &[TopicPartition], which: impl Fn(&Ends) -> bool) -> Result<At, LogError> {
    let ends = of.iter().zip(log.ends(of)?).filter(|(_, ends)| which(ends));
    Ok(ends.map(|(at, ends)| (at.clone(), ends.end)).collect())
}

/// Those of which readers do not see everything yet that was there when they ended here: what was open then is still open, or something behind it, also when
/// something before it has ended.
fn still_open(log: &dyn Log, then: &At) -> Result<At, LogError> {
    let of: Vec<TopicPartition> = then.keys().cloned().collect();
    let open = then.iter().zip(log.ends(&of)?).filter(|((_, end), now)| now.visible < **end);
    Ok(open.map(|((at, end), _)| (at.clone(), *end)).collect())
}
