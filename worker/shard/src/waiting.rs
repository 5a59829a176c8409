//! What a shard has for other shards, and has not sent yet.
//!
//! A transaction holds back every reader of the partitions that it touched until it ends, and costs a marker in each of them. So a batch writes to a bounded
//! number of partitions of the exchange. Frames for others wait: they are state of the shard, committed in the changelog with the batch that made them (I1),
//! and the next batches send them, those that wait longest first. Messages to one partition leave in the order in which they were made, whatever waits: a
//! partition whose frames wait gets nothing else before them.
//!
//! Only whole queues are sent. So that they stay short, a shard reads no inputs while more than a bound of bytes waits; each batch then sends at least one queue.
//!
//! ```text
//! key:    the shard's first group, tenant "*" (no tenant's name), kind 7, partition (u32 BE), number (u64 BE, ascending)
//! value:  the frame
//! ```

use crate::ShardError;
use crate::changes::{Changes, Totals};
use crate::mutant::{self, Mutant};
use crate::state::StateStore;
use millstream_model::id::entry_hash;
use millstream_model::key::{Kind, StateKey};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

const NOBODY: &str = "*";

#[derive(Clone, Debug)]
struct Frame {
    number: u64,
    bytes: Arc<[u8]>,
}

/// The queues of a shard, and what the running batch makes of them.
#[derive(Debug)]
pub(crate) struct Waiting {
    group: u16,
    /// Partitions that a batch writes to.
    most: usize,
    /// What waits, by partition; no queue is empty.
    queues: BTreeMap<u32, VecDeque<Frame>>,
    bytes: usize,
    next: u64,
    /// Partitions that the running batch writes to.
    open: BTreeSet<u32>,
    /// Frames of the running batch that are to wait.
    added: Vec<(u32, Frame)>,
    /// Committed and not flushed yet; `None`: sent.
    unflushed: BTreeMap<StateKey, Option<Arc<[u8]>>>,
}

impl Waiting {
    /// What waits in the store of a shard with this first key group.
    ///
    /// # Errors
    /// [`ShardError`].
    pub(crate) fn load(store: &dyn StateStore, group: u16, most: usize) -> Result<Waiting, ShardError> {
        let mut waiting = Waiting {
            group,
            most: most.max(1),
            queues: BTreeMap::new(),
            bytes: 0,
            next: 0,
            open: BTreeSet::new(),
            added: Vec::new(),
            unflushed: BTreeMap::new(),
        };
        let mut unreadable = None;
        let prefix = StateKey::new(group, NOBODY, Kind::Waiting, &[]);
        store.scan(prefix.as_bytes(), &mut |key, bytes| match key.parts().and_then(|(_, _, rest)| place(rest)) {
            Some((partition, number)) => waiting.push(partition, Frame { number, bytes: bytes.into() }),
            None => unreadable = Some(ShardError::Stopped(format!("{key:?} is not the key of a frame that waits"))),
        })?;
        unreadable.map_or(Ok(waiting), Err)
    }

    fn key(&self, partition: u32, number: u64) -> StateKey {
        let mut rest = [0; 12];
        let (first, second) = rest.split_at_mut(4);
        first.copy_from_slice(&partition.to_be_bytes());
        second.copy_from_slice(&number.to_be_bytes());
        StateKey::new(self.group, NOBODY, Kind::Waiting, &rest)
    }

    fn push(&mut self, partition: u32, frame: Frame) {
        self.bytes += frame.bytes.len();
        self.next = self.next.max(frame.number + 1);
        self.queues.entry(partition).or_default().push_back(frame);
    }

    /// Does anything wait?
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    /// How much waits, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A batch begins, and writes to some partitions already: gives what it is to send first, (partition, frame) in order.
    pub(crate) fn begin(&mut self, written: impl IntoIterator<Item = u32>) -> Vec<(u32, Arc<[u8]>)> {
        self.clear();
        self.open.extend(written);
        let mut oldest: Vec<(u64, u32)> =
            self.queues.iter().filter_map(|(partition, queue)| Some((queue.front()?.number, *partition))).collect();
        oldest.sort_unstable();
        for (_, partition) in oldest {
            self.admits(partition);
        }
        let of = |partition: &u32| {
            let queue = self.queues.get(partition).into_iter().flatten();
            let mut frames: Vec<_> = queue.map(|frame| (*partition, frame.bytes.clone())).collect();
            if mutant::is(Mutant::WaitingOvertaken) {
                frames.reverse();
            }
            frames
        };
        self.open.iter().flat_map(of).collect()
    }

    /// May the running batch write to this partition?
    pub(crate) fn admits(&mut self, partition: u32) -> bool {
        if self.open.contains(&partition) {
            return true;
        }
        // While more queues wait than a batch may write to, these take every place.
        self.open.len() < self.most && self.open.insert(partition)
    }

    /// A frame of the running batch is to wait.
    pub(crate) fn add(&mut self, partition: u32, frame: Vec<u8>) {
        let number = self.next + self.added.len() as u64;
        self.added.push((partition, Frame { number, bytes: frame.into() }));
    }

    /// Adds what the running batch has sent and kept to its changes.
    pub(crate) fn change(&self, changes: &mut Changes, totals: &mut Totals) {
        for (partition, frame) in self.sent() {
            let key = self.key(partition, frame.number);
            let before = entry_hash(key.as_bytes(), &frame.bytes);
            if changes.remove(&key, before).is_some() {
                totals.change(None, before, 0);
            }
        }
        for (partition, frame) in &self.added {
            let key = self.key(*partition, frame.number);
            if let Some(stored) = changes.put(&key, 0, |bytes| bytes.extend_from_slice(&frame.bytes)) {
                totals.change(None, 0, stored.hash);
            }
        }
    }

