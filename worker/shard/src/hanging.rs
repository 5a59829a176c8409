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
//!   shard nothing but its last transaction hangs. A new owner deals with it before its first batch.
//! - **One outcome.** Whatever a batch writes says by its [origin](crate::log::ORIGIN) which batch of which epoch it was. What hangs of the newest epoch and of a batch that the changelog has was
//!   committed. It is *copied* by the new owner's first transaction, the one with the ownership record ([`Written::find`]), and what hangs is aborted after that ([`Written::end`]). All else that hangs is aborted: it was
//!   so elsewhere, or was copied by a new owner before. If a takeover fails in between, the next one does the same: copies belong to the epoch of the ownership record beside them.
//! - **The changelog first** ([`Written::end_in_changelog`]): what hangs there is aborted, so that it can be read on. If an output shows something of its batch, it was committed: then the changelog's
//!   records are copied, too, which are in the log although nobody sees them. (While a transaction of somebody else hides what one of the outputs has of it, the shard waits, up to a bound.)
//! - What hangs is ended by a transaction with an empty message in each of these partitions, which is aborted as well.
//!
//! One gap is left: an owner's next transaction writes where its last one hangs before the client has noticed that the broker was away, and fails. Then what hung is aborted with it.
//!
//! Others write to the exchange and to rejects, too. What they have open there is not ended by our ids.
//!
//! An owner that was told of its commit may have stored its state: what is stored by an owner counts only once its last batch was met in the changelog ([`Follower::prove`]).

use crate::ShardError;
use crate::follower::Follower;
use crate::log::{Ends, Log, LogError, ORIGIN, Outgoing, TopicPartition, Transactional, View, Whole};
use crate::mutant::{self, Mutant};
use crate::output;
use crate::topics::Topics;
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Changelog, changelog::Record};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long one look waits for the log to move.
const POLL: Duration = Duration::from_millis(200);
/// How often is looked whether a transaction is still open, a poll apart: before it is ended, and after that.
const PATIENCE_WITH_MARKERS: u32 = 5;
const PATIENCE_WITH_ENDS: u32 = 50;
/// So many looks, one behind the other, before it is read whose transactions hold partitions back that others write to as well: they have some open all the time, each for
/// some tens of milliseconds.
const LOOKS_AT_OTHERS: u32 = 20;
/// How often an owner in doubt looks whether what it wrote comes to be visible.
const LOOKS_IN_DOUBT: u32 = 200;
/// How often a takeover looks whether what it must see comes to be visible behind a transaction of somebody else, a poll apart: longer than any that is not forgotten itself.
const PATIENCE_WITH_OTHERS: u32 = 150;
/// How far back is looked for something of a batch that hangs in the changelog: messages of public topics and of the exchange; frames that only this shard writes.
const LOOK_BACK: u64 = 2_000;
const LOOK_BACK_IN_FRAMES: u64 = 100;
/// How far back in the changelog: each takeover that fails leaves some offsets.
const LOOK_BACK_IN_CHANGELOG: u64 = 300;
/// Partitions that are read at once.
const AT_ONCE: usize = 16;

/// Where messages end, by partition.
pub(crate) type At = BTreeMap<TopicPartition, u64>;

/// Which batch of a shard wrote a message, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    epoch: u64,
    batch: u64,
}

/// What hangs in the outputs, and what of it was committed.
#[derive(Debug, Default)]
pub(crate) struct Hanging {
    held: At,
    committed: Vec<(TopicPartition, Whole)>,
}

/// What readers do not see of a shard's newest batch.
#[derive(Debug, Default)]
struct Hidden {
    committed: Vec<(TopicPartition, Whole)>,
    /// What hangs itself is the first that readers do not see. What is behind something else may be visible once that has ended.
    is_behind: bool,
    /// Where there are copies by a new owner whose ownership record hung, and was aborted; and what readers see there.
    copied: At,
}

