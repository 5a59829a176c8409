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
//!   shard nothing but its last transaction hangs. A new owner deals with it before its first batch.
//! - **One outcome.** Whatever a batch writes says by its [origin](crate::written) which batch of which epoch it was. What hangs of the newest epoch and of a batch that the changelog has was
//!   committed. It is *copied* by the new owner's first transaction, the one with the ownership record ([`Takeover::find`]), and what hangs is aborted after that ([`Takeover::end`]). All else that hangs is aborted: it was
//!   so elsewhere, or was copied by a new owner before. If a takeover fails in between, the next one does the same: copies belong to the epoch of the ownership record beside them.
//! - **The changelog first** ([`Takeover::end_in_changelog`]): what hangs there is aborted, so that it can be read on. If an output shows something of its batch, it was committed: then the changelog's
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
use crate::written::{Offsets, Origin, Writer, Written, abort_in, ends, hidden, still_open};
use millstream_model::frame::{self, Content};
use millstream_model::proto::{Changelog, changelog::Record};
use prost::Message as _;
use std::collections::BTreeSet;
use std::time::Duration;

/// How long one look waits for the log to move.
const POLL: Duration = Duration::from_millis(200);
/// How often is looked whether a transaction is still open, a poll apart: before it is ended, and after that.
const PATIENCE_WITH_MARKERS: u32 = 5;
const PATIENCE_WITH_ENDS: u32 = 50;
/// How often is looked whether what must be seen comes to be visible behind a transaction of somebody else, a poll apart: longer than any that is not forgotten itself.
const PATIENCE_WITH_OTHERS: u32 = 150;
/// How far back is looked for something of a batch that hung in the changelog: messages of outputs, and frames, where each is the shard's own; the changelog's own, to which each takeover that
/// fails adds some offsets.
const LOOK_BACK: u64 = 2_000;
const LOOK_BACK_IN_FRAMES: u64 = 100;
const LOOK_BACK_IN_CHANGELOG: u64 = 300;
/// Partitions that are read at once.
const AT_ONCE: usize = 16;

/// A takeover, once both ids are initialised.
pub(crate) struct Takeover<'a> {
    pub(crate) log: &'a dyn Log,
    pub(crate) written: &'a Written,
    pub(crate) follower: &'a mut Follower,
}

/// What hangs in the outputs, and what of it, and of the changelog, was committed.
#[derive(Debug, Default)]
pub(crate) struct Hanging {
    held: Offsets,
    committed: Vec<(TopicPartition, Whole)>,
}

/// What a takeover did about transactions that their coordinator had forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Partitions in which one was ended.
    pub partitions: usize,
    /// Messages that were committed, and were copied.
    pub copied: usize,
}

/// What readers do not see of a shard's newest batch.
#[derive(Debug, Default)]
struct Hidden {
    committed: Vec<(TopicPartition, Whole)>,
    /// What hangs itself is the first that readers do not see. What is behind something else may be visible once that has ended.
    is_behind: bool,
    /// Where there are copies by a new owner whose ownership record hung, and was aborted; and what readers see there.
    copied: Offsets,
}

impl Hanging {
    /// What is done about it.
    pub(crate) fn mended(&self) -> Mended {
        Mended { partitions: self.held.len(), copied: self.committed.len() }
    }

