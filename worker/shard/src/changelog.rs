//! The changelog: one record per batch, in parts when it is larger than a message, chained by digests.
//!
//! A part's digest covers the digest of the part before it and everything in it, so that a follower notices when something is missing, repeated or
//! changed (I6). Followers apply the parts of a batch as one: [`Assembler`] hands over a batch only when its last part has come. The
//! [`changes`](crate::changes) of a batch are cut into parts at any byte.

use crate::mutant::{self, Mutant};
use millstream_model::frame::{self, Content, FrameError};
use millstream_model::proto::{Batch, Changelog, Genesis, Ownership, Position, Release, changelog::Record};
use prost::Message as _;
use xxhash_rust::xxh3::Xxh3;

/// A part holds at most this many bytes of changes: below the log's usual limit of 1 MB for a message.
const PART_BYTES: usize = 900_000;

/// Why a changelog cannot be followed. The shard stops (I6).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ChangelogError {
    /// Not readable by this version.
    #[error("changelog at offset {offset}: {message}")]
    Unreadable {
        /// Where.
        offset: u64,
        /// What is wrong.
        message: String,
    },
    /// The digest chain is broken: something is missing or was changed.
    #[error("changelog at offset {offset}: digest chain broken, expected {expected:016x}, found {found:016x}")]
    Broken {
        /// Where.
        offset: u64,
        /// Digest of what was read so far.
        expected: u64,
        /// Digest that the record builds on.
        found: u64,
    },
}

/// What a batch's changelog record says besides its changes.
#[derive(Clone, Debug, Default)]
pub struct BatchHeader {
    /// Number of the batch, counting up by one.
    pub number: u64,
    /// Batch time, milliseconds since 1970.
    pub time_ms: u64,
    /// Epoch of the owner.
    pub epoch: u64,
    /// Newest stamp given.
    pub stamp_time_ms: u64,
    /// Where the next batch reads on.
    pub inputs: Vec<Position>,
    /// Digest of the state after the batch.
    pub state_digest: u64,
    /// What is kept by an earlier period than this goes, before the changes; 0: nothing.
    pub forget_before: u32,
    /// Savepoints that the shard is cut for here.
    pub cuts: Vec<u64>,
}

/// The records of a batch with this block of changes, and the digest after them.
pub fn records(header: &BatchHeader, block: Vec<u8>, previous: u64) -> (Vec<Changelog>, u64) {
    let parts = block.len().div_ceil(PART_BYTES).max(1);
    let pieces: Vec<Vec<u8>> =
        if parts == 1 { vec![block] } else { block.chunks(PART_BYTES).map(<[u8]>::to_vec).collect() };
    let mut digest = previous;
    let records = (1..)
        .zip(pieces)
        .map(|(part, changes)| {
            let is_last = part == parts as u32;
            let mut batch = Batch {
                number: header.number,
                time_ms: header.time_ms,
                epoch: header.epoch,
                inputs: if is_last { header.inputs.clone() } else { Vec::new() },
                part,
                parts: parts as u32,
                previous_digest: if mutant::is(Mutant::DigestNotChained) { 0 } else { digest },
                digest: 0,
                stamp_time_ms: header.stamp_time_ms,
                changes,
                state_digest: if is_last { header.state_digest } else { 0 },
                forget_before: header.forget_before,
                cuts: if is_last { header.cuts.clone() } else { Vec::new() },
            };
            batch.digest = digest_of(&batch);
            digest = batch.digest;
            Changelog { record: Some(Record::Batch(batch)) }
        })
        .collect();
    (records, digest)
}

