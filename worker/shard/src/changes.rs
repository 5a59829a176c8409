//! The changes of a batch: how they lie in the changelog, and what they do to the sums over a shard's state.
//!
//! ```text
//! change × n:  key length (u32 LE) | value length (u32 LE; 0xffffffff: deleted) | hash before (u64 LE; 0: absent) | key | value
//! ```
//! The owner writes each value once, straight into this block, which is what the changelog carries; a follower reads it without copying. A block is cut
//! into messages at any byte, so that no value is too large for a message.
//!
//! *Totals*: the state's digest is the wrapping sum of [`entry_hash`] over all entries, kept up to date from the hashes before and after; the part of it that belongs
//! to each period is kept too, since what is forgotten with its period is never read again. Owner and followers fold the same changes into
//! the same totals, and the owner's are in the changelog, so that a follower that comes to others knows at once that it folded something else. (That what lies in a local store
//! is what was folded is another question: only reading all of it answers that.)

use millstream_model::id::entry_hash;
use millstream_model::key::StateKey;
use millstream_model::proto::Period;
use std::collections::BTreeMap;

const HEADER: usize = 16;
const DELETED: u32 = u32::MAX;

/// Sums over a shard's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of all entries.
    pub digest: u64,
    /// Of those of each period.
    periods: BTreeMap<u32, u64>,
}

impl Totals {
    /// As a position holds them.
    pub fn of(digest: u64, periods: &[Period]) -> Totals {
        Totals { digest, periods: periods.iter().map(|period| (period.number, period.digest)).collect() }
    }

    /// The form that a position holds.
    pub fn periods(&self) -> Vec<Period> {
        self.periods.iter().map(|(&number, &digest)| Period { number, digest }).collect()
    }

    /// The periods by which anything is kept, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.periods.keys().copied()
    }

    /// Is anything kept by this period?
    pub fn has(&self, period: u32) -> bool {
        self.periods.contains_key(&period)
    }

    /// An entry changed; a hash of 0 means absent.
    pub fn change(&mut self, period: Option<u32>, before: u64, after: u64) {
        let moved = after.wrapping_sub(before);
        self.digest = self.digest.wrapping_add(moved);
        if let Some(period) = period {
            let sum = self.periods.entry(period).or_default();
            *sum = sum.wrapping_add(moved);
        }
    }

    /// What is kept by an earlier period than this is gone.
    pub fn forget_before(&mut self, period: u32) {
        let kept = self.periods.split_off(&period);
        let gone = std::mem::replace(&mut self.periods, kept);
        self.digest = gone.values().fold(self.digest, |digest, sum| digest.wrapping_sub(*sum));
    }
}

/// Changes being written.
#[derive(Debug, Default)]
pub struct Changes {
    block: Vec<u8>,
}

/// What a change made of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// [`entry_hash`]; 0: absent.
    pub hash: u64,
    /// Bytes of its value.
    pub size: usize,
}

impl Changes {
    /// With room for so many bytes: batches are about equally large, and a block that grows is copied each time.
    pub fn with_capacity(bytes: usize) -> Changes {
        Changes { block: Vec::with_capacity(bytes) }
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.block.len()
    }

    /// Adds the new value of a key, unless it equals the one before.
    pub fn put(&mut self, key: &StateKey, before: u64, encode: impl FnOnce(&mut Vec<u8>)) -> Option<Stored> {
        let start = self.block.len();
        let value_at = start + HEADER + key.as_bytes().len();
        self.header(key, before, DELETED);
        encode(&mut self.block);
        let value = self.block.get(value_at..).unwrap_or_default();
        let stored = Stored { hash: entry_hash(key.as_bytes(), value), size: value.len() };
        if stored.hash == before {
            self.block.truncate(start);
            return None;
        }
        if let Some(length) = self.block.get_mut(start + 4..start + 8) {
            length.copy_from_slice(&(stored.size as u32).to_le_bytes());
        }
        Some(stored)
    }

    /// Adds that a key is gone, unless it was not there.
    pub fn remove(&mut self, key: &StateKey, before: u64) -> Option<Stored> {
        if before == 0 {
            return None;
        }
        self.header(key, before, DELETED);
        Some(Stored { hash: 0, size: 0 })
    }