    /// Sends again what was committed, as part of the open transaction: the first one of the owner of `epoch`.
    ///
    /// # Errors
    /// [`LogError`] of the transaction.
    pub(crate) fn copy(
        &self,
        writer: &Writer,
        epoch: u64,
        transaction: &mut dyn Transactional,
    ) -> Result<(), LogError> {
        for (TopicPartition { topic, partition }, whole) in &self.committed {
            let origin = writer.origin(whole).map(|origin| writer.say(Origin { epoch, ..origin }));
            let headers = whole.headers.iter().filter(|(name, _)| name != ORIGIN);
            let headers = headers.map(|(name, value)| (name.as_str(), value.as_str()));
            let headers: Vec<(&str, &str)> = headers.chain(origin.as_deref().map(|origin| (ORIGIN, origin))).collect();
            let (key, payload) = (&whole.key, &whole.payload);
            transaction.send(Outgoing { topic, partition: *partition, key, payload, headers: &headers })?;
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
        if held.is_empty() {
            return Ok(());
        }
        for client in clients {
            abort_in(client, held.keys())?;
        }
        self.must_end(&held)
    }

    /// Looks for what hangs in the outputs, when the changelog was read to its end, by clients of the named and of the idle id. What the idle id has there is aborted: the shard's last
    /// transaction is the named one's.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn find(&mut self, [named, idle]: [&mut dyn Transactional; 2]) -> Result<Hanging, ShardError> {
        let position = self.follower.position();
        // The newest batch that the log has: not what an owner has stored that was not met there.
        let batch = position.batch_number.saturating_sub(u64::from(position.own_batch));
        let mut newest = Origin { epoch: position.epoch, batch };
        let mut committed = self.lost_batch(newest)?;
        if !committed.is_empty() {
            match self.is_seen_behind(newest)? && !mutant::is(Mutant::HangingAborted) {
                true => newest.batch += 1,
                false => committed.clear(),
            }
        }
        let held = self.written.open(self.log)?;
        let held = self.still_held(&held, PATIENCE_WITH_MARKERS)?;
        if !held.is_empty() {
            abort_in(idle, held.keys())?;
            let hidden = self.look(PATIENCE_WITH_OTHERS, |it| {
                let hidden = it.hidden(&held, newest)?;
                let is_final = !hidden.is_behind;
                Ok((hidden, is_final))
            })?;
            let copied = self.visible_copies(&hidden.copied, newest, named)?;
            let missing = hidden.committed.into_iter().filter(|(at, _)| !copied.contains(at));
            committed.extend(missing.filter(|_| !mutant::is(Mutant::HangingAborted)));
        }
        Ok(Hanging { held, committed })
    }

