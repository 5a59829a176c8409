//! Reaction: mutations become document writes.
//!
//! Keeps **at most one write in flight per entity** and folds what waits behind it ([`fold()`]), so that a hot entity costs one
//! write at a time and never blocks another. Writes are guarded by (generation, revision) in the store, so that repeating one, after
//! a time-out, a crash or by two workers at once, changes nothing (I8): this stage needs no lock and no transaction. What may succeed
//! later is tried again with growing pauses; what never will is rejected, but a refused fold is split first, so that one bad mutation does not
//! take its neighbours along. In place of a rejected mutation its revision alone is written, so that the next one finds what it builds on.
//! A document that lacks what a mutation builds on is healed from its home (module `gap`).
//! The position moves up to the oldest mutation that is not yet decided.
//!
//! Pure: time comes in as values, of a clock that nobody sets; the worker feeds mutations and outcomes and carries the writes out.

mod entity;
mod fold;
mod gap;
#[cfg(test)]
mod healing_tests;
#[cfg(test)]
mod tests;

pub use fold::fold;

use entity::{Entity, Part, Work};
use millstream_model::proto::Mutation;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// First pause before a write is tried again; it doubles up to [`MAX_PAUSE_MS`].
const FIRST_PAUSE_MS: u64 = 50;
/// Longest pause: a store that comes back is noticed this late.
const MAX_PAUSE_MS: u64 = 5_000;

/// Which document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentKey {
    /// Tenant.
    pub tenant: String,
    /// Collection.
    pub collection: String,
    /// Its `_id`.
    pub id: String,
}

impl DocumentKey {
    fn of(mutation: &Mutation) -> DocumentKey {
        let Mutation { tenant, collection, id, .. } = mutation;
        DocumentKey { tenant: tenant.clone(), collection: collection.clone(), id: id.clone() }
    }
}

/// What became of a write, as the document store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The document holds it, or something newer.
    Done,
    /// Not applied: the document lacks what it builds on.
    Gap,
    /// Never possible.
    Refused(String),
    /// Perhaps later.
    Retry(String),
}

/// A decided mutation.
#[derive(Clone, Debug, PartialEq)]
pub enum Decided {
    /// In the document store.
    Stored(Mutation),
    /// Not written: the whole document comes behind it, because its document has a gap.
    Covered(Mutation),
    /// Rejected: it, and why.
    Rejected(Mutation, String),
}

/// The reaction stage of one partition.
#[derive(Debug, Default)]
pub struct Reaction {
    entities: BTreeMap<DocumentKey, Entity>,
    ready: VecDeque<DocumentKey>,
    /// Entities that wait for a pause to end, by its end.
    paused: BTreeSet<(u64, DocumentKey)>,
    /// Entities with a gap, by when their home is to be asked.
    asking: BTreeSet<(u64, DocumentKey)>,
    /// Undecided mutations per frame offset.
    undecided: BTreeMap<u64, usize>,
    next_offset: u64,
    backlog: usize,
    backlog_bytes: usize,
}

impl Reaction {
    /// Starts at an offset of the partition.
    pub fn starting_at(offset: u64) -> Reaction {
        Reaction { next_offset: offset, ..Reaction::default() }
    }

    /// Takes the mutations of the frame at `offset`; gives those that are decided with it.
    pub fn offer(&mut self, offset: u64, mutations: Vec<Mutation>) -> Vec<Decided> {
        self.next_offset = self.next_offset.max(offset + 1);
        let mut decided = Vec::new();
        for mutation in mutations {
            let key = DocumentKey::of(&mutation);
            let part = self.count(offset, mutation);
            let entity = self.entities.entry(key.clone()).or_default();
            if entity.gap.is_some() {
                decided.extend(self.offer_to_gap(key, part));
                continue;
            }
            let was_idle = entity.is_idle();
            entity.enqueue(part);
            if was_idle {
                self.ready.push_back(key);
            }
        }
        decided
    }

