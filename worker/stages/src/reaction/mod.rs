//! Reaction: mutations become document writes.
//!
//! Keeps **at most one write in flight per entity** and folds what waits behind it ([`fold()`]), so that a hot entity costs one
//! write at a time and never blocks another. Writes are guarded by (generation, revision) in the store, so that repeating one, after
//! a time-out, a crash or by two workers at once, changes nothing (I8): this stage needs no lock and no transaction. What may succeed
//! later is tried again with growing pauses; what never will is rejected, but a refused fold is split first, so that one bad mutation does not
//! take its neighbours along. The position moves up to the oldest mutation that is not yet decided.
//!
//! Pure: time comes in as values; the worker feeds mutations and outcomes and carries the writes out.

mod fold;

pub use fold::fold;

use millstream_model::proto::Mutation;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// First pause before a write is tried again; it doubles up to [`MAX_PAUSE_MS`].
const FIRST_PAUSE_MS: u64 = 50;
/// Longest pause: a store that comes back is noticed this late.
const MAX_PAUSE_MS: u64 = 5_000;
/// The most mutations in one fold: bounds what a split has to repeat.
const MAX_FOLD: usize = 200;

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

/// What became of a write, as the document store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The document holds it, or something newer.
    Done,
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
    /// Rejected: it, and why.
    Rejected(Mutation, String),
}

#[derive(Debug)]
struct Work {
    /// What to write: all of `parts` in one.
    folded: Mutation,
    /// The mutations in it, each with the offset of its frame, in order.
    parts: Vec<(u64, Mutation)>,
    /// A fold was refused: write each part alone from now on.
    split: bool,
}

#[derive(Debug, Default)]
struct Entity {
    waiting: VecDeque<Work>,
    in_flight: Option<Work>,
    attempts: u32,
    not_before_ms: u64,
}

/// The reaction stage of one partition.
#[derive(Debug, Default)]
pub struct Reaction {
    entities: HashMap<DocumentKey, Entity>,
    ready: VecDeque<DocumentKey>,
    /// Entities that wait for a pause to end, by its end.
    paused: BTreeMap<(u64, DocumentKey), ()>,
    /// Undecided mutations per frame offset.
    undecided: BTreeMap<u64, usize>,
    next_offset: u64,
    backlog: usize,
}

impl Reaction {
    /// Starts at an offset of the partition.
    pub fn starting_at(offset: u64) -> Reaction {
        Reaction { next_offset: offset, ..Reaction::default() }
    }

    /// Takes the mutations of the frame at `offset`.
    pub fn offer(&mut self, offset: u64, mutations: Vec<Mutation>) {
        self.next_offset = self.next_offset.max(offset + 1);
        if mutations.is_empty() {
            return;
        }
        self.undecided.insert(offset, mutations.len());
        self.backlog += mutations.len();
        for mutation in mutations {
            let key = DocumentKey {
                tenant: mutation.tenant.clone(),
                collection: mutation.collection.clone(),
                id: mutation.id.clone(),
            };
            let entity = self.entities.entry(key.clone()).or_default();
            let was_idle = entity.waiting.is_empty() && entity.in_flight.is_none();
            entity.enqueue(offset, mutation);
            if was_idle {
                self.ready.push_back(key);
            }
        }
    }

    /// Up to `max` writes that may go out now, at most one per document.
    pub fn take(&mut self, max: usize, now_ms: u64) -> Vec<(DocumentKey, Mutation)> {
        while let Some(((due, _), ())) = self.paused.first_key_value()
            && *due <= now_ms
            && let Some(((_, key), ())) = self.paused.pop_first()
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
        let Some(work) = entity.in_flight.take() else { return Vec::new() };
        let decided: Vec<Decided> = match written {
            Written::Done => self.decide(key, work, Decided::Stored),
            Written::Refused(_) if work.parts.len() > 1 => {
                entity.split(work);
                Vec::new()
            }
            Written::Refused(message) => {
                self.decide(key, work, |mutation| Decided::Rejected(mutation, message.clone()))
            }
            Written::Retry(_) => {
                entity.attempts += 1;
                let pause = FIRST_PAUSE_MS.saturating_mul(1 << entity.attempts.min(10).saturating_sub(1));
                entity.not_before_ms = now_ms + pause.min(MAX_PAUSE_MS);
                entity.put_back(work);
                Vec::new()
            }
        };
        self.reschedule(key, now_ms);
        decided
    }

    fn decide(&mut self, key: &DocumentKey, work: Work, as_: impl Fn(Mutation) -> Decided) -> Vec<Decided> {
        if let Some(entity) = self.entities.get_mut(key) {
            entity.attempts = 0;
            entity.not_before_ms = 0;
        }
        let mut decided = Vec::with_capacity(work.parts.len());
        for (offset, mutation) in work.parts {
            self.backlog -= 1;
            if let Some(left) = self.undecided.get_mut(&offset) {
                *left -= 1;
                if *left == 0 {
                    self.undecided.remove(&offset);
                }
            }
            decided.push(as_(mutation));
        }
        decided
    }

    fn reschedule(&mut self, key: &DocumentKey, now_ms: u64) {
        let Some(entity) = self.entities.get(key) else { return };
        if entity.waiting.is_empty() {
            self.entities.remove(key);
        } else if entity.not_before_ms > now_ms {
            self.paused.insert((entity.not_before_ms, key.clone()), ());
        } else {
            self.ready.push_back(key.clone());
        }
    }

    /// Every mutation before this offset is decided: where to read on after a crash.
    pub fn position(&self) -> u64 {
        self.undecided.first_key_value().map_or(self.next_offset, |(offset, _)| *offset)
    }

    /// Undecided mutations.
    pub fn backlog(&self) -> usize {
        self.backlog
    }

