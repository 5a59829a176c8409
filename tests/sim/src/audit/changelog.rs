//! A shard's changelog, read by other code than the one under test.

use super::{Findings, decode};
use crate::counts::Protocol;
use crate::log::Seen;
use crate::sim::Sim;
use millstream_model::frame::Content;
use millstream_model::id::entry_hash;
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{Batch, Changelog, Genesis, Ownership, Position, Release, changelog::Record};
use millstream_shard::changes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A batch as it is in the log.
#[derive(Clone, Debug)]
pub struct Told {
    /// The digest of its last part.
    pub digest: u64,
    /// The sum over the state after it, by our own fold.
    pub state: u64,
    /// Offset of its first part.
    pub offset: u64,
}

/// What a shard's changelog tells.
#[derive(Debug, Default)]
pub struct Story {
    /// Its batches; the first is number 1.
    pub batches: Vec<Told>,
    /// The state after the last one.
    pub state: BTreeMap<StateKey, Vec<u8>>,
    /// Transactions that hold a whole batch.
    pub whole: BTreeSet<usize>,
    /// Offsets and epochs of ownership records.
    pub owned: Vec<(u64, u64)>,
    /// In their order.
    pub cuts: Vec<CutTold>,
    /// Where the inputs stand at the end.
    pub inputs: Vec<Position>,
}

/// A cut as it is in the log.
#[derive(Clone, Debug)]
pub struct CutTold {
    /// For which savepoint.
    pub savepoint: u64,
    /// The number of its batch.
    pub batch: u64,
    /// Where its inputs stood.
    pub inputs: Vec<Position>,
}

/// The savepoints that a message of a changelog says the shard is cut for.
pub fn cuts_of(payload: &[u8]) -> Vec<u64> {
    let records = decode::<Changelog>(payload, Content::Changelog).unwrap_or_default();
    let cuts = |record: Changelog| match record.record {
        Some(Record::Batch(batch)) => batch.cuts,
        _ => Vec::new(),
    };
    records.into_iter().flat_map(cuts).collect()
}

/// Frames of the exchange, by transaction and partition, in their order.
pub type Exchange = BTreeMap<usize, BTreeMap<u32, Vec<Arc<[u8]>>>>;

/// What every transaction brought to the exchange.
pub fn exchange(sim: &Sim) -> Exchange {
    let mut all = Exchange::new();
    for partition in 0..sim.settings.shards {
        for message in sim.log.look(|broker| broker.committed(&sim.topics.exchange, partition)) {
            let is_marker = super::savepoints::marker(&message.payload).is_some();
            if let Some((transaction, _, _)) = message.transaction.filter(|_| !is_marker) {
                all.entry(transaction).or_default().entry(partition).or_default().push(message.payload);
            }
        }
    }
    all
}

struct Reader<'a> {
    sim: &'a Sim,
    stage: &'static str,
    shard: u32,
    findings: &'a mut Findings,
    story: Story,
    began: bool,
    owner: Ownership,
    /// The newest release, while nobody has owned the shard since.
    released: Option<Release>,
    digest: u64,
    state: u64,
    last: Batch,
    inputs: Vec<Position>,
    /// Frames of the exchange, by transaction and partition, in their order.
    exchange: &'a Exchange,
    /// Transactions with an ownership record. They may copy what hung of the last batch.
    takeovers: BTreeSet<usize>,
    /// A batch of which not all parts have come.
    open: Option<(Batch, usize, u64)>,
    /// The newest owner owes its outputs something, and has had no batch.
    owes: bool,
}

/// Reads it all.
pub fn read(sim: &Sim, stage: &'static str, shard: u32, exchange: &Exchange, findings: &mut Findings) -> Story {
    let topic = sim.topics.changelog(stage);
    let messages = sim.log.look(|broker| broker.committed(&topic, shard));
    let mut reader = Reader {
        sim,
        stage,
        shard,
        findings,
        story: Story::default(),
        began: false,
        owner: Ownership::default(),
        released: None,
        digest: 0,
        state: 0,
        last: Batch::default(),
        inputs: Vec::new(),
        exchange,
        takeovers: messages.iter().filter_map(takeover).collect(),
        open: None,
        owes: false,
    };
    for message in &messages {
        reader.message(message);
    }
    let open = reader.open.take();
    reader.check(open.is_none(), 0, "I4: the changelog ends in the middle of a batch");
    reader.story.inputs = reader.inputs;
    reader.story
}

