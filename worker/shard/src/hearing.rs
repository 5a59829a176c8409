//! Does a reader hear what it reads?
//!
//! A client may stop to ask for a partition, for ever, and no call fails: librdkafka, for one, can wait without end for the epoch of a leader after requests to a broker that went away timed
//! out (its issue 4492). Then a shard stands still, a standby falls behind, or a gateway goes on taking a key that was revoked. So whoever has such a reader compares now and then how far it
//! is with the end that readers see, which another client asks for.
//!
//! A reader is *deaf* in a partition when for [`PATIENCE_MS`] it has come no further there although readers see more, and has looked: at least two polls took all that had come meanwhile, so that
//! one began after there was something. What comes from its other partitions says nothing about this one. One that is paused, or has more than it takes, does not look. While the log does not
//! say where a partition ends, nothing is known, and patience begins anew.
//!
//! It is opened anew where it is, with another client ([`Consumer::retire`](crate::log::Consumer::retire)): nothing is lost or read twice by that. If that did not help, the next time takes
//! twice as long, up to [`MOST_PATIENCE_MS`]: then it is not the client's fault.

use crate::log::{Log, TopicPartition};
use std::collections::BTreeMap;

/// How long a reader may hear nothing of what there is: longer than a client takes to find the new leader of a partition.
pub const PATIENCE_MS: u64 = 30_000;
/// Patience with one whom it did not help to be opened anew.
pub const MOST_PATIENCE_MS: u64 = 16 * PATIENCE_MS;
/// Polls that took all that had come, so that one of them began after there was something.
const LOOKS: u64 = 2;

/// What a reader says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listened {
    /// Up to where each of its partitions was handed over, as [`positions`](crate::log::Consumer::positions) tell.
    pub read_to: Vec<(TopicPartition, u64)>,
    /// Polls that took all that had come, of whichever partition.
    pub looks: u64,
}

/// A partition that a reader does not hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deaf {
    /// Which.
    pub at: TopicPartition,
    /// Where the reader stands.
    pub read_to: u64,
    /// What readers see ends here.
    pub visible: u64,
    /// For so long, milliseconds.
    pub for_ms: u64,
}

impl std::fmt::Display for Deaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Deaf { at, read_to, visible, for_ms } = self;
        write!(
            f,
            "{at}: nothing was heard for {} s at offset {read_to}, though readers see up to {visible}",
            for_ms / 1_000
        )
    }
}

/// What is known of a partition that waits to be read.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    read_to: u64,
    /// It was read to here at most: who is opened anew may begin again before.
    most: u64,
    /// When it was seen first that there is more, milliseconds, and the looks by then.
    since: Option<(u64, u64)>,
    /// How often in a row it was found deaf here.
    times: u32,
}

/// What is known of one reader. Times are of a clock that need not be right, only go on.
#[derive(Clone, Debug, Default)]
pub struct Hearing(BTreeMap<TopicPartition, Waits>);

impl Hearing {
    /// Asks the log what readers see, and judges by it. An answer that does not come is no news.
    pub fn ask(&mut self, heard: &Listened, log: &dyn Log, now_ms: u64) -> Option<Deaf> {
        let of: Vec<TopicPartition> = heard.read_to.iter().map(|(at, _)| at.clone()).collect();
        let visible: Option<Vec<u64>> = log.ends(&of).ok().map(|ends| ends.iter().map(|ends| ends.visible).collect());
        self.look(heard, visible.as_deref(), now_ms)
    }

    /// Another reader begins: what the one before waited for says nothing, but how often it was in vain.
    pub fn begin(&mut self) {
        self.0.values_mut().for_each(|waits| waits.since = None);
    }

    /// The first partition that the reader does not hear, when readers see up to here now, in the order of `heard`; `None`: the log did not say. Who is told opens it anew.
    pub fn look(&mut self, heard: &Listened, visible: Option<&[u64]>, now_ms: u64) -> Option<Deaf> {
        for (at, waits) in &mut self.0 {
            if !heard.read_to.iter().any(|(of, _)| of == at) {
                waits.since = None;
            }
        }
        let mut found = None;
        for (place, (at, read_to)) in heard.read_to.iter().enumerate() {
            let visible = visible.and_then(|visible| visible.get(place)).copied();
            let waits = self.0.entry(at.clone()).or_default();
            if let Some(for_ms) = waits.look(*read_to, heard.looks, visible, now_ms) {
                let visible = visible.unwrap_or_default();
                found.get_or_insert(Deaf { at: at.clone(), read_to: *read_to, visible, for_ms });
            }
        }
        found
    }
}

impl Waits {
    /// For how long it was not heard, when that is for too long.
    fn look(&mut self, read_to: u64, looks: u64, visible: Option<u64>, now_ms: u64) -> Option<u64> {
        if read_to > self.most {
            (self.most, self.times) = (read_to, 0);
        }
        let is_still = std::mem::replace(&mut self.read_to, read_to) == read_to;
        let is_more = visible.is_some_and(|visible| visible > read_to);
        // Whoever has counted less than before is another reader, and a clock that was set back tells nothing.
        let since = self.since.filter(|(since_ms, before)| *since_ms <= now_ms && *before <= looks);
        self.since = since.filter(|_| is_still).or(Some((now_ms, looks))).filter(|_| is_more);
        let (since_ms, before) = self.since?;
        let for_ms = now_ms - since_ms;
        if for_ms < self.patience_ms() || looks < before.saturating_add(LOOKS) {
            return None;
        }
        (self.since, self.times) = (None, self.times + 1);
        Some(for_ms)
    }