/// How the origins of a shard's batches begin: `<stage>/<shard>/<generation>/`. Public topics are those of all generations.
pub(crate) fn writer(topics: &Topics, stage: &str, shard: u32) -> String {
    format!("{stage}/{shard}/{}/", topics.generation)
}

/// The origin of what a batch writes, as text: `<stage>/<shard>/<generation>/<epoch>/<batch>`.
pub(crate) fn origin_text(writer: &str, epoch: u64, batch: u64) -> String {
    format!("{writer}{epoch}/{batch}")
}

/// All that a shard writes to.
#[derive(Debug)]
pub(crate) struct Written {
    /// How origins of the shard begin.
    writer: String,
    changelog: TopicPartition,
    events: Arc<str>,
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
        Written { writer: writer(topics, stage, shard), changelog, events: topics.events.clone(), own, shared }
    }

    /// Nothing may build on a commit that was forgotten after it was told: the next one of the same id would end it in some of its partitions only. To be called before
    /// each transaction of an owner, and now and then while it has none.
    ///
    /// # Errors
    /// [`ShardError::Reopen`] when it may be so.
    pub(crate) fn settle_doubt(&self, producer: &mut dyn Transactional, log: &dyn Log) -> Result<(), ShardError> {
        let Some(why) = producer.take_doubt() else { return Ok(()) };
        let mut open = self.open(log)?;
        if mutant::is(Mutant::DoubtOfChangelogOnly) {
            open.retain(|at, _| *at == self.changelog);
        }
        for _ in 0..LOOKS_IN_DOUBT {
            if open.is_empty() {
                return Ok(());
            }
            open = still_open(log, &open)?;
        }
        let at = open.keys().next().unwrap_or(&self.changelog);
        Err(ShardError::Reopen(format!("{at} is held back, and the last commit is in doubt: {why}")))
    }

    /// Where something is open now that this shard may have written.
    fn open(&self, log: &dyn Log) -> Result<At, ShardError> {
        let all: Vec<TopicPartition> = self.own.iter().chain(&self.shared).cloned().collect();
        let mut open = ends(log, &all, Ends::is_held_back)?;
        for _ in 0..LOOKS_AT_OTHERS {
            if open.keys().all(|at| self.own.contains(at)) {
                break;
            }
            open = still_open(log, &open)?;
        }
        let hidden = hidden_in(log, open.keys())?;
        let written = self.written(log, &hidden, View::Everything)?;
        let ours: BTreeSet<TopicPartition> =
            hidden.into_iter().zip(written).filter(|(_, ours)| !ours.is_empty()).map(|((at, _), _)| at).collect();
        open.retain(|at, _| *at == self.changelog || ours.contains(at));
        Ok(open)
    }

    /// Ends what hangs in the changelog, by clients of both ids, which have just been initialised.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end_in_changelog(
        &self,
        log: &dyn Log,
        clients: [&mut dyn Transactional; 2],
        follower: &mut Follower,
    ) -> Result<(), ShardError> {
        let held = ends(log, std::slice::from_ref(&self.changelog), Ends::is_held_back)?;
        let held = self.still_held(log, held, PATIENCE_WITH_MARKERS, follower)?;
        if held.is_empty() {
            return Ok(());
        }
        for client in clients {
            end_in(client, &held)?;
        }
        let held = self.still_held(log, held, PATIENCE_WITH_ENDS, follower)?;
        if held.is_empty() { Ok(()) } else { Err(self.not_ended(&held)) }
    }

    /// Looks for what hangs in the outputs, when the changelog was read to its end, by clients of the named and of the idle id. What the idle id has there is aborted: the shard's last
    /// transaction is the named one's.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn find(
        &self,
        log: &dyn Log,
        [named, idle]: [&mut dyn Transactional; 2],
        follower: &mut Follower,
    ) -> Result<Hanging, ShardError> {
        let position = follower.position();
        // The newest batch that the log has: not what an owner has stored that was not met there.
        let batch = position.batch_number.saturating_sub(u64::from(position.own_batch));
        let mut newest = Origin { epoch: position.epoch, batch };
        let mut of_changelog = self.lost_batch(log, newest)?;
        if !of_changelog.is_empty() {
            match self.is_seen(log, newest, follower)? && !mutant::is(Mutant::HangingAborted) {
                true => newest.batch += 1,
                false => of_changelog.clear(),
            }
        }
        let held = self.open(log)?;
        let held = self.still_held(log, held, PATIENCE_WITH_MARKERS, follower)?;
        if held.is_empty() {
            return Ok(Hanging { held, committed: of_changelog });
        }
        end_in(idle, &held)?;
        let mut hidden = self.hidden(log, &held, newest)?;
        for _ in 0..PATIENCE_WITH_OTHERS {
            if !hidden.is_behind {
                break;
            }
            follower.follow(POLL)?;
            hidden = self.hidden(log, &held, newest)?;
        }
        let Hidden { mut committed, copied, .. } = hidden;
        let copied = self.visible_copies(log, copied, newest, named, follower)?;
        committed.retain(|(at, _)| !copied.contains(at) && !mutant::is(Mutant::HangingAborted));
        Ok(Hanging { held, committed: [of_changelog, committed].concat() })
    }

    /// The changelog's records of the batch behind the newest one, when what hung there was ended by somebody who may not have come to copy them.
    fn lost_batch(&self, log: &dyn Log, newest: Origin) -> Result<Vec<(TopicPartition, Whole)>, ShardError> {
        let (start, end) = log.bounds(&self.changelog)?;
        let from = start.max(end.saturating_sub(LOOK_BACK_IN_CHANGELOG));
        let (mut records, mut is_whole, mut was_ended) = (Vec::new(), false, false);
        log.read(&[(self.changelog.clone(), from)], View::Everything, &mut |_, whole| {
            if is_empty(&whole) {
                was_ended |= is_whole;
                return;
            }
            // Copies may follow.
            let Some((part, parts)) = part_behind(&whole, newest).filter(|_| !is_whole) else { return };
            if part == 1 {
                records.clear();
            }
            records.push((self.changelog.clone(), whole));
            is_whole = part == parts;
        })?;
        Ok(if was_ended { records } else { Vec::new() })
    }

    /// What of this shard's newest batch readers do not see yet.
    fn hidden(&self, log: &dyn Log, held: &At, newest: Origin) -> Result<Hidden, LogError> {
        let from = hidden_in(log, held.keys())?;
        let mut hidden = Hidden::default();
        // Of a partition that only this shard writes to, what says nothing is of the batch that said something last.
        let mut last = vec![None; from.len()];
        let mut met = BTreeSet::new();
        log.read(&from, View::Everything, &mut |place, whole| {
            let (Some((at, visible)), Some(last)) = (from.get(place), last.get_mut(place)) else { return };
            let origin = whole.header(ORIGIN);
            if origin.is_some() || self.shared.contains(at) {
                *last = origin.and_then(|origin| self.parse(origin));
            }
            let Some(Origin { epoch, batch }) = *last else { return };
            if batch > newest.batch || is_empty(&whole) {
                return;
            }
            if epoch > newest.epoch {
                hidden.copied.insert(at.clone(), *visible);
            }
            if epoch == newest.epoch {
                hidden.is_behind |= met.insert(place) && whole.offset > *visible;
                hidden.committed.push((at.clone(), whole));
            }
        })?;
        Ok(hidden)
    }

    /// Where copies are visible once what they are copies of is aborted: they need not be copied again.
    fn visible_copies(
        &self,
        log: &dyn Log,
        copied: At,
        newest: Origin,
        named: &mut dyn Transactional,
        follower: &mut Follower,
    ) -> Result<BTreeSet<TopicPartition>, ShardError> {
        if copied.is_empty() {
            return Ok(BTreeSet::new());
        }
        end_in(named, &copied)?;
        self.still_held(
            log,
            ends(log, &copied.keys().cloned().collect::<Vec<_>>(), |_| true)?,
            PATIENCE_WITH_ENDS,
            follower,
        )?;
        let from: Vec<(TopicPartition, u64)> = copied.into_iter().collect();
        let written = self.written(log, &from, View::Committed)?;
        let visible = from.into_iter().zip(written);
        let visible = visible.filter(|(_, written)| written.iter().any(|(_, origin)| origin.epoch > newest.epoch));
        Ok(visible.map(|((at, _), _)| at).collect())
    }

    /// Sends again what was committed and hangs, as part of the open transaction: the first one of the owner of `epoch`.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn copy(
        &self,
        hanging: &Hanging,
        epoch: u64,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        for (TopicPartition { topic, partition }, whole) in &hanging.committed {
            let origin = whole.header(ORIGIN).and_then(|origin| self.parse(origin));
            let origin = origin.map(|it| origin_text(&self.writer, epoch, it.batch));
            let headers = whole.headers.iter().filter(|(name, _)| name != ORIGIN);
            let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
            let headers: Vec<(&str, &str)> = headers.chain(origin.as_deref().map(|origin| (ORIGIN, origin))).collect();
            let (key, payload) = (&whole.key, &whole.payload);
            transaction.send(Outgoing { topic, partition: *partition, key, payload, headers: &headers })?;
        }
        Ok(())
    }

    /// Aborts what hangs in the outputs, by the client of the id that the log named before, once what was committed of it has been copied: when the ownership record of
    /// `epoch` is there for good.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end(
        &self,
        log: &dyn Log,
        hanging: Hanging,
        epoch: u64,
        named: &mut dyn Transactional,
        follower: &mut Follower,
    ) -> Result<(), ShardError> {
        let Hanging { mut held, committed } = hanging;
        if held.is_empty() && committed.is_empty() {
            return Ok(());
        }
        for _ in 0..PATIENCE_WITH_MARKERS {
            if follower.position().epoch == epoch {
                break;
            }
            follower.follow(POLL)?;
        }
        if follower.position().epoch != epoch {
            return Err(self.not_ended(&At::new()));
        }
        if held.is_empty() {
            return Ok(());
        }
        end_in(named, &held)?;
        // What others hold back is theirs.
        held.retain(|at, _| self.own.contains(at));
        let held = self.still_held(log, held, PATIENCE_WITH_ENDS, follower)?;
        if held.is_empty() { Ok(()) } else { Err(self.not_ended(&held)) }
    }

    /// What is still held back after a while: what a marker ends is visible a moment later, if at all.
    fn still_held(
        &self,
        log: &dyn Log,
        mut held: At,
        patience: u32,
        follower: &mut Follower,
    ) -> Result<At, ShardError> {
        for _ in 0..patience {
            if held.is_empty() {
                break;
            }
            follower.follow(POLL)?;
            held = still_open(log, &held)?;
        }
        Ok(held)
    }

    fn not_ended(&self, held: &At) -> ShardError {
        let at = held.keys().next().unwrap_or(&self.changelog);
        ShardError::Reopen(format!(
            "{at} is held back by a transaction that the shard's transactional ids do not end; if it stays so, \
             `kafka-transactions.sh find-hanging` names it, and `abort` ends it"
        ))
    }

    /// Does any partition show something of a batch behind this one? While somebody else's transaction may hide it, that is waited for, up to a bound.
    fn is_seen(&self, log: &dyn Log, newest: Origin, follower: &mut Follower) -> Result<bool, ShardError> {
        let behind = |(_, origin): &(u64, Origin)| origin.epoch >= newest.epoch && origin.batch > newest.batch;
        let outputs: Vec<&TopicPartition> = self.own.iter().skip(1).chain(&self.shared).collect();
        for _ in 0..PATIENCE_WITH_OTHERS {
            let mut is_hidden = false;
            for outputs in outputs.chunks(AT_ONCE) {
                let (mut visible, mut hidden) = (Vec::new(), Vec::new());
                for at in outputs {
                    let (start, end) = log.bounds(at)?;
                    visible.push(((*at).clone(), start.max(end.saturating_sub(self.look_back(at)))));
                    hidden.push(((*at).clone(), end));
                }
                if self.written(log, &visible, View::Committed)?.iter().flatten().any(behind) {
                    return Ok(true);
                }
                // What hangs there itself is the first that readers do not see.
                let hidden = hidden.iter().zip(self.written(log, &hidden, View::Everything)?);
                is_hidden |= hidden.into_iter().any(|((_, end), written)| {
                    written.iter().find(|it| behind(it)).is_some_and(|(offset, _)| offset > end)
                });
            }
            if !is_hidden {
                break;
            }
            follower.follow(POLL)?;
        }
        Ok(false)
    }

    fn look_back(&self, at: &TopicPartition) -> u64 {
        let is_of_frames = self.own.contains(at) && *at.topic != *self.events;
        if is_of_frames { LOOK_BACK_IN_FRAMES } else { LOOK_BACK }
    }

    /// What of this shard is in each of these partitions, from an offset on, with its offset.
    fn written(
        &self,
        log: &dyn Log,
        from: &[(TopicPartition, u64)],
        view: View,
    ) -> Result<Vec<Vec<(u64, Origin)>>, LogError> {
        let mut written = vec![Vec::new(); from.len()];
        log.read(from, view, &mut |place, whole| {
            let origin = whole.header(ORIGIN).and_then(|origin| self.parse(origin));
            if let (Some(origin), Some(here)) = (origin, written.get_mut(place)) {
                here.push((whole.offset, origin));
            }
        })?;
        Ok(written)
    }

    /// The origin of something that this shard wrote.
    fn parse(&self, origin: &str) -> Option<Origin> {
        let (epoch, batch) = origin.strip_prefix(&self.writer)?.split_once('/')?;
        Some(Origin { epoch: epoch.parse().ok()?, batch: batch.parse().ok()? })
    }
}