    /// When the next paused write may go out, milliseconds since 1970.
    pub fn next_due_ms(&self) -> Option<u64> {
        self.paused.first_key_value().map(|((due, _), ())| *due)
    }
}

impl Entity {
    fn enqueue(&mut self, offset: u64, mutation: Mutation) {
        if let Some(last) = self.waiting.back_mut()
            && !last.split
            && last.parts.len() < MAX_FOLD
            && let Some(folded) = fold(&last.folded, &mutation)
        {
            last.folded = folded;
            last.parts.push((offset, mutation));
            return;
        }
        self.waiting.push_back(Work { folded: mutation.clone(), parts: vec![(offset, mutation)], split: false });
    }

    /// What must be tried again goes out with what has come behind it in the meantime, when both fold.
    fn put_back(&mut self, work: Work) {
        if let Some(next) = self.waiting.front_mut()
            && !work.split
            && !next.split
            && work.parts.len() + next.parts.len() <= MAX_FOLD
            && let Some(folded) = fold(&work.folded, &next.folded)
        {
            next.folded = folded;
            next.parts.splice(0..0, work.parts);
            return;
        }
        self.waiting.push_front(work);
    }

    fn split(&mut self, work: Work) {
        for (offset, mutation) in work.parts.into_iter().rev() {
            self.waiting.push_front(Work { folded: mutation.clone(), parts: vec![(offset, mutation)], split: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::{Operation, Value, operation::Op};

    fn mutation(id: &str, revision: u64) -> Mutation {
        let op = Op::Set(Value::integer(revision as i64));
        Mutation {
            tenant: "acme".into(),
            collection: "users".into(),
            id: id.into(),
            generation: 1,
            revision,
            base: revision - 1,
            operations: vec![Operation { path: "x".into(), op: Some(op) }],
            ..Mutation::default()
        }
    }

    fn revisions(writes: &[(DocumentKey, Mutation)]) -> Vec<(String, u64)> {
        writes.iter().map(|(key, mutation)| (key.id.clone(), mutation.revision)).collect()
    }

    #[test]
    fn one_write_in_flight_per_entity_and_the_rest_folds() {
        let mut reaction = Reaction::starting_at(0);
        reaction.offer(0, vec![mutation("a", 1), mutation("b", 1)]);
        let first = reaction.take(10, 0);
        assert_eq!(revisions(&first), [("a".into(), 1), ("b".into(), 1)]);
        reaction.offer(1, vec![mutation("a", 2), mutation("a", 3)]);
        assert!(reaction.take(10, 0).is_empty(), "a is in flight");
        assert_eq!(reaction.complete(&first[0].0, Written::Done, 0).len(), 1);
        assert_eq!(revisions(&reaction.take(10, 0)), [("a".into(), 3)]);
        assert_eq!(reaction.position(), 0, "b of frame 0 is not decided");
        reaction.complete(&first[1].0, Written::Done, 0);
        assert_eq!(reaction.position(), 1);
        assert_eq!(reaction.complete(&first[0].0, Written::Done, 0).len(), 2);
        assert_eq!((reaction.position(), reaction.backlog()), (2, 0));
    }

    #[test]
    fn what_may_succeed_later_is_tried_again_after_a_pause_and_blocks_nobody() {
        let mut reaction = Reaction::starting_at(0);
        reaction.offer(0, vec![mutation("a", 1)]);
        let writes = reaction.take(10, 1000);
        reaction.complete(&writes[0].0, Written::Retry("away".into()), 1000);
        reaction.offer(1, vec![mutation("b", 1), mutation("a", 2)]);
        assert_eq!(revisions(&reaction.take(10, 1000)), [("b".into(), 1)]);
        assert_eq!(reaction.next_due_ms(), Some(1050));
        assert_eq!(revisions(&reaction.take(10, 1050)), [("a".into(), 2)], "folded while it waited");
        reaction.complete(&writes[0].0, Written::Retry("away".into()), 1050);
        assert_eq!(reaction.next_due_ms(), Some(1150), "pauses grow");
        assert_eq!(reaction.position(), 0);
    }

    #[test]
    fn a_refused_fold_is_split_so_that_only_the_bad_one_is_rejected() {
        let mut reaction = Reaction::starting_at(0);
        reaction.offer(0, vec![mutation("a", 1), mutation("a", 2), mutation("a", 3)]);
        let writes = reaction.take(10, 0);
        assert_eq!(revisions(&writes), [("a".into(), 3)]);
        let key = &writes[0].0;
        assert!(reaction.complete(key, Written::Refused("too large".into()), 0).is_empty());
        let mut decided = Vec::new();
        for refused in [false, true, false] {
            let writes = reaction.take(10, 0);
            assert_eq!(writes.len(), 1);
            let written = if refused { Written::Refused("too large".into()) } else { Written::Done };
            decided.extend(reaction.complete(key, written, 0));
        }
        let kinds: Vec<bool> = decided.iter().map(|one| matches!(one, Decided::Stored(_))).collect();
        assert_eq!(kinds, [true, false, true]);
        assert_eq!((reaction.position(), reaction.backlog()), (1, 0));
    }

    #[test]
    fn an_entity_that_is_done_leaves_nothing_behind() {
        let mut reaction = Reaction::starting_at(7);
        assert_eq!(reaction.position(), 7);
        reaction.offer(9, vec![]);
        assert_eq!(reaction.position(), 10);
        reaction.offer(10, vec![mutation("a", 1)]);
        let writes = reaction.take(1, 0);
        reaction.complete(&writes[0].0, Written::Done, 0);
        assert!(reaction.entities.is_empty() && reaction.undecided.is_empty() && reaction.ready.is_empty());
        assert!(reaction.complete(&writes[0].0, Written::Done, 0).is_empty(), "decided once");
    }
}
