//! How many documents one bulk write has.
//!
//! A store that does not answer within the deadline goes on with the write all the same, and the repetition then contends with it: with bulks that are too large for a slow
//! store, nothing ever gets through in time. So a bulk that mostly has to be repeated halves the next ones, down to a few documents, and each one that gets through makes
//! the next a quarter larger, up to the bound.

use super::writers::Outcomes;
use millstream_stages::reaction::Written;

/// The fewest documents of a bulk.
const LEAST: usize = 8;
/// After so many bulks in turn of which nothing much got through, the store has a condition.
const STRUGGLING: u32 = 3;

/// The size of bulks, by what became of the ones before.
#[derive(Debug)]
pub(super) struct Pace {
    bulk: usize,
    most: usize,
    failed: u32,
}

impl Pace {
    /// At most so many documents.
    pub(super) fn new(most: usize) -> Pace {
        Pace { bulk: most, most, failed: 0 }
    }

    /// Documents of the next bulk.
    pub(super) fn bulk(&self) -> usize {
        self.bulk
    }

    /// Notes what became of a bulk; gives why the store struggles, if it does.
    pub(super) fn note(&mut self, outcomes: &Outcomes) -> Option<String> {
        let why = |written: &Written| match written {
            Written::Retry(why) => Some(why.clone()),
            _ => None,
        };
        let mut retried = outcomes.iter().filter_map(|(_, written)| why(written));
        let first = retried.next();
        if 2 * (retried.count() + usize::from(first.is_some())) <= outcomes.len() {
            self.failed = 0;
            self.bulk = (self.bulk + self.bulk / 4 + 1).min(self.most);
            return None;
        }
        self.failed = self.failed.saturating_add(1);
        self.bulk = (self.bulk / 2).max(LEAST.min(self.most));
        first.filter(|_| self.failed >= STRUGGLING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_stages::reaction::DocumentKey;

    fn outcomes(count: usize, written: &Written) -> Outcomes {
        let key =
            |number: usize| DocumentKey { collection: "users".into(), tenant: "t".into(), id: number.to_string() };
        (0..count).map(|number| (key(number), written.clone())).collect()
    }

    #[test]
    fn bulks_shrink_while_nothing_gets_through_and_grow_again() {
        let mut pace = Pace::new(500);
        let late = Written::Retry("time-out".into());
        let said: Vec<_> = (0..8).map(|_| pace.note(&outcomes(pace.bulk(), &late))).collect();
        assert_eq!(pace.bulk(), LEAST);
        assert_eq!(said.iter().filter(|why| why.is_some()).count(), 6, "from the third on: {said:?}");
        assert_eq!(pace.note(&outcomes(8, &Written::Done)), None);
        assert!(pace.bulk() > LEAST);
        for _ in 0..30 {
            pace.note(&outcomes(pace.bulk(), &Written::Done));
        }
        assert_eq!(pace.bulk(), 500);
    }

    #[test]
    fn a_few_repetitions_are_no_reason_to_shrink() {
        let mut pace = Pace::new(100);
        let mut mixed = outcomes(60, &Written::Done);
        mixed.extend(outcomes(40, &Written::Retry("conflict".into())));
        assert_eq!(pace.note(&mixed), None);
        assert_eq!(pace.bulk(), 100);
    }
}
