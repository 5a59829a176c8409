//! Whether the shards of workers that leave get any further: what moves, by the clock of whoever looks.
//!
//! A move takes as long as it needs while it gets further: a shard has left, a standby is less far behind than ever, a shard is being handed over, another worker is tried. What has not got further
//! for [`PATIENCE_MS`] may never do so, because what waits for it is what would mend it: a worker that has the former password of Kafka keeps its connections and gets no new one, so that it is alive
//! and takes nothing. Then nobody waits any more: the Pod is replaced with its shards, which come back to it or go to its successors.
//!
//! Each step counts once, so that what goes back and forth comes to an end, too. What was seen is forgotten with the operator, and when nobody could look for a while; the time counts anew then.

use crate::fleet::{Fleet, Shard};
use millstream_plan::plan::ShardId;
use millstream_plan::planner::{Move, Step};
use std::collections::{BTreeMap, BTreeSet};

/// Longer than anything takes that goes by itself: a standby that cannot open a shard gives way to another after 30 s, a handoff that hangs is ended after 5 s, a broker is elected within 30 s.
pub const PATIENCE_MS: u64 = 120_000;

/// Who did not look for so long knows nothing of the time between.
const GAP_MS: u64 = 10_000;

/// What was seen of workers that leave.
#[derive(Debug, Default)]
pub struct Departures {
    of: BTreeMap<String, Departure>,
    looked_ms: u64,
}

#[derive(Debug)]
struct Departure {
    /// When it got further last.
    since_ms: u64,
    /// The fewest shards that it had.
    held: usize,
    /// The nearest that each move has come to its end, by shard and who is to get it.
    nearest: BTreeMap<(ShardId, String), Distance>,
    /// Stays so: a Pod that is on its way out must not be kept.
    is_stalled: bool,
}

/// To the end of a move: steps, then changelog messages.
type Distance = (u8, u64);

fn distance(step: Step) -> Distance {
    match step {
        Step::HandingOver => (0, 0),
        Step::CatchingUp { lag: Some(lag) } => (1, lag),
        Step::CatchingUp { lag: None } => (2, 0),
        Step::Waiting => (3, 0),
    }
}

impl Departures {
    /// Looks at what moves; those of the workers that leave whose shards do not get any further.
    pub fn look(&mut self, leaving: &BTreeSet<String>, fleet: &Fleet, moves: &[Move], now_ms: u64) -> BTreeSet<String> {
        if now_ms.saturating_sub(self.looked_ms) > GAP_MS {
            self.of.clear();
        }
        self.looked_ms = now_ms;
        self.of.retain(|worker, _| leaving.contains(worker) && fleet.holds(worker));
        for worker in leaving.iter().filter(|worker| fleet.holds(worker)) {
            let held = held(fleet, worker);
            let departure = self.of.entry(worker.clone()).or_insert_with(|| Departure::new(held, now_ms));
            departure.look(held, moves.iter().filter(|it| it.from == *worker), now_ms);
        }
        self.of.iter().filter(|(_, departure)| departure.is_stalled).map(|(worker, _)| worker.clone()).collect()
    }
}

/// The shards that a worker has or is to get.
fn held(fleet: &Fleet, worker: &str) -> usize {
    let is_its = |shard: &&Shard| shard.owner.as_deref() == Some(worker) || shard.planned == worker;
    fleet.shards.values().filter(is_its).count()
}

impl Departure {
    fn new(held: usize, now_ms: u64) -> Departure {
        Departure { since_ms: now_ms, held, nearest: BTreeMap::new(), is_stalled: false }
    }