    /// Up to `max` writes that may go out now, at most one per document.
    pub fn take(&mut self, max: usize, now_ms: u64) -> Vec<(DocumentKey, Mutation)> {
        while let Some((due, _)) = self.paused.first()
            && *due <= now_ms
            && let Some((_, key)) = self.paused.pop_first()
        {
            self.ready.push_back(key);
        }
        let mut writes = Vec::new();
        while writes.len() < max
            && let Some(key) = self.ready.pop_front()
        {
            if let Some(entity) = self.entities.get_mut(&key)
                && entity.in_flight.is_none()
                && let Some(work) = entity.waiting.pop_front()
            {
                writes.push((key, work.folded.clone()));
                entity.in_flight = Some(work);
            }
        }
        writes
    }

    /// Takes what became of a write; gives the mutations that are decided with it.
    pub fn complete(&mut self, key: &DocumentKey, written: Written, now_ms: u64) -> Vec<Decided> {
        let Some(entity) = self.entities.get_mut(key) else { return Vec::new() };
        let Some(mut work) = entity.in_flight.take() else { return Vec::new() };
        let mut decided = Vec::new();
        match gap::or_refused(key, written) {
            Written::Done => decided = self.decide(key, work),
            Written::Gap => decided = self.gap(key, work, now_ms),
            Written::Refused(_) if work.parts.len() > 1 => entity.split(work),
            // Not even its revision can be written.
            Written::Refused(_) if work.refused.is_some() => decided = self.decide(key, work),
            Written::Refused(message) => {
                work.skip(message);
                entity.waiting.push_front(work);
            }
            Written::Retry(_) => {
                entity.attempts += 1;
                let pause = FIRST_PAUSE_MS.saturating_mul(1 << entity.attempts.min(10).saturating_sub(1));
                entity.not_before_ms = now_ms + pause.min(MAX_PAUSE_MS);
                entity.put_back(work);
            }
        }
        self.reschedule(key, now_ms);
        decided
    }

    fn decide(&mut self, key: &DocumentKey, mut work: Work) -> Vec<Decided> {
        if let Some(entity) = self.entities.get_mut(key) {
            entity.attempts = 0;
            entity.not_before_ms = 0;
        }
        let parts = std::mem::take(&mut work.parts);
        parts.into_iter().map(|part| work.fate(self.discount(part))).collect()
    }

    fn reschedule(&mut self, key: &DocumentKey, now_ms: u64) {
        let Some(entity) = self.entities.get(key) else { return };
        if entity.gap.is_some() {
            // It waits for its home.
        } else if entity.waiting.is_empty() {
            self.entities.remove(key);
        } else if entity.not_before_ms > now_ms {
            self.paused.insert((entity.not_before_ms, key.clone()));
        } else {
            self.ready.push_back(key.clone());
        }
    }

    fn count(&mut self, offset: u64, mutation: Mutation) -> Part {
        let part = Part { offset, bytes: mutation.encoded_len(), mutation };
        *self.undecided.entry(offset).or_default() += 1;
        self.backlog += 1;
        self.backlog_bytes += part.bytes;
        part
    }

    fn discount(&mut self, part: Part) -> Mutation {
        self.backlog -= 1;
        self.backlog_bytes -= part.bytes;
        if let Some(left) = self.undecided.get_mut(&part.offset) {
            *left -= 1;
            if *left == 0 {
                self.undecided.remove(&part.offset);
            }
        }
        part.mutation
    }

    /// Every mutation before this offset is decided: where to read on after a crash.
    pub fn position(&self) -> u64 {
        self.undecided.first_key_value().map_or(self.next_offset, |(offset, _)| *offset)
    }

    /// Undecided mutations.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// Their encoded bytes.
    pub fn backlog_bytes(&self) -> usize {
        self.backlog_bytes
    }
}
