//! Transactions that their coordinator has forgotten, and what is made of them.
//!
//! Once both ids of a shard are initialised, no transaction of theirs can be open: an init returns when what its id had open is decided, and the decision has
//! landed. One that is open all the same was forgotten by its coordinator: Kafka 4 takes the partitions of a decided transaction that have no leader at that
//! moment for deleted, and writes no marker there, as when a broker starts again that has the only replica. It *hangs* in these partitions, in all of the transaction's or in some. Readers would
//! wait behind it for ever; a new owner would not see what was committed behind it; and the next transaction of the same id there would end it together with
//! itself, whatever had been decided.
//!
//! # Protocol
//! - **No two hang**: an owner that may have lost a commit since it was told of it looks whether all its partitions have it before it begins another transaction ([`crate::written`]). So of a
//!   shard nothing but its last transaction hangs.
//! - **The changelog first** ([`Takeover::end_in_changelog`]): what hangs there is aborted, so that it can be read on. If an output shows something of its batch, it was committed: then the changelog's
//!   records, which are in the log although nobody sees them, are copied by the new owner's first transaction.
//! - **Two shards that hide what the other one needs to see** must not wait for each other. While a transaction of somebody else hides what one of the outputs has of that batch, it is *undecided*: the ownership
//!   record says which it is, and where its records are, and what of it may be missing is owed, if it was committed. Then what hangs in the outputs is aborted, so that others can go on, and the shard
//!   is taken over again, until it can be decided.
//! - **What hangs is owed.** Whatever a batch writes says by its [origin](crate::written) which batch of which epoch it was. Where something of the newest epoch, up to its newest batch, is not visible to readers in an output, the ownership record says so: from which
//!   offset to which. That transaction has nothing but the changelog: it is there, or it is not, and until it is, nothing in the outputs was touched.
//! - **Then** ([`Takeover::end`]) what hangs is aborted, whatever it is, and once nothing hides it any more it is known what of that which is owed readers see. What they do not see is read from the log, where it is
//!   for as long as anything is, and the first batch of the new owner begins with it. Until there is such a batch, the next owner owes the same.
//! - What hangs is ended by transactions of both ids with an empty message in each of these partitions, which are aborted as well. (Should one be committed all the same, readers skip it.)
//!
//! A gap is left: an owner's next transaction writes where its last one hangs before the client has noticed that the broker was away, and fails. Then what hung is aborted with it. And a handoff does not look: what hangs then
//! is of an earlier epoch for the next takeover.
//!
//! Others write to the exchange and to rejects, too. What they have open there is not ended by our ids.
//!
//! An owner that was told of its commit may have stored its state: what is stored by an owner counts only once its last batch was met in the changelog ([`Follower::prove`]).

use crate::ShardError;
use crate::follower::Follower;
use crate::log::{Ends, Log, LogError, Outgoing, TopicPartition, Transactional, View, Whole};
use crate::mutant::{self, Mutant};
use crate::written::{Offsets, Origin, Part, Written, abort_in, ends, hidden, still_open};
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Changelog, Owed, Undecided, changelog::Record};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

/// How long one look waits for the log to move.
const POLL: Duration = Duration::from_millis(200);
/// How often is looked whether a transaction is still open, a poll apart: before it is ended, and after that.
const PATIENCE_WITH_MARKERS: u32 = 5;
const PATIENCE_WITH_ENDS: u32 = 50;
/// How often is looked whether what must be seen comes to be visible behind a transaction of somebody else, a poll apart: longer than any that is not forgotten itself.
const PATIENCE_WITH_OTHERS: u32 = 150;
/// How far back is looked for something of a batch that hung in the changelog: messages of outputs, and frames, where each is the shard's own.
const LOOK_BACK: u64 = 2_000;
const LOOK_BACK_IN_FRAMES: u64 = 100;

/// A takeover, once both ids are initialised.
pub(crate) struct Takeover<'a> {
    pub(crate) log: &'a dyn Log,
    pub(crate) written: &'a Written,
    pub(crate) follower: &'a mut Follower,
}

/// A message that an output misses.
pub(crate) type Missing = (TopicPartition, Whole);

/// What hangs, and what of it was committed.
#[derive(Debug, Default)]
pub(crate) struct Hanging {
    /// The changelog's records of a batch that was committed, but is not visible.
    lost: Vec<Whole>,
    /// The number of that batch.
    pub(crate) lost_batch: Option<u64>,
    /// Outputs in which something of ours is hidden, and where they end: it hangs, or lies behind what somebody else has open.
    held: Offsets,
    /// What may be missing in outputs.
    pub(crate) owed: Vec<Owed>,
    /// The batch of which outputs do not show yet whether it was committed.
    pub(crate) undecided: Option<Undecided>,
}