    fn look<'a>(&mut self, held: usize, moves: impl Iterator<Item = &'a Move>, now_ms: u64) {
        let mut is_further = held < self.held;
        self.held = self.held.min(held);
        for it in moves {
            let (key, now) = ((it.shard.clone(), it.to.clone()), distance(it.step));
            if self.nearest.get(&key).is_none_or(|nearest| now < *nearest) {
                self.nearest.insert(key, now);
                is_further = true;
            }
        }
        if is_further {
            self.since_ms = now_ms;
        }
        self.is_stalled |= now_ms.saturating_sub(self.since_ms) >= PATIENCE_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_plan::planner::Reason;

    const SECOND: u64 = 1_000;

    /// Two shards of reaction, the first worker of which leaves; it is looked at every second.
    struct Scene {
        departures: Departures,
        fleet: Fleet,
        now_ms: u64,
    }

    impl Scene {
        fn new() -> Scene {
            let mut scene = Scene { departures: Departures::default(), fleet: Fleet::default(), now_ms: 0 };
            scene.fleet.alive = ["r-0", "r-1"].map(str::to_owned).into();
            (0..2).for_each(|shard| scene.owned(shard, "r-1"));
            scene
        }

        fn owned(&mut self, shard: u32, worker: &str) {
            let it = Shard { planned: worker.to_owned(), owner: Some(worker.to_owned()), ..Shard::default() };
            self.fleet.shards.insert(ShardId::new("reaction", shard), it);
        }

        /// Whether it is given up after so many seconds, in each of which a shard moves so; the first second in which it is.
        fn given_up(&mut self, seconds: u64, step: impl Fn(u64) -> Step) -> Option<u64> {
            let leaving = BTreeSet::from(["r-1".to_owned()]);
            (0..seconds).find(|second| {
                let (from, to) = ("r-1".to_owned(), "r-0".to_owned());
                let shard = ShardId::new("reaction", 0);
                let moves = [Move { shard, from, to, reason: Reason::Leaving, step: step(*second) }];
                self.now_ms += SECOND;
                let stalled = self.departures.look(&leaving, &self.fleet, &moves, self.now_ms);
                assert!(stalled.is_subset(&leaving), "{stalled:?}");
                !stalled.is_empty()
            })
        }
    }

    #[test]
    fn a_worker_whose_shards_nobody_takes_is_given_up_after_two_minutes() {
        // Its heir is named, and never prepared: it is alive, and gets no new connection.
        assert_eq!(Scene::new().given_up(500, |_| Step::HandingOver), Some(120));
        let mut scene = Scene::new();
        assert_eq!(scene.given_up(500, |_| Step::CatchingUp { lag: None }), Some(120));
        // It stays so, whatever moves now: its Pod is on its way out.
        scene.owned(0, "r-0");
        assert_eq!(scene.given_up(1, |_| Step::HandingOver), Some(0));
        scene.fleet.alive.remove("r-1");
        assert_eq!(scene.given_up(1, |_| Step::HandingOver), None, "it is gone");
    }

    #[test]
    fn a_move_that_gets_further_takes_as_long_as_it_needs() {
        let mut scene = Scene::new();
        assert_eq!(scene.given_up(1_000, |second| Step::CatchingUp { lag: Some(50_000 - second) }), None);
        // At the end it gets no further.
        assert_eq!(scene.given_up(500, |_| Step::CatchingUp { lag: Some(1_000) }), Some(120));
        // One after the other.
        let mut scene = Scene::new();
        assert_eq!(scene.given_up(110, |_| Step::HandingOver), None);
        scene.owned(0, "r-0");
        assert_eq!(scene.given_up(500, |_| Step::HandingOver), Some(120));
    }

    #[test]
    fn what_goes_back_and_forth_comes_to_an_end() {
        let mut scene = Scene::new();
        // A standby that keeps up, and never catches up.
        assert_eq!(scene.given_up(500, |second| Step::CatchingUp { lag: Some(50 + second % 7) }), Some(120));
    }

    #[test]
    fn time_in_which_nobody_could_look_does_not_count() {
        let mut scene = Scene::new();
        assert_eq!(scene.given_up(119, |_| Step::HandingOver), None);
        scene.now_ms += GAP_MS;
        assert_eq!(scene.given_up(500, |_| Step::HandingOver), Some(120));
    }
}