/// The transaction of an ownership record.
fn takeover(message: &Seen) -> Option<usize> {
    let records: Vec<Changelog> = decode(&message.payload, Content::Changelog).ok()?;
    let owns = records.iter().any(|record| matches!(record.record, Some(Record::Ownership(_))));
    message.transaction.as_ref().filter(|_| owns).map(|(number, ..)| *number)
}

impl Reader<'_> {
    fn check(&mut self, holds: bool, offset: u64, what: &str) {
        let (stage, shard) = (self.stage, self.shard);
        self.findings.check(holds, || format!("{what}: changelog of {stage}[{shard}] at {offset}"));
    }

    fn message(&mut self, message: &Seen) {
        let offset = message.offset;
        let records = match decode::<Changelog>(&message.payload, Content::Changelog) {
            Ok(records) => records,
            Err(error) => return self.check(false, offset, &format!("I4: unreadable, {error}")),
        };
        let Some((number, _, id)) = &message.transaction else {
            return self.check(false, offset, "I4: written outside of a transaction");
        };
        for record in records {
            if self.open.is_some() && !matches!(record.record, Some(Record::Batch(_))) {
                self.check(false, offset, "I4: a batch is interrupted");
            }
            match record.record {
                Some(Record::Genesis(genesis)) => self.genesis(offset, genesis),
                Some(Record::Ownership(owner)) => {
                    self.ownership(offset, owner, id);
                }
                Some(Record::Release(release)) => self.release(offset, release, id),
                Some(Record::Batch(batch)) => self.part(offset, batch, *number, id),
                None => self.check(false, offset, "I4: an unknown record"),
            }
        }
    }

    fn genesis(&mut self, offset: u64, genesis: Genesis) {
        self.check(!self.began, offset, "I6: a second genesis record");
        self.began = true;
        self.inputs = genesis.inputs;
        self.sim.world.count(Protocol::Genesis);
    }

    fn ownership(&mut self, offset: u64, owner: Ownership, id: &str) {
        self.check(self.began, offset, "I6: an owner before the genesis record");
        self.check(owner.epoch == self.owner.epoch + 1, offset, "I4: epochs do not count up by one");
        // Before anybody owned it, the genesis record's id is the named one.
        let named = self.released.as_ref().map_or(self.owner.slot, |release| release.slot);
        let by_handoff = self.released.is_some() && owner.slot == named;
        self.check(by_handoff || owner.slot == 1 - named, offset, "I4: the named id was used on");
        let own_id = self.sim.topics.transactional_id(self.stage, self.shard, owner.slot);
        self.check(*id == *own_id, offset, "I4: an owner wrote with another id than its record says");
        let plan = |it: &Ownership| (it.plan_term, it.plan_number);
        self.check(plan(&owner) >= plan(&self.owner), offset, "rule 5: acquired under an older plan");
        self.story.owned.push((offset, owner.epoch));
        // Nothing but a batch settles it. What a batch owes that is undecided, whoever decides it says again.
        self.owes |= !owner.owed.is_empty() && owner.undecided.is_none();
        self.sim.world.count(Protocol::Owned);
        if owner.undecided.is_some() {
            self.sim.world.count(Protocol::Undecided);
        }
        (self.owner, self.released) = (owner, None);
    }

    fn release(&mut self, offset: u64, release: Release, id: &str) {
        self.is_written_by_owner(offset, release.epoch, id);
        self.check(self.owner.undecided.is_none(), offset, "I4: released, although the batch before is undecided");
        self.check(release.slot == 1 - self.owner.slot, offset, "rule 3: released to the id that is named");
        self.released = Some(release);
    }

    fn is_written_by_owner(&mut self, offset: u64, epoch: u64, id: &str) {
        self.check(epoch == self.owner.epoch && epoch > 0, offset, "I4: not written by the newest owner");
        self.check(self.released.is_none(), offset, "I4: written after a release");
        let own_id = self.sim.topics.transactional_id(self.stage, self.shard, self.owner.slot);
        self.check(*id == *own_id, offset, "I4: not written with the named id");
    }

    fn part(&mut self, offset: u64, mut part: Batch, transaction: usize, id: &str) {
        if self.takeovers.contains(&transaction) {
            let epoch = self.owner.undecided.map_or(self.owner.epoch, |undecided| undecided.epoch);
            self.check(part.epoch == epoch, offset, "I4: a copy of another epoch's batch");
        } else {
            self.check(self.owner.undecided.is_none(), offset, "I4: went on, although the batch before is undecided");
            self.is_written_by_owner(offset, part.epoch, id);
        }
        self.check(part.previous_digest == self.digest, offset, "I4: the chain of digests is broken");
        self.digest = part.digest;
        let expected = self.open.as_ref().map_or(1, |(open, _, _)| open.part + 1);
        self.check(part.part == expected, offset, "I4: parts of a batch are missing or repeated");
        let mut first = offset;
        if let Some((open, number, began)) = self.open.take() {
            self.check(number == transaction, offset, "I1: a batch in two transactions");
            part.changes = [open.changes, part.changes].concat();
            first = began;
        }
        if part.part < part.parts {
            self.open = Some((part, transaction, first));
            return;
        }
        if part.parts > 1 {
            self.sim.world.count(Protocol::SplitBatch);
        }
        self.story.whole.insert(transaction);
        self.waiting(offset, transaction);
        self.batch(offset, first, part);
    }

    /// What waited for a partition goes to it before anything else does, and a batch writes to so many partitions.
    fn waiting(&mut self, offset: u64, transaction: usize) {
        let Some(sent) = self.exchange.get(&transaction) else { return };
        let most = self.sim.settings.limits.exchange_partitions;
        self.check(sent.len() <= most, offset, "a batch writes to too many partitions");
        let mut waits: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
        for (key, frame) in &self.story.state {
            if let Some((_, Kind::Waiting, rest)) = key.parts() {
                let partition = u32::from_be_bytes(*rest.first_chunk().unwrap());
                waits.entry(partition).or_default().push(frame);
            }
        }
        for (partition, frames) in waits {
            let Some(sent) = sent.get(&partition) else { continue };
            let is_first = sent.iter().map(|frame| &**frame).take(frames.len()).eq(frames);
            self.sim.world.count(Protocol::WaitingSent);
            self.findings
                .check(is_first, || format!("I3: overtaken, what waited for exchange[{partition}] at {offset}"));
        }
    }

    fn batch(&mut self, offset: u64, first: u64, batch: Batch) {
        self.check(batch.number == self.last.number + 1, offset, "I4: batches do not count up by one");
        self.check(batch.time_ms >= self.last.time_ms, offset, "I7: batch time went back");
        self.check(batch.stamp_time_ms >= self.last.stamp_time_ms, offset, "I7: stamps went back");
        for input in &batch.inputs {
            let is_it = |other: &&Position| (&other.topic, other.partition) == (&input.topic, input.partition);
            let before = self.inputs.iter().find(is_it);
            let goes_on =
                before.is_some_and(|before| before.offset <= input.offset && before.topic_id == input.topic_id);
            self.check(goes_on, offset, "I1: an input position went back, or is of another topic");
        }
        self.cuts(offset, &batch);
        self.fold(offset, &batch);
        self.check(self.state == batch.state_digest, offset, "I5: the owner's state is not the fold of its changelog");
        self.story.batches.push(Told { digest: batch.digest, state: self.state, offset: first });
        self.inputs.clone_from(&batch.inputs);
        self.last = Batch { changes: Vec::new(), ..batch };
    }

    fn cuts(&mut self, offset: u64, batch: &Batch) {
        if !batch.cuts.is_empty() {
            self.check(batch.changes.is_empty() && batch.forget_before == 0, offset, "I10: a cut that changes state");
            self.check(!self.owes, offset, "I10: cut before what is owed was sent");
        }
        self.owes = false;
        let cut =
            |savepoint: &u64| CutTold { savepoint: *savepoint, batch: batch.number, inputs: batch.inputs.clone() };
        self.story.cuts.extend(batch.cuts.iter().map(cut));
    }

    fn fold(&mut self, offset: u64, batch: &Batch) {
        if batch.forget_before > 0 {
            let old = |key: &StateKey| key.period().is_some_and(|period| period < batch.forget_before);
            let gone: Vec<StateKey> = self.story.state.keys().filter(|key| old(key)).cloned().collect();
            for key in gone {
                self.put(&key, None);
            }
        }
        for change in changes::read(&batch.changes) {
            let Ok(change) = change else { return self.check(false, offset, "I4: cut changes") };
            let key = StateKey::from_bytes(change.key);
            let before = self.story.state.get(&key).map_or(0, |value| entry_hash(change.key, value));
            self.check(before == change.before, offset, "I5: a change builds on another value than the log's");
            self.put(&key, change.value);
        }
    }

    fn put(&mut self, key: &StateKey, value: Option<&[u8]>) {
        let hash = |value: &[u8]| entry_hash(key.as_bytes(), value);
        let before = match value {
            Some(value) => self.story.state.insert(key.clone(), value.to_vec()),
            None => self.story.state.remove(key),
        };
        let (before, after) = (before.map_or(0, |value| hash(&value)), value.map_or(0, hash));
        self.state = self.state.wrapping_add(after).wrapping_sub(before);
    }
}
