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
const OWN_NOT_ENDED: &str = "held back by a transaction that the shard's transactional ids do not end; if it stays so, \
     `kafka-transactions.sh find-hanging` names it, and `abort` ends it";
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
    /// The batch of which outputs do not show yet whether it was committed, and one that hides it.
    pub(crate) undecided: Option<(Undecided, TopicPartition)>,
    /// There was one before.
    was_undecided: bool,
}

/// Do outputs show something of a batch?
enum Seen {
    Yes,
    No,
    /// Something of it is behind what somebody else has open: in the first of these, and in which parts of all.
    Hidden(TopicPartition, Vec<Owed>),
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
        self.lost.is_empty()
            && self.held.is_empty()
            && self.owed.is_empty()
            && !self.was_undecided
            && self.undecided.is_none()
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

    /// Looks for what hangs in the outputs, and for what hung in the changelog, when that was read to its end; by clients of both ids.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn find(&mut self, clients: [&mut dyn Transactional; 2]) -> Result<Hanging, ShardError> {
        let mut hanging = match self.follower.position().undecided {
            Some(undecided) => self.decide(undecided, clients)?,
            None => self.find_first()?,
        };
        if mutant::is(Mutant::HangingAborted) {
            hanging = Hanging { held: hanging.held, ..Hanging::default() };
        }
        Ok(hanging)
    }

    /// Nobody has looked before.
    fn find_first(&mut self) -> Result<Hanging, ShardError> {
        let newest = self.newest();
        let (start, end) = self.log.bounds(&self.written.changelog)?;
        let behind = start.max(self.follower.read_to())..end;
        let lost = self.lost(newest, behind.clone())?;
        let of = Origin { batch: newest.batch + 1, ..newest };
        let seen = if lost.is_empty() { Seen::No } else { self.is_seen_lately(of)? };
        if let (true, Seen::Hidden(at, _)) = (mutant::is(Mutant::HiddenWaitedFor), &seen) {
            return Err(self.not_ended(at));
        }
        let held = self.written.open(self.log)?;
        let held = self.still_held(&held, PATIENCE_WITH_MARKERS)?;
        let owed_before = self.owed_before();
        Ok(match seen {
            Seen::No => {
                let owed = [owed_before, self.owed(newest, &held)?].concat();
                Hanging { held, owed, ..Hanging::default() }
            }
            // It is a batch: what was owed before is settled.
            Seen::Yes => {
                let owed = self.owed(of, &held)?;
                Hanging { lost, lost_batch: Some(of.batch), held, owed, ..Hanging::default() }
            }
            Seen::Hidden(at, shows) => {
                let found = self.owed(of, &held)?;
                // Where it was hidden, and is not any more, is to be looked as well.
                let is_found =
                    |it: &Owed| found.iter().any(|owed| (&owed.topic, owed.partition) == (&it.topic, it.partition));
                let more: Vec<Owed> = shows.into_iter().filter(|it| !is_found(it)).collect();
                let owed = [owed_before, found, more].concat();
                let Origin { epoch, batch } = of;
                let undecided = Undecided { epoch, batch, from: behind.start, to: behind.end };
                Hanging { held, owed, undecided: Some((undecided, at)), ..Hanging::default() }
            }
        })
    }

    /// A takeover before this one has found a batch undecided, and said all that there is to be known of it. It wrote nothing else.
    fn decide(&mut self, undecided: Undecided, clients: [&mut dyn Transactional; 2]) -> Result<Hanging, ShardError> {
        let held = self.written.open(self.log)?;
        let held = self.still_held(&held, PATIENCE_WITH_MARKERS)?;
        // It may not have come to that.
        self.abort(&held, clients)?;
        let Undecided { epoch, batch, from, to } = undecided;
        let lost = self.lost(Origin { epoch, batch: batch - 1 }, from..to)?;
        if lost.is_empty() {
            return Err(ShardError::Stopped(format!(
                "{} has not the records of batch {batch} any more, which were between {from} and {to}, and of which it is not known yet whether it was committed; bring them back, or begin another generation",
                self.written.changelog
            )));
        }
        let of = Origin { epoch, batch };
        let mut owed = self.owed_before();
        let seen = self.is_seen_in(of, &owed)?;
        let mut hanging = Hanging { held, was_undecided: true, ..Hanging::default() };
        match seen {
            Seen::Yes => {
                // What was owed when it began, it has sent.
                owed.retain(|it| (it.epoch, it.batch) == (epoch, batch));
                (hanging.lost, hanging.lost_batch) = (lost, Some(batch));
            }
            // What is there of it is nobody's.
            Seen::No => {
                let of_epoch = owed.iter_mut().filter(|it| it.epoch == epoch);
                of_epoch.for_each(|it| it.batch = it.batch.min(batch - 1));
            }
            Seen::Hidden(at, _) => hanging.undecided = Some((undecided, at)),
        }
        hanging.owed = owed;
        Ok(hanging)
    }

    fn owed_before(&self) -> Vec<Owed> {
        if mutant::is(Mutant::OwedOnce) { Vec::new() } else { self.follower.position().owed.clone() }
    }

    /// The newest batch that the log has: not what an owner has stored that was not met there.
    fn newest(&self) -> Origin {
        let position = self.follower.position();
        let batch = position.batch_number.saturating_sub(u64::from(position.own_batch));
        Origin { epoch: position.epoch, batch }
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
        if let Some((_, at)) = &hanging.undecided {
            return Err(self.not_ended(at));
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

    /// Does any output show something of this batch, the last one that may be?
    fn is_seen_lately(&mut self, of: Origin) -> Result<Seen, ShardError> {
        self.look(PATIENCE_WITH_MARKERS, |it| {
            let outputs: Vec<TopicPartition> = it.written.outputs().cloned().collect();
            let (mut visible, mut hidden) = (Vec::new(), Vec::new());
            for at in outputs {
                let (start, end) = it.log.bounds(&at)?;
                let back = if it.written.is_of_frames(&at) { LOOK_BACK_IN_FRAMES } else { LOOK_BACK };
                visible.push((at.clone(), start.max(end.saturating_sub(back))..end));
                hidden.push((at, end..u64::MAX));
            }
            if it.is_visible(of, &visible)? {
                return Ok((Seen::Yes, true));
            }
            let origins = it.written.origins(it.log, &hidden, View::Everything)?;
            let shows = hidden.iter().zip(origins).filter_map(|((at, part), origins)| {
                let mut offsets = origins.iter().filter(|(_, origin)| *origin == of).map(|(offset, _)| *offset);
                let first = offsets.next()?;
                let (topic, to, Origin { epoch, batch }) =
                    (at.topic.to_string(), offsets.next_back().unwrap_or(first) + 1, of);
                let owed = Owed { topic, partition: at.partition, from: first, to, epoch, batch };
                // What hangs there itself is the first that readers do not see.
                (first > part.start).then_some((at.clone(), owed))
            });
            let (at, shows): (Vec<TopicPartition>, Vec<Owed>) = shows.unzip();
            Ok(match at.into_iter().next() {
                Some(at) => (Seen::Hidden(at, shows), false),
                None => (Seen::No, true),
            })
        })
    }

    /// Does any output show something of this batch, where it is, as is known?
    fn is_seen_in(&mut self, of: Origin, owed: &[Owed]) -> Result<Seen, ShardError> {
        let owed = owed.iter().filter(|it| (it.epoch, it.batch) == (of.epoch, of.batch));
        let parts: Vec<Part> =
            owed.map(|it| (TopicPartition::new(it.topic.as_str(), it.partition), it.from..it.to)).collect();
        self.look(PATIENCE_WITH_OTHERS, |it| {
            if it.is_visible(of, &parts)? {
                return Ok((Seen::Yes, true));
            }
            for (at, part) in &parts {
                if it.log.bounds(at)?.1 < part.end {
                    return Ok((Seen::Hidden(at.clone(), Vec::new()), false));
                }
            }
            Ok((Seen::No, true))
        })
    }

    fn is_visible(&self, of: Origin, parts: &[Part]) -> Result<bool, ShardError> {
        let origins = self.written.origins(self.log, parts, View::Committed)?;
        Ok(origins.iter().flatten().any(|(_, origin)| *origin == of))
    }

    /// Aborts what both clients' ids have open in these partitions. What others hold back is theirs.
    fn abort(&mut self, held: &Offsets, clients: [&mut dyn Transactional; 2]) -> Result<(), ShardError> {
        if held.is_empty() {
            return Ok(());
        }
        for client in clients {
            abort_in(client, held.keys(), &self.written.writer)?;
        }
        let (shared, own): (Offsets, Offsets) =
            held.iter().map(|(at, end)| (at.clone(), *end)).partition(|(at, _)| self.written.shared.contains(at));
        if let Some(at) = self.still_held(&own, PATIENCE_WITH_ENDS)?.keys().next() {
            return Err(self.not_ended(at));
        }
        // What others hold back is theirs. But what is used on of these ids must not end something of theirs that is left.
        let left = self.look(PATIENCE_WITH_ENDS, |it| {
            let left = it.held_by_itself(&shared)?;
            let is_final = left.is_none();
            Ok((left, is_final))
        })?;
        left.map_or(Ok(()), |at| Err(ShardError::Away(format!("{at} is {OWN_NOT_ENDED}"))))
    }

    /// The first of these partitions that this shard holds back: where the first message that readers do not see is one of its own.
    fn held_by_itself(&self, these: &Offsets) -> Result<Option<TopicPartition>, ShardError> {
        if these.is_empty() {
            return Ok(None);
        }
        let hidden = hidden(self.log, these)?;
        let mut firsts: BTreeMap<usize, bool> = BTreeMap::new();
        self.written.read(self.log, &hidden, View::Everything, &mut |place, whole| {
            firsts.entry(place).or_insert_with(|| self.written.writer.is_author(&whole));
        })?;
        let own = firsts.into_iter().find(|(_, is_own)| *is_own);
        Ok(own.and_then(|(place, _)| hidden.get(place).map(|(at, _)| at.clone())))
    }

    fn not_ended(&self, at: &TopicPartition) -> ShardError {
        let what = if self.written.shared.contains(at) {
            "held back by a transaction of another shard, which ends it when it is opened: see to that one first. (`kafka-transactions.sh abort` \
             would end it, too, but what that shard committed there would be lost)"
        } else {
            OWN_NOT_ENDED
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
