//! What a shard's troubles say about the process that has it: whether it is ready (`/readyz`).
//!
//! What is or may be its own fault (its disk, its state, a transaction of which nobody knows what became) makes it unready, at once or after a minute; what is not (a store that others serve, and that is lost) does not: every process would be unready at
//! the same time, and to evict Pods, or to send requests elsewhere, would help nobody. A shard that has never fared well here is no such case as long as the stores answer: then it
//! may be this process's permissions.

use super::desk::Condition;
use crate::admin::Health;
use std::time::{Duration, Instant};

/// A follower that is further behind, in messages of its changelog, would take long to take over: its process is not ready.
pub(super) const FOLLOWS_WITHIN: u64 = 10_000;
/// A shard that has worked, and has failed for so long since, makes its process unready. Whoever takes over does so within seconds; what is opened again once is not
/// worth a Pod's endpoints.
const REOPENS_WITHIN: Duration = Duration::from_secs(60);

/// The stores that a shard needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stores {
    /// None of them is this process's.
    pub are_servers: bool,
    /// One that is not has answered once, and does not now.
    pub are_lost: bool,
}

/// What a shard has shown here since it was given to this process.
#[derive(Debug, Default)]
pub(super) struct Fitness {
    /// It was owned, and has worked.
    has_worked: bool,
    /// That, or it was followed.
    fared_well: bool,
    failure: Failure,
}

/// For how long it has not worked, for which nobody else is at fault.
#[derive(Debug, Default)]
struct Failure {
    /// In attempts before the newest trouble of somebody else, or before it was followed.
    before: Duration,
    since: Option<Instant>,
    /// It is followed since then.
    follows_since: Option<Instant>,
}

impl Failure {
    fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
        self.follows_since = None;
    }

    /// It may be followed for a moment between two failures: only after as long as it may fail nothing is left of them.
    fn follows(&mut self, now: Instant) {
        self.pause(now);
        let since = *self.follows_since.get_or_insert(now);
        if now.saturating_duration_since(since) > REOPENS_WITHIN {
            self.before = Duration::ZERO;
        }
    }

    /// What comes now is somebody else's.
    fn pause(&mut self, now: Instant) {
        self.before = self.lasted(now);
        self.since = None;
    }

    fn lasted(&self, now: Instant) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn is_long(&self, now: Instant) -> bool {
        self.lasted(now) > REOPENS_WITHIN
    }
}

impl Fitness {
    /// From now on it fares so.
    pub(super) fn note(&mut self, condition: &Condition, now: Instant) {
        match condition {
            Condition::Following => self.failure.follows(now),
            Condition::Away(_) => self.failure.pause(now),
            Condition::Closed => *self = Fitness::default(),
            Condition::Retrying(_) | Condition::InDoubt(_) | Condition::Stopped(_) => self.failure.begin(now),
            Condition::Opening | Condition::Running | Condition::Hampered(_) => {}
        }
    }

    /// It has followed what its owner writes, or has opened all that its owner needs. (To have nothing open is no feat.)
    pub(super) fn follows(&mut self) {
        self.fared_well = true;
    }

    /// It does what its owner is for.
    pub(super) fn works(&mut self) {
        *self = Fitness { has_worked: true, fared_well: true, failure: Failure::default() };
    }