    fn header(&mut self, key: &StateKey, before: u64, value_length: u32) {
        let key = key.as_bytes();
        self.block.extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.block.extend_from_slice(&value_length.to_le_bytes());
        self.block.extend_from_slice(&before.to_le_bytes());
        self.block.extend_from_slice(key);
    }

    /// The block.
    pub fn into_block(self) -> Vec<u8> {
        self.block
    }
}

/// A change, borrowed from a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The changed key's bytes.
    pub key: &'a [u8],
    /// Its new value; `None`: deleted.
    pub value: Option<&'a [u8]>,
    /// Hash before, 0 when it was absent.
    pub before: u64,
}

/// The changes of a block, in their order; `Err` and the end when it is cut or damaged.
pub fn read(block: &[u8]) -> impl Iterator<Item = Result<Change<'_>, &'static str>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some((change, after)) = split(rest) else {
            rest = &[];
            return Some(Err("the changes of a batch are cut"));
        };
        rest = after;
        Some(Ok(change))
    })
}

fn split(bytes: &[u8]) -> Option<(Change<'_>, &[u8])> {
    let (key_length, rest) = bytes.split_first_chunk::<4>()?;
    let (value_length, rest) = rest.split_first_chunk::<4>()?;
    let (before, rest) = rest.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key_length) as usize)?;
    let before = u64::from_le_bytes(*before);
    match u32::from_le_bytes(*value_length) {
        DELETED => Some((Change { key, value: None, before }, rest)),
        length => {
            let (value, rest) = rest.split_at_checked(length as usize)?;
            Some((Change { key, value: Some(value), before }, rest))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::key::Kind;

    fn key(name: &str) -> StateKey {
        StateKey::new(1, "acme", Kind::Node, name.as_bytes())
    }

    #[test]
    fn a_block_gives_back_its_changes_and_what_is_equal_is_no_change() {
        let (a, b, c) = (key("a"), key("b"), key("c"));
        let mut changes = Changes::default();
        let stored = changes.put(&a, 0, |bytes| bytes.extend_from_slice(b"one")).unwrap();
        assert_eq!(stored, Stored { hash: entry_hash(a.as_bytes(), b"one"), size: 3 });
        assert_eq!(changes.put(&a, stored.hash, |bytes| bytes.extend_from_slice(b"one")), None);
        assert_eq!(changes.remove(&b, 7), Some(Stored { hash: 0, size: 0 }));
        assert_eq!(changes.remove(&b, 0), None);
        changes.put(&c, 9, |_| {}).unwrap();
        let block = changes.into_block();
        let change = |key, value, before| Ok(Change { key, value, before });
        let expected = [
            change(a.as_bytes(), Some(&b"one"[..]), 0),
            change(b.as_bytes(), None, 7),
            change(c.as_bytes(), Some(&b""[..]), 9),
        ];
        assert_eq!(read(&block).collect::<Vec<_>>(), expected);
        let vector: &[u8] = b"\x09\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\x01acme\0\x02aone";
        // docs/src/reference/frames.md prints the same bytes.
        assert_eq!(&block[..vector.len()], vector);
    }

    #[test]
    fn a_block_that_is_cut_anywhere_says_so() {
        let mut changes = Changes::default();
        changes.put(&key("a"), 0, |bytes| bytes.extend_from_slice(b"one"));
        let block = changes.into_block();
        for length in 1..block.len() {
            assert!(read(&block[..length]).any(|change| change.is_err()), "{length}");
        }
    }

    #[test]
    fn totals_come_back_to_what_they_were() {
        let mut totals = Totals::default();
        totals.change(None, 0, 5);
        let before = totals.clone();
        totals.change(Some(3), 0, 11);
        totals.change(Some(4), 0, 13);
        totals.change(Some(3), 11, 17);
        assert_eq!((totals.digest, totals.numbers().collect::<Vec<_>>()), (5 + 17 + 13, vec![3, 4]));
        assert_eq!(Totals::of(totals.digest, &totals.periods()), totals);
        totals.forget_before(4);
        assert_eq!(totals.digest, 5 + 13);
        totals.forget_before(9);
        assert_eq!(totals, before);
    }
}