/// Do outputs show something of a batch?
#[derive(Clone, Copy)]
enum Seen {
    Yes,
    No,
    /// Something of it is behind what somebody else has open there.
    Hidden,
}

/// What a takeover did about transactions that their coordinator had forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Outputs in which one was ended, or in which something of ours was behind one of somebody else.
    pub ended: usize,
    /// Messages of outputs, and records of the changelog, that were committed and were sent again.
    pub copied: usize,
}

impl Hanging {
    fn is_nothing(&self) -> bool {
        self.lost.is_empty() && self.held.is_empty() && self.owed.is_empty() && self.undecided.is_none()
    }

    /// What was done about it, when this is what was missing.
    pub(crate) fn mended(&self, missing: &[Missing]) -> Mended {
        Mended { ended: self.held.len(), copied: self.lost.len() + missing.len() }
    }

    /// Sends the changelog's records again, as part of the open transaction.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn copy(&self, changelog: &TopicPartition, transaction: &mut dyn Transactional) -> Result<(), LogError> {
        let TopicPartition { topic, partition } = changelog;
        for Whole { key, payload, .. } in &self.lost {
            transaction.send(Outgoing { topic, partition: *partition, key, payload, headers: &[] })?;
        }
        Ok(())
    }
}

impl Takeover<'_> {
    /// Ends what hangs in the changelog, by clients of both ids, which have just been initialised.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end_in_changelog(&mut self, clients: [&mut dyn Transactional; 2]) -> Result<(), ShardError> {
        let held = ends(self.log, std::slice::from_ref(&self.written.changelog), Ends::is_held_back)?;
        let held = self.still_held(&held, PATIENCE_WITH_MARKERS)?;
        self.abort(&held, clients)
    }

    /// Looks for what hangs in the outputs, and for what hung in the changelog, when that was read to its end.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn find(&mut self) -> Result<Hanging, ShardError> {
        let (newest, before) = (self.newest(), self.follower.position().undecided);
        let behind = self.behind(before)?;
        let mut lost = self.lost(newest, behind.clone())?;
        let seen = match lost.is_empty() {
            true => Seen::No,
            false => self.is_seen_behind(newest, before.is_some())?,
        };
        if mutant::is(Mutant::HiddenWaitedFor) && matches!(seen, Seen::Hidden) {
            return Err(ShardError::Away("others hide it".to_owned()));
        }
        let held = self.written.open(self.log)?;
        let held = self.still_held(&held, PATIENCE_WITH_MARKERS)?;
        let batch = newest.batch + u64::from(!matches!(seen, Seen::No));
        let of = Origin { batch, ..newest };
        let mut owed = if mutant::is(Mutant::OwedOnce) { Vec::new() } else { self.follower.position().owed.clone() };
        settle(&mut owed, of, seen);
        // Whoever found it undecided wrote nothing else, and knew all of it.
        if before.is_none() {
            owed.extend(self.owed(of, &held)?);
        }
        if mutant::is(Mutant::HangingAborted) || !matches!(seen, Seen::Yes) {
            lost.clear();
        }
        if mutant::is(Mutant::HangingAborted) {
            owed.clear();
        }
        let undecided = matches!(seen, Seen::Hidden).then(|| {
            let (from, to) = (behind.start, behind.end);
            Undecided { epoch: of.epoch, batch, from, to }
        });
        let lost_batch = (!lost.is_empty()).then_some(batch);
        Ok(Hanging { lost, lost_batch, held, owed, undecided })
    }

    /// The newest batch that the log has: not what an owner has stored that was not met there.
    fn newest(&self) -> Origin {
        let position = self.follower.position();
        let batch = position.batch_number.saturating_sub(u64::from(position.own_batch));
        Origin { epoch: position.undecided.map_or(position.epoch, |it| it.epoch), batch }
    }

    /// Where records of a batch behind the newest one may be in the changelog.
    fn behind(&self, undecided: Option<Undecided>) -> Result<Range<u64>, ShardError> {
        let (start, end) = self.log.bounds(&self.written.changelog)?;
        let Some(Undecided { batch, from, to, .. }) = undecided else {
            return Ok(start.max(self.follower.read_to())..end);
        };
        if start > from {
            return Err(ShardError::Stopped(format!(
                "{} starts at {start} by now, and the records of batch {batch} were at {from}, of which it is not known yet whether it was committed; bring them back, or begin another generation",
                self.written.changelog
            )));
        }
        Ok(from..to)
    }

    /// Aborts what hangs in the outputs, by clients of both ids, once it is known for good what is owed: when the ownership record of `epoch` is there. What is missing then, the first batch
    /// must begin with.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end(
        &mut self,
        hanging: &Hanging,
        epoch: u64,
        clients: [&mut dyn Transactional; 2],
    ) -> Result<Vec<Missing>, ShardError> {
        if hanging.is_nothing() {
            return Ok(Vec::new());
        }
        let is_there = self.look(PATIENCE_WITH_ENDS, |it| {
            let is_there = it.follower.position().epoch == epoch;
            Ok((is_there, is_there))
        })?;
        if !is_there {
            let at = &self.written.changelog;
            return Err(ShardError::Away(format!("{at}: the record of this takeover does not become visible")));
        }
        self.abort(&hanging.held, clients)?;
        if let Some(Undecided { batch, .. }) = hanging.undecided {
            let at = &self.written.changelog;
            return Err(ShardError::Away(format!(
                "{at}: whether batch {batch} was committed shows in outputs that transactions of other shards hold back; they end them when they are opened: see to those"
            )));
        }
        self.missing(&hanging.owed)
    }

    /// What of that which is owed readers do not see, once nothing hides it any more.
    fn missing(&mut self, owed: &[Owed]) -> Result<Vec<Missing>, ShardError> {
        let at = |owed: &Owed| TopicPartition::new(owed.topic.as_str(), owed.partition);
        let of: Vec<TopicPartition> = owed.iter().map(at).collect();
        // What is not in the log any more nobody waits for.
        let there = ends(self.log, &of, |_| true)?;
        let to = |owed: &Owed| there.get(&at(owed)).map_or(owed.to, |end| owed.to.min(*end));
        let ends: Offsets = owed.iter().map(|owed| (at(owed), to(owed))).collect();
        if let Some(at) = self.still_held(&ends, PATIENCE_WITH_OTHERS)?.keys().next() {
            return Err(self.not_ended(at));
        }
        let parts: Vec<Part> = owed.iter().map(|owed| (at(owed), owed.from..owed.to)).collect();
        let mut seen = vec![BTreeSet::new(); parts.len()];
        self.written.read(self.log, &parts, View::Committed, &mut |place, whole| {
            seen.get_mut(place).map(|seen| seen.insert(whole.offset));
        })?;
        let mut missing = Vec::new();
        self.written.attribute(self.log, &parts, &mut |place, origin, whole| {
            let (Some(owed), Some((at, _)), Some(seen)) = (owed.get(place), parts.get(place), seen.get(place)) else {
                return;
            };
            if origin.epoch == owed.epoch && origin.batch <= owed.batch && !seen.contains(&whole.offset) {
                missing.push((at.clone(), whole));
            }
        })?;
        Ok(missing)
    }

    /// Where something of this epoch is, up to this batch, that readers do not see now.
    fn owed(&self, of: Origin, held: &Offsets) -> Result<Vec<Owed>, ShardError> {
        let hidden = hidden(self.log, held)?;
        let mut found: BTreeMap<usize, Owed> = BTreeMap::new();
        self.written.attribute(self.log, &hidden, &mut |place, origin, whole| {
            let is_committed = origin.epoch == of.epoch && origin.batch <= of.batch;
            if let (true, Some((at, _))) = (is_committed, hidden.get(place)) {
                let (topic, from, Origin { epoch, batch }) = (at.topic.to_string(), whole.offset, of);
                let first = || Owed { topic, partition: at.partition, from, to: from, epoch, batch };
                found.entry(place).or_insert_with(first).to = whole.offset + 1;
            }
        })?;
        Ok(found.into_values().collect())
    }

    /// The changelog's records of the batch behind the newest one, when what hung there was ended by somebody who may not have come to copy them.
    fn lost(&self, newest: Origin, behind: Range<u64>) -> Result<Vec<Whole>, ShardError> {
        let behind = (self.written.changelog.clone(), behind);
        let (mut records, mut is_whole, mut was_ended) = (Vec::new(), false, false);
        self.written.read(self.log, &[behind], View::Everything, &mut |_, whole| {
            if whole.is_empty() {
                was_ended |= is_whole;
                return;
            }
            // Copies may follow.
            let Some((part, parts)) = part_behind(&whole, newest).filter(|_| !is_whole) else { return };
            if part == 1 {
                records.clear();
            }
            records.push(whole);
            is_whole = part == parts;
        })?;
        Ok(if was_ended { records } else { Vec::new() })
    }

    /// Does any output show something of a batch behind this one? For how long that is waited for which somebody else's transaction may hide: whether it is known to be undecided.
    fn is_seen_behind(&mut self, newest: Origin, is_known: bool) -> Result<Seen, ShardError> {
        let is_behind = |origin: &Origin| origin.epoch >= newest.epoch && origin.batch > newest.batch;
        let patience = if is_known { PATIENCE_WITH_OTHERS } else { PATIENCE_WITH_MARKERS };
        self.look(patience, |it| {
            let outputs: Vec<TopicPartition> = it.written.outputs().cloned().collect();
            let (mut visible, mut hidden) = (Vec::new(), Vec::new());
            for at in outputs {
                let (start, end) = it.log.bounds(&at)?;
                let back = if it.written.is_of_frames(&at) { LOOK_BACK_IN_FRAMES } else { LOOK_BACK };
                visible.push((at.clone(), start.max(end.saturating_sub(back))..end));
                hidden.push((at, end..u64::MAX));
            }
            let origins = it.written.origins(it.log, &visible, View::Committed)?;
            if origins.iter().flatten().any(|(_, origin)| is_behind(origin)) {
                return Ok((Seen::Yes, true));
            }
            // What hangs there itself is the first that readers do not see.
            let origins = it.written.origins(it.log, &hidden, View::Everything)?;
            let is_hidden = hidden.iter().zip(origins).any(|((_, part), origins)| {
                let first = origins.iter().find(|(_, origin)| is_behind(origin));
                first.is_some_and(|(offset, _)| *offset > part.start)
            });
            Ok(if is_hidden { (Seen::Hidden, false) } else { (Seen::No, true) })
        })
    }

    /// Aborts what both clients' ids have open in these partitions. What others hold back is theirs.
    fn abort(&mut self, held: &Offsets, clients: [&mut dyn Transactional; 2]) -> Result<(), ShardError> {
        if held.is_empty() {
            return Ok(());
        }
        for client in clients {
            abort_in(client, held.keys(), &self.written.writer)?;
        }
        let own = held.iter().filter(|(at, _)| !self.written.shared.contains(at));
        let own = own.map(|(at, end)| (at.clone(), *end)).collect();
        match self.still_held(&own, PATIENCE_WITH_ENDS)?.keys().next() {
            None => Ok(()),
            Some(at) => Err(self.not_ended(at)),
        }
    }

    fn not_ended(&self, at: &TopicPartition) -> ShardError {
        let what = if self.written.shared.contains(at) {
            "held back by a transaction of another shard, which ends it when it is opened: see to that one first. (`kafka-transactions.sh abort` \
             would end it, too, but what that shard committed there would be lost)"
        } else {
            "held back by a transaction that the shard's transactional ids do not end; if it stays so, \
             `kafka-transactions.sh find-hanging` names it, and `abort` ends it"
        };
        ShardError::Away(format!("{at} is {what}"))
    }

    /// What is still held back after a while: what a marker ends is visible a moment later, if at all.
    fn still_held(&mut self, held: &Offsets, patience: u32) -> Result<Offsets, ShardError> {
        if held.is_empty() {
            return Ok(Offsets::new());
        }
        self.look(patience, |it| {
            let open = still_open(it.log, held)?;
            let is_final = open.is_empty();
            Ok((open, is_final))
        })
    }

    /// Looks until the answer is final, a poll of the changelog apart, and no more than so often after the first time.
    fn look<T>(
        &mut self,
        patience: u32,
        mut look: impl FnMut(&mut Self) -> Result<(T, bool), ShardError>,
    ) -> Result<T, ShardError> {
        for _ in 0..patience {
            if let (seen, true) = look(self)? {
                return Ok(seen);
            }
            self.follower.follow(POLL)?;
        }
        Ok(look(self)?.0)
    }
}

/// What is still owed of what was owed before, now that it is known whether there is a batch of which it was not.
fn settle(owed: &mut Vec<Owed>, newest: Origin, seen: Seen) {
    match seen {
        // What was owed when it began, it has sent.
        Seen::Yes => owed.retain(|it| (it.epoch, it.batch) == (newest.epoch, newest.batch)),
        // What is there of it is nobody's.
        Seen::No => {
            let of_epoch = owed.iter_mut().filter(|it| it.epoch == newest.epoch);
            of_epoch.for_each(|it| it.batch = it.batch.min(newest.batch));
        }
        Seen::Hidden => {}
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