/// The digest of a part: over everything in it, the previous digest included; but for savepoints, of which a former version knows nothing, and which say nothing about state.
fn digest_of(batch: &Batch) -> u64 {
    let mut hash = Xxh3::new();
    let numbers =
        [batch.previous_digest, batch.number, batch.time_ms, batch.epoch, batch.stamp_time_ms, batch.state_digest];
    for number in numbers {
        hash.update(&number.to_le_bytes());
    }
    for number in [batch.part, batch.parts, batch.forget_before, batch.inputs.len() as u32] {
        hash.update(&number.to_le_bytes());
    }
    for input in &batch.inputs {
        for text in [&input.topic, &input.topic_id] {
            hash.update(&(text.len() as u32).to_le_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(&input.partition.to_le_bytes());
        hash.update(&input.offset.to_le_bytes());
    }
    hash.update(&batch.changes);
    hash.digest().max(1)
}

/// The frame of one changelog record.
pub fn encode(record: &Changelog) -> Vec<u8> {
    frame::single(Content::Changelog, record)
}

/// Something complete that a follower read.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// The first record of a changelog.
    Genesis(Genesis),
    /// Who may write from here on.
    Ownership(Ownership),
    /// Nobody writes any more but the client that is named.
    Release(Release),
    /// A batch, all its parts in one.
    Batch(Batch),
    /// The last of the batches that were known already.
    Met,
}

/// Puts the parts of batches together and checks the chain.
#[derive(Debug, Default)]
pub struct Assembler {
    /// Digest after the last part read.
    digest: u64,
    /// Batches up to this number are known already and skipped.
    known: u64,
    /// The digest of the last of them.
    at_known: Option<u64>,
    open: Option<Batch>,
}

impl Assembler {
    /// Reads on after the batch `number` with `digest` (0, 0: from the start). Earlier batches may come again.
    pub fn after(number: u64, digest: u64) -> Assembler {
        Assembler { digest, known: number, at_known: (number > 0).then_some(digest), open: None }
    }

    /// Is it in the middle of a batch?
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Reads the message at `offset`; gives what is complete with it.
    ///
    /// # Errors
    /// [`ChangelogError`].
    pub fn read(&mut self, offset: u64, payload: &[u8]) -> Result<Vec<Step>, ChangelogError> {
        let unreadable = |message: String| ChangelogError::Unreadable { offset, message };
        let framed = |error: FrameError| unreadable(error.to_string());
        let mut steps = Vec::new();
        for record in frame::read(payload, Content::Changelog).map_err(framed)? {
            let record = Changelog::decode(record.map_err(framed)?).map_err(|error| unreadable(error.to_string()))?;
            match record.record {
                Some(Record::Genesis(genesis)) => steps.push(Step::Genesis(genesis)),
                Some(Record::Ownership(ownership)) => steps.push(Step::Ownership(ownership)),
                Some(Record::Release(release)) => steps.push(Step::Release(release)),
                Some(Record::Batch(batch)) => steps.extend(self.part(offset, batch)?),
                None => return Err(unreadable("a kind of record that this version does not know; upgrade it".into())),
            }
        }
        Ok(steps)
    }

    fn part(&mut self, offset: u64, batch: Batch) -> Result<Option<Step>, ChangelogError> {
        let broken = |expected, found| Err(ChangelogError::Broken { offset, expected, found });
        if batch.number <= self.known {
            // The last of those that are known must be the one that was known.
            let is_last = batch.number == self.known && batch.part == batch.parts && self.open.is_none();
            let differs = is_last && self.at_known.is_some_and(|digest| digest != batch.digest);
            if differs {
                return broken(self.at_known.unwrap_or_default(), batch.digest);
            }
            return Ok(is_last.then_some(Step::Met));
        }
        if batch.previous_digest != self.digest && !mutant::is(Mutant::DigestNotChained) {
            return broken(self.digest, batch.previous_digest);
        }
        let computed = digest_of(&batch);
        if computed != batch.digest {
            return broken(computed, batch.digest);
        }
        self.digest = batch.digest;
        let (part, parts) = (batch.part, batch.parts);
        let whole = match self.open.take() {
            None => batch,
            Some(mut open) => {
                open.changes.extend_from_slice(&batch.changes);
                Batch { changes: open.changes, ..batch }
            }
        };
        if part == parts || mutant::is(Mutant::HalfBatchFollowed) {
            return Ok(Some(Step::Batch(whole)));
        }
        self.open = Some(whole);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(number: u64) -> BatchHeader {
        let inputs = vec![Position { topic: "in".into(), partition: 0, offset: number * 10, ..Position::default() }];
        BatchHeader { number, time_ms: number, epoch: 1, inputs, state_digest: number, ..BatchHeader::default() }
    }

    fn follow(records: &[Changelog], assembler: &mut Assembler) -> Result<Vec<Step>, ChangelogError> {
        let mut steps = Vec::new();
        for (offset, record) in (0..).zip(records) {
            steps.extend(assembler.read(offset, &encode(record))?);
        }
        Ok(steps)
    }

    #[test]
    fn a_batch_larger_than_a_message_comes_back_as_one() {
        let block: Vec<u8> = (0..2_500_000u32).map(|n| (n % 251) as u8).collect();
        let (records, digest) = records(&header(1), block.clone(), 0);
        assert_eq!(records.len(), 3);
        assert!(records.iter().all(|record| encode(record).len() < 1_000_000));
        let mut assembler = Assembler::default();
        let first_two = follow(&records[..2], &mut assembler).unwrap();
        assert!(first_two.is_empty(), "half a batch is nothing");
        let steps = follow(&records[2..], &mut assembler).unwrap();
        let [Step::Batch(batch)] = &steps[..] else { panic!("{steps:?}") };
        assert!(batch.changes == block && batch.digest == digest && batch.state_digest == 1);
        assert_eq!(batch.inputs, header(1).inputs);
    }

    #[test]
    fn what_is_missing_repeated_or_changed_breaks_the_chain() {
        let (first, digest) = records(&header(1), vec![1; 10], 0);
        let (second, _) = records(&header(2), vec![2; 10], digest);
        let all = [first.clone(), second.clone()].concat();
        assert_eq!(follow(&all, &mut Assembler::default()).unwrap().len(), 2);
        let broken = |records: &[Changelog]| {
            matches!(follow(records, &mut Assembler::default()), Err(ChangelogError::Broken { .. }))
        };
        assert!(broken(&second), "missing");
        assert!(broken(&[first.clone(), first.clone()].concat()), "repeated");
        type Damage = fn(&mut Batch);
        let damages: [Damage; 5] = [
            |batch| batch.changes[3] ^= 1,
            |batch| batch.inputs[0].offset += 1,
            |batch| batch.inputs.clear(),
            |batch| batch.state_digest += 1,
            |batch| batch.forget_before = 9,
        ];
        for damage in damages {
            let mut changed = first.clone();
            let Some(Record::Batch(batch)) = &mut changed[0].record else { panic!() };
            damage(batch);
            assert!(broken(&changed), "changed");
        }
    }

    #[test]
    fn what_is_known_already_is_skipped_and_must_be_what_was_known() {
        let (first, digest) = records(&header(1), vec![1; 10], 0);
        let (second, after) = records(&header(2), vec![2; 10], digest);
        let (other, _) = records(&header(2), vec![3; 10], digest);
        let known = follow(&[first.clone(), second.clone()].concat(), &mut Assembler::after(2, after));
        assert_eq!(known, Ok(vec![Step::Met]), "of those that are known the last one is told");
        let broken = follow(&[first, other].concat(), &mut Assembler::after(2, after));
        assert!(matches!(broken, Err(ChangelogError::Broken { .. })), "{broken:?}");
        assert_eq!(follow(&second, &mut Assembler::after(1, digest)).map(|steps| steps.len()), Ok(1));
    }
}