    fn patience_ms(&self) -> u64 {
        PATIENCE_MS.saturating_mul(1 << self.times.min(16)).min(MOST_PATIENCE_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One partition, read up to here.
    fn heard(read_to: u64, looks: u64) -> Listened {
        Listened { read_to: vec![(TopicPartition::new("t", 0), read_to)], looks }
    }

    fn is_deaf(hearing: &mut Hearing, heard: &Listened, visible: u64, seconds: u64) -> bool {
        hearing.look(heard, Some(&[visible]), seconds * 1_000).is_some()
    }

    #[test]
    fn who_looks_and_hears_nothing_of_what_there_is_is_deaf() {
        let mut hearing = Hearing::default();
        assert!(!is_deaf(&mut hearing, &heard(10, 0), 11, 100));
        assert!(!is_deaf(&mut hearing, &heard(10, 9), 11, 129), "not for long enough");
        let deaf = hearing.look(&heard(10, 9), Some(&[12]), 130_000).unwrap();
        assert_eq!(deaf.to_string(), "t[0]: nothing was heard for 30 s at offset 10, though readers see up to 12");
        // What is done about it needs its time, too, and more each time.
        assert!(!is_deaf(&mut hearing, &heard(10, 99), 12, 131));
        assert!(!is_deaf(&mut hearing, &heard(10, 999), 12, 190));
        assert!(is_deaf(&mut hearing, &heard(10, 999), 12, 191));
        assert!(!is_deaf(&mut hearing, &heard(11, 1_000), 12, 192), "it heard something");
        assert!(is_deaf(&mut hearing, &heard(11, 1_100), 12, 222), "patience is as at first");
    }

    #[test]
    fn who_has_read_everything_or_goes_on_or_does_not_look_is_not() {
        let mut hearing = Hearing::default();
        for seconds in 0..200 {
            assert!(!is_deaf(&mut hearing, &heard(10, seconds * 10), 10, seconds), "there is nothing");
        }
        for seconds in 200..400 {
            assert!(!is_deaf(&mut hearing, &heard(seconds, seconds * 10), 1_000, seconds), "it goes on");
        }
        for seconds in 400..600 {
            assert!(!is_deaf(&mut hearing, &heard(400, 4_001), 1_000, seconds), "it does not look");
        }
        assert!(!is_deaf(&mut hearing, &heard(400, 4_002), 1_000, 600), "the poll may have begun before");
        assert!(is_deaf(&mut hearing, &heard(400, 4_003), 1_000, 601));
    }

    #[test]
    fn while_the_log_does_not_say_nothing_is_known() {
        let mut hearing = Hearing::default();
        assert!(!is_deaf(&mut hearing, &heard(10, 0), 11, 0));
        assert_eq!(hearing.look(&heard(10, 50), None, 29_000), None);
        assert!(!is_deaf(&mut hearing, &heard(10, 99), 11, 40));
        assert!(!is_deaf(&mut hearing, &heard(10, 200), 11, 69));
        assert!(is_deaf(&mut hearing, &heard(10, 200), 11, 70));
    }

    #[test]
    fn who_begins_again_before_and_comes_no_further_is_as_deaf_as_before() {
        let mut hearing = Hearing::default();
        assert!(!is_deaf(&mut hearing, &heard(10, 0), 11, 0));
        assert!(is_deaf(&mut hearing, &heard(10, 9), 11, 30));
        assert!(!is_deaf(&mut hearing, &heard(4, 0), 11, 31));
        // It reads nothing for a while.
        assert_eq!(hearing.look(&Listened::default(), Some(&[]), 40_000), None);
        assert!(!is_deaf(&mut hearing, &heard(10, 0), 11, 41));
        hearing.begin();
        assert!(!is_deaf(&mut hearing, &heard(10, 9), 11, 50));
        assert!(!is_deaf(&mut hearing, &heard(10, 99), 11, 109), "it was opened anew once, in vain");
        assert!(is_deaf(&mut hearing, &heard(10, 99), 11, 110));
    }

    #[test]
    fn a_clock_that_is_set_back_tells_nothing() {
        let mut hearing = Hearing::default();
        assert!(!is_deaf(&mut hearing, &heard(10, 0), 11, 1_000));
        assert!(!is_deaf(&mut hearing, &heard(10, 9), 11, 100));
        assert!(!is_deaf(&mut hearing, &heard(10, 99), 11, 129));
        assert!(is_deaf(&mut hearing, &heard(10, 99), 11, 130));
    }

    #[test]
    fn another_reader_of_the_same_has_its_own_time() {
        let mut hearing = Hearing::default();
        assert!(!is_deaf(&mut hearing, &heard(10, 70), 11, 0));
        assert!(!is_deaf(&mut hearing, &heard(10, 3), 11, 29));
        assert!(!is_deaf(&mut hearing, &heard(10, 90), 11, 58));
        assert!(is_deaf(&mut hearing, &heard(10, 90), 11, 59));
    }

    #[test]
    fn each_partition_counts_for_itself() {
        let mut hearing = Hearing::default();
        let both = |first, polls| Listened {
            read_to: vec![(TopicPartition::new("t", 0), first), (TopicPartition::new("u", 0), 5)],
            looks: polls,
        };
        assert_eq!(hearing.look(&both(1, 0), Some(&[100, 6]), 0), None);
        let deaf = hearing.look(&both(50, 10), Some(&[100, 6]), 30_000).unwrap();
        assert_eq!((&*deaf.at.topic, deaf.read_to), ("u", 5));
    }
}