    /// Of a shard that fares so; `behind`: it is followed, and so many messages are left.
    pub(super) fn health(&self, condition: &Condition, behind: Option<u64>, stores: Stores, now: Instant) -> Health {
        let fails_long = self.failure.is_long(now);
        let unless = |is_excused: bool, why: String| match is_excused {
            true => Health::Impaired(why),
            false => Health::NotReady(why),
        };
        match condition {
            Condition::Following | Condition::Hampered(_) if behind.is_some_and(|lag| lag > FOLLOWS_WITHIN) => {
                Health::NotReady(format!("follows, {} messages behind", behind.unwrap_or_default()))
            }
            Condition::Running if fails_long => Health::NotReady("is opened again and again".into()),
            Condition::Running | Condition::Following | Condition::Closed => Health::Well,
            Condition::Hampered(why) => Health::Impaired(why.clone()),
            Condition::Opening => Health::NotReady("is being opened".into()),
            Condition::Away(why) => {
                let excused = stores.are_lost || (stores.are_servers && self.fared_well);
                unless(excused, format!("is opened again: {why}"))
            }
            Condition::Retrying(why) | Condition::InDoubt(why) => {
                let excused = (stores.are_lost && self.fared_well) || (self.has_worked && !fails_long);
                unless(excused, format!("is opened again: {why}"))
            }
            Condition::Stopped(why) => Health::NotReady(format!("stopped: {why}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: Stores = Stores { are_servers: true, are_lost: false };
    const LOST: Stores = Stores { are_servers: true, are_lost: true };
    const OWN: Stores = Stores { are_servers: false, are_lost: false };

    /// A shard whose time goes on as it is told.
    struct Shard {
        fitness: Fitness,
        condition: Condition,
        now: Instant,
    }

    impl Shard {
        fn new() -> Shard {
            Shard { fitness: Fitness::default(), condition: Condition::Opening, now: Instant::now() }
        }

        fn fares(&mut self, condition: Condition) {
            self.fitness.note(&condition, self.now);
            self.condition = condition;
        }

        fn away(&mut self) {
            self.fares(Condition::Away("nobody listens".into()));
        }

        fn fails(&mut self) {
            self.fares(Condition::Retrying("no space left".into()));
        }

        fn works(&mut self) {
            self.fitness.works();
            self.fares(Condition::Running);
        }

        fn wait(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }

        fn health(&self, stores: Stores) -> Health {
            self.fitness.health(&self.condition, None, stores, self.now)
        }

        fn is_ready(&self, stores: Stores) -> bool {
            !matches!(self.health(stores), Health::NotReady(_))
        }
    }

    #[test]
    fn what_has_fared_well_stays_ready_while_log_or_documents_are_away() {
        let mut shard = Shard::new();
        assert_eq!(shard.health(SERVERS), Health::NotReady("is being opened".into()));
        shard.away();
        assert!(!shard.is_ready(SERVERS), "the stores answer: it may be this process that may not use them");
        assert!(shard.is_ready(LOST), "it was given to it while a store was away");
        shard.works();
        assert_eq!(shard.health(SERVERS), Health::Well);
        shard.away();
        shard.wait(3600);
        assert_eq!(shard.health(SERVERS), Health::Impaired("is opened again: nobody listens".into()));
        assert!(!shard.is_ready(OWN), "it is its own store that is broken");
        assert!(shard.is_ready(Stores { are_servers: false, are_lost: true }), "one of them is not its own");
        shard.fares(Condition::Closed);
        assert_eq!(shard.health(SERVERS), Health::Well);
        shard.away();
        assert!(!shard.is_ready(SERVERS), "it was given away meanwhile");
        shard.fares(Condition::Following);
        shard.away();
        assert!(!shard.is_ready(SERVERS), "nothing was opened");
        shard.fitness.follows();
        assert!(shard.is_ready(SERVERS), "it was followed, and is to be taken over");
        shard.fares(Condition::Stopped("a gap".into()));
        assert!(!shard.is_ready(LOST));
    }

    #[test]
    fn what_is_at_fault_itself_is_not_ready_after_a_minute() {
        let mut shard = Shard::new();
        shard.fails();
        assert!(!shard.is_ready(LOST), "it has never worked");
        shard.works();
        shard.fails();
        assert!(shard.is_ready(SERVERS));
        shard.wait(50);
        // It opens, and nothing has come yet: that is no work. Nor does time in which a store was away count, on either side.
        shard.fares(Condition::Running);
        shard.away();
        shard.wait(3600);
        shard.fails();
        shard.wait(10);
        assert!(shard.is_ready(SERVERS));
        shard.wait(1);
        assert!(!shard.is_ready(SERVERS));
        shard.fares(Condition::Running);
        assert_eq!(shard.health(SERVERS), Health::NotReady("is opened again and again".into()));
        shard.works();
        assert_eq!(shard.health(SERVERS), Health::Well);
        // A store that is lost may be why.
        shard.fails();
        shard.wait(61);
        assert!(shard.is_ready(LOST) && !shard.is_ready(SERVERS));
        // One that was owned, and is followed now, fails again and again.
        shard.works();
        for _ in 0..7 {
            shard.fares(Condition::Following);
            assert!(shard.is_ready(SERVERS));
            shard.fails();
            shard.wait(10);
        }
        assert!(!shard.is_ready(SERVERS));
        shard.fares(Condition::Following);
        shard.wait(61);
        shard.fares(Condition::Following);
        shard.fails();
        assert!(shard.is_ready(SERVERS), "it was followed for long");
        // Who has only followed it may not be able to own it.
        let mut follower = Shard::new();
        follower.fares(Condition::Following);
        follower.fails();
        assert!(!follower.is_ready(SERVERS));
    }
}