    /// Aborts what hangs in the outputs, by the client of the id that the log named before, once what was committed of it has been copied: when the ownership record of
    /// `epoch` is there for good.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn end(
        &mut self,
        hanging: Hanging,
        epoch: u64,
        named: &mut dyn Transactional,
    ) -> Result<(), ShardError> {
        let Hanging { mut held, committed } = hanging;
        if held.is_empty() && committed.is_empty() {
            return Ok(());
        }
        let is_there = self.look(PATIENCE_WITH_MARKERS, |it| {
            let is_there = it.follower.position().epoch == epoch;
            Ok((is_there, is_there))
        })?;
        if !is_there {
            return Err(not_ended(&self.written.changelog));
        }
        if held.is_empty() {
            return Ok(());
        }
        abort_in(named, held.keys())?;
        // What others hold back is theirs.
        held.retain(|at, _| !self.written.shared.contains(at));
        self.must_end(&held)
    }

    /// The changelog's records of the batch behind the newest one, when what hung there was ended by somebody who may not have come to copy them.
    fn lost_batch(&self, newest: Origin) -> Result<Vec<(TopicPartition, Whole)>, ShardError> {
        let changelog = &self.written.changelog;
        let (start, end) = self.log.bounds(changelog)?;
        let from = start.max(end.saturating_sub(LOOK_BACK_IN_CHANGELOG));
        let (mut records, mut is_whole, mut was_ended) = (Vec::new(), false, false);
        self.log.read(&[(changelog.clone(), from)], View::Everything, &mut |_, whole| {
            if whole.is_empty() {
                was_ended |= is_whole;
                return;
            }
            // Copies may follow.
            let Some((part, parts)) = part_behind(&whole, newest).filter(|_| !is_whole) else { return };
            if part == 1 {
                records.clear();
            }
            records.push((changelog.clone(), whole));
            is_whole = part == parts;
        })?;
        Ok(if was_ended { records } else { Vec::new() })
    }

    /// What of this shard's newest batch readers do not see yet.
    fn hidden(&self, held: &Offsets, newest: Origin) -> Result<Hidden, LogError> {
        let from = hidden(self.log, held.keys())?;
        let mut hidden = Hidden::default();
        // Of a partition that only this shard writes to, what says nothing is of the batch that said something last.
        let mut last = vec![None; from.len()];
        let mut met = BTreeSet::new();
        self.log.read(&from, View::Everything, &mut |place, whole| {
            let (Some((at, visible)), Some(last)) = (from.get(place), last.get_mut(place)) else { return };
            if whole.header(ORIGIN).is_some() || self.written.shared.contains(at) {
                *last = self.written.writer.origin(&whole);
            }
            let Some(Origin { epoch, batch }) = *last else { return };
            if batch > newest.batch || whole.is_empty() {
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
        &mut self,
        copied: &Offsets,
        newest: Origin,
        named: &mut dyn Transactional,
    ) -> Result<BTreeSet<TopicPartition>, ShardError> {
        if copied.is_empty() {
            return Ok(BTreeSet::new());
        }
        abort_in(named, copied.keys())?;
        let all: Vec<TopicPartition> = copied.keys().cloned().collect();
        let held = ends(self.log, &all, |_| true)?;
        self.still_held(&held, PATIENCE_WITH_ENDS)?;
        let from: Vec<(TopicPartition, u64)> = copied.iter().map(|(at, offset)| (at.clone(), *offset)).collect();
        let written = self.written.origins(self.log, &from, View::Committed)?;
        let is_copied = |written: &[(u64, Origin)]| written.iter().any(|(_, origin)| origin.epoch > newest.epoch);
        Ok(all.into_iter().zip(written).filter(|(_, written)| is_copied(written)).map(|(at, _)| at).collect())
    }

    /// Does any output show something of a batch behind this one? While somebody else's transaction may hide it, that is waited for, up to a bound.
    fn is_seen_behind(&mut self, newest: Origin) -> Result<bool, ShardError> {
        let written = self.written;
        let outputs: Vec<&TopicPartition> = written.own.iter().chain(&written.shared).collect();
        self.look(PATIENCE_WITH_OTHERS, |it| {
            let mut is_hidden = false;
            for outputs in outputs.chunks(AT_ONCE) {
                let (is_seen, may_be) = it.is_seen_in(outputs, newest)?;
                if is_seen {
                    return Ok((true, true));
                }
                is_hidden |= may_be;
            }
            Ok((false, !is_hidden))
        })
    }

    /// Do these show something of a batch behind this one? If not, may something of it be behind what is open there?
    fn is_seen_in(&self, outputs: &[&TopicPartition], newest: Origin) -> Result<(bool, bool), ShardError> {
        let is_behind = |(_, origin): &(u64, Origin)| origin.epoch >= newest.epoch && origin.batch > newest.batch;
        let (mut visible, mut hidden) = (Vec::new(), Vec::new());
        for at in outputs {
            let (start, end) = self.log.bounds(at)?;
            let back = if self.written.is_of_frames(at) { LOOK_BACK_IN_FRAMES } else { LOOK_BACK };
            visible.push(((*at).clone(), start.max(end.saturating_sub(back))));
            hidden.push(((*at).clone(), end));
        }
        if self.written.origins(self.log, &visible, View::Committed)?.iter().flatten().any(is_behind) {
            return Ok((true, false));
        }
        let mut hidden = hidden.iter().zip(self.written.origins(self.log, &hidden, View::Everything)?);
        // What hangs there itself is the first that readers do not see.
        let first = |written: Vec<(u64, Origin)>| written.into_iter().find(is_behind);
        Ok((false, hidden.any(|((_, end), written)| first(written).is_some_and(|(offset, _)| offset > *end))))
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

    fn must_end(&mut self, held: &Offsets) -> Result<(), ShardError> {
        match self.still_held(held, PATIENCE_WITH_ENDS)?.keys().next() {
            None => Ok(()),
            Some(at) => Err(not_ended(at)),
        }
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

fn not_ended(at: &TopicPartition) -> ShardError {
    ShardError::Reopen(format!(
        "{at} is held back by a transaction that the shard's transactional ids do not end; if it stays so, \
         `kafka-transactions.sh find-hanging` names it, and `abort` ends it"
    ))
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