/// Aborts whatever the client's id has open in these partitions.
fn end_in(client: &mut dyn Transactional, held: &At) -> Result<(), ShardError> {
    client.begin()?;
    for TopicPartition { topic, partition } in held.keys() {
        client.send(Outgoing { topic, partition: *partition, key: &[], payload: &[], headers: &[] })?;
    }
    client.abort()?;
    match client.take_doubt() {
        Some(why) => Err(ShardError::Reopen(format!("what ended a forgotten transaction is in doubt: {why}"))),
        None => Ok(()),
    }
}

/// Which part of how many of the batch behind the newest one this record of a changelog is.
fn part_behind(whole: &Whole, newest: Origin) -> Option<(u32, u32)> {
    let record = frame::read(&whole.payload, Content::Changelog).ok()?.next()?.ok()?;
    match Changelog::decode(record).ok()?.record {
        Some(Record::Batch(batch)) if batch.epoch == newest.epoch && batch.number == newest.batch + 1 => {
            Some((batch.part, batch.parts))
        }
        _ => None,
    }
}

fn is_empty(whole: &Whole) -> bool {
    whole.key.is_empty() && whole.payload.is_empty()
}

/// Where what readers do not see yet begins.
fn hidden_in<'a>(
    log: &dyn Log,
    of: impl Iterator<Item = &'a TopicPartition>,
) -> Result<Vec<(TopicPartition, u64)>, LogError> {
    let of: Vec<TopicPartition> = of.cloned().collect();
    let ends = log.ends(&of)?;
    Ok(of.into_iter().zip(ends.iter().map(|ends| ends.visible)).collect())
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