    fn sent(&self) -> impl Iterator<Item = (u32, &Frame)> {
        let of = |partition: &u32| Some((*partition, self.queues.get(partition)?));
        self.open.iter().filter_map(of).flat_map(|(partition, queue)| queue.iter().map(move |frame| (partition, frame)))
    }

    /// The batch was committed.
    pub(crate) fn commit(&mut self) {
        for partition in std::mem::take(&mut self.open) {
            for frame in self.queues.remove(&partition).into_iter().flatten() {
                self.bytes -= frame.bytes.len();
                let key = self.key(partition, frame.number);
                // What no flush has seen needs none.
                if self.unflushed.remove(&key).is_none() {
                    self.unflushed.insert(key, None);
                }
            }
        }
        for (partition, frame) in std::mem::take(&mut self.added) {
            self.unflushed.insert(self.key(partition, frame.number), Some(frame.bytes.clone()));
            self.push(partition, frame);
        }
    }

    /// The running batch was given up.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.added.clear();
    }

    /// What the next flush has to write; `None`: is gone.
    pub(crate) fn take_unflushed(&mut self) -> impl Iterator<Item = (StateKey, Option<Vec<u8>>)> {
        std::mem::take(&mut self.unflushed).into_iter().map(|(key, frame)| (key, frame.map(|bytes| bytes.to_vec())))
    }
}

/// Partition and number.
fn place(rest: &[u8]) -> Option<(u32, u64)> {
    let (partition, number) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*partition), u64::from_be_bytes(number.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changes;
    use crate::state::memory::MemoryState;
    use millstream_model::proto::StatePosition;

    /// One batch that makes a frame for each of these partitions; what it sends, in order.
    fn batch(waiting: &mut Waiting, totals: &mut Totals, made: &[(u32, &str)]) -> Vec<(u32, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut sent: Vec<(u32, String)> =
            waiting.begin([]).iter().map(|(partition, bytes)| (*partition, text(bytes))).collect();
        for (partition, frame) in made {
            match waiting.admits(*partition) {
                true => sent.push((*partition, (*frame).to_owned())),
                false => waiting.add(*partition, frame.as_bytes().to_vec()),
            }
        }
        let mut changes = Changes::default();
        waiting.change(&mut changes, totals);
        assert!(changes::read(&changes.into_block()).all(|change| change.is_ok()));
        waiting.commit();
        sent
    }

    fn flush(waiting: &mut Waiting, store: &MemoryState) {
        let entries: Vec<_> = waiting.take_unflushed().collect();
        let mut entries = entries.iter().map(|(key, value)| (key, value.as_deref()));
        store.write(None, &mut entries, &StatePosition::default()).unwrap();
    }

    fn sent(frames: &[(u32, &str)]) -> Vec<(u32, String)> {
        frames.iter().map(|(partition, frame)| (*partition, (*frame).to_owned())).collect()
    }

    #[test]
    fn a_batch_writes_to_so_many_partitions_and_what_waits_goes_first_and_in_order() {
        let (store, mut totals) = (MemoryState::default(), Totals::default());
        let mut waiting = Waiting::load(&store, 8, 2).unwrap();
        let made = [(1, "a"), (2, "b"), (3, "c"), (1, "d"), (4, "e"), (3, "f")];
        assert_eq!(batch(&mut waiting, &mut totals, &made), sent(&[(1, "a"), (2, "b"), (1, "d")]));
        assert_eq!(waiting.bytes(), 3);
        flush(&mut waiting, &store);
        // 3 and 4 have waited, so that there is no room for 5.
        assert_eq!(
            batch(&mut waiting, &mut totals, &[(5, "g"), (3, "h"), (4, "i")]),
            sent(&[(3, "c"), (3, "f"), (4, "e"), (3, "h"), (4, "i")])
        );
        assert_eq!(batch(&mut waiting, &mut totals, &[(1, "j"), (2, "k")]), sent(&[(5, "g"), (1, "j")]));
        flush(&mut waiting, &store);
        let mut again = Waiting::load(&store, 8, 2).unwrap();
        assert_eq!((again.bytes(), again.next), (waiting.bytes(), waiting.next));
        assert_eq!(batch(&mut again, &mut totals, &[]), sent(&[(2, "k")]));
        assert!(again.is_empty());
        flush(&mut again, &store);
        assert!(Waiting::load(&store, 8, 2).unwrap().is_empty());
        assert_eq!(totals, Totals::default(), "what went is out of the digest");
    }

    #[test]
    fn a_batch_that_is_given_up_has_sent_and_kept_nothing() {
        let mut totals = Totals::default();
        let mut waiting = Waiting::load(&MemoryState::default(), 8, 1).unwrap();
        batch(&mut waiting, &mut totals, &[(1, "a"), (2, "b")]);
        assert_eq!(waiting.begin([]).len(), 1);
        waiting.add(3, b"c".to_vec());
        waiting.clear();
        assert_eq!(batch(&mut waiting, &mut totals, &[]), sent(&[(2, "b")]));
        assert!(waiting.is_empty());
    }

    #[test]
    fn what_was_sent_before_a_flush_saw_it_is_never_written() {
        let mut totals = Totals::default();
        let mut waiting = Waiting::load(&MemoryState::default(), 8, 1).unwrap();
        batch(&mut waiting, &mut totals, &[(1, "a"), (2, "b")]);
        batch(&mut waiting, &mut totals, &[]);
        assert_eq!(waiting.take_unflushed().count(), 0);
    }
}
