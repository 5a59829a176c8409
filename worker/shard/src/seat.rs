//! One shard in one process: closed, standby or owner, as its duty says.
//!
//! A seat is stepped by one thread. Each step looks at the newest [`Order`] and does one thing: a batch, a look at the changelog, or one change of place.
//!
//! | duty | closed | standby | owner |
//! |---|---|---|---|
//! | nothing | – | close | store, close |
//! | standby | open | follow; receive, if it was released to us; prepare, if told to | go on, unless another owns it at a higher epoch |
//! | own, take over | open, receive or take over | receive or take over | run a batch |
//! | release, no heir | open | follow; receive | run a batch |
//! | release to an heir | open | follow; receive | release, close |
//!
//! **An owner goes on until the log says otherwise** (I4): a duty is made from reports, which are late, so "somebody else has it" may be what was true before the
//! handoff to us. Only an error of the transaction, an order to give it away, or a report of a higher epoch ends an ownership.
//!
//! **A release goes first**: whoever is to take a shard over looks whether it was released to its client already; that client must go on, and a takeover would only
//! cost a second. After any error the seat is closed, its clients are dropped (ownership rule 6), and the next step opens it again.

use crate::checkpoint;
use crate::follower::{self, Moves};
use crate::hearing::{Hearing, Listened};
use crate::log::TopicPartition;
use crate::member::Order;
use crate::mutant::{self, Mutant};
use crate::ownership::{self, Mended};
use crate::runtime::{Environment, Limits, Report, Shard};
use crate::standby::{Received, Standby};
use crate::state::{StateStore, StoreError};
use crate::{ShardError, has_passed};
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::view::{Duty, Heir};
use millstream_stages::Stage;
use std::sync::Arc;
use std::time::Duration;

/// How long a standby waits for something new in its changelog; a handoff ends the wait, since it comes through there.
const FOLLOW: Duration = Duration::from_millis(100);
/// How often a standby asks how far behind it is: a question to the partition's leader.
const LAG_EVERY_MS: u64 = 500;

/// Makes a stage, at each opening.
pub type MakeStage<S> = Box<dyn Fn() -> S + Send>;
/// Opens the local store.
pub type OpenStore = Box<dyn Fn() -> Result<Arc<dyn StateStore>, StoreError> + Send>;

/// What a seat is made of.
pub struct Parts<S> {
    /// Name of the stage.
    pub name: &'static str,
    /// The shard.
    pub shard: u32,
    /// What it stands on.
    pub environment: Environment,
    /// Bounds of batches and memory.
    pub limits: Limits,
    /// The stage.
    pub make: MakeStage<S>,
    /// The local store.
    pub open_store: OpenStore,
    /// Told when something is read of the changelog: a step that reads much takes long, and does not hang.
    pub moves: Moves,
}

enum Place<S: Stage> {
    Closed,
    Standby(Box<Standby>),
    Owner(Box<Shard<S>>),
}

/// What a step did.
#[derive(Debug)]
pub enum Step {
    /// There was nothing to do: nobody need step this seat before it has another order.
    Idle,
    /// It looked into the changelog.
    Followed,
    /// It looked for input, and ran a batch if there was some.
    Batch(Option<Box<Report>>),
    /// It opened the shard as a standby.
    Opened,
    /// It owns the shard now.
    Acquired {
        /// True: by a handoff; false: by a takeover.
        by_handoff: bool,
        /// What was done about transactions that their coordinator had forgotten.
        mended: Mended,
    },
    /// It gave the shard to the heir.
    Released,
    /// It closed the shard.
    Closed,
}

/// One shard in one process.
pub struct Seat<S: Stage> {
    parts: Parts<S>,
    place: Place<S>,
    lag: u64,
    lag_noted_ms: u64,
    /// Of its standby.
    hearing: Hearing,
}

impl<S: Stage> Seat<S> {
    /// A closed seat.
    pub fn new(parts: Parts<S>) -> Seat<S> {
        Seat { parts, place: Place::Closed, lag: 0, lag_noted_ms: 0, hearing: Hearing::default() }
    }

    /// Does the next thing that the order asks for.
    ///
    /// # Errors
    /// [`ShardError`]: the seat is closed then, and may be stepped again after a moment.
    pub fn step(&mut self, order: &Order) -> Result<Step, ShardError> {
        let place = std::mem::replace(&mut self.place, Place::Closed);
        let (place, step) = match place {
            Place::Closed => self.closed(order)?,
            Place::Standby(standby) => self.standby(standby, order)?,
            Place::Owner(shard) => self.owner(shard, order)?,
        };
        self.place = place;
        Ok(step)
    }

    /// The owned shard.
    pub fn shard(&mut self) -> Option<&mut Shard<S>> {
        match &mut self.place {
            Place::Owner(shard) => Some(shard),
            _ => None,
        }
    }

    /// An owner reads on with another client, because this one does not hear its inputs.
    ///
    /// # Errors
    /// [`ShardError::Reopen`], [`ShardError::InDoubt`] or [`ShardError::Away`]: it goes on with the client that it has; after [`ShardError::Stopped`] the seat is closed.
    pub fn read_anew(&mut self) -> Result<(), ShardError> {
        let Place::Owner(shard) = &mut self.place else { return Ok(()) };
        let read = shard.read_anew();
        if matches!(read, Err(ShardError::Stopped(_))) {
            self.place = Place::Closed;
        }
        read
    }

    /// What will stop it if nobody acts, though it works or follows.
    pub fn trouble(&self) -> Option<&str> {
        match &self.place {
            Place::Closed => None,
            Place::Standby(standby) => standby.trouble(),
            Place::Owner(shard) => shard.trouble(),
        }
    }

    /// It follows, and its disk does not take it.
    pub fn hangs(&self) -> bool {
        matches!(&self.place, Place::Standby(standby) if standby.hangs())
    }

    /// What to report of it; without a condition.
    pub fn status(&self) -> ShardStatus {
        let (role, position, prepared) = match &self.place {
            Place::Closed => return ShardStatus::default(),
            Place::Standby(standby) => (Role::Standby, standby.position(), standby.client()),
            Place::Owner(shard) => (Role::Owner, shard.position(), None),
        };
        ShardStatus {
            role,
            changelog_offset: position.changelog_offset,
            lag: if role == Role::Standby { self.lag } else { 0 },
            digest: position.digest,
            epoch: position.epoch,
            batch_number: position.batch_number,
            prepared: prepared.map(|(client, _)| client.to_owned()),
            // Whoever steps the seat knows the rest.
            ..ShardStatus::default()
        }
    }

    /// Stores what an owner has, and closes.
    ///
    /// # Errors
    /// [`ShardError`]; nothing is lost then, the changelog has it.
    pub fn close(&mut self) -> Result<(), ShardError> {
        match std::mem::replace(&mut self.place, Place::Closed) {
            Place::Closed => Ok(()),
            Place::Standby(mut standby) => standby.settle(),
            Place::Owner(mut shard) => shard.close(),
        }
    }

    fn closed(&mut self, order: &Order) -> Result<(Place<S>, Step), ShardError> {
        match &order.duty {
            Duty::Nothing => Ok((Place::Closed, Step::Idle)),
            Duty::Own | Duty::TakeOver => {
                let store = (self.parts.open_store)()?;
                self.begin(&*store, order.epoch)?;
                let standby = self.open(store)?;
                self.acquire(standby, order)
            }
            Duty::Standby { .. } | Duty::Release { .. } => {
                let mut standby = self.open((self.parts.open_store)()?)?;
                // Before it counts as one: who has just opened it may have all of the changelog to read.
                (self.lag, self.lag_noted_ms) = (standby.lag()?, self.parts.environment.clock.now_ms());
                Ok((Place::Standby(standby), Step::Opened))
            }
        }
    }

    /// A changelog that was lost is refused before anything is written to it: the local state, or what the shard has written elsewhere, may be all that is left.
    fn begin(&self, store: &dyn StateStore, epoch: u64) -> Result<(), ShardError> {
        let Parts { name, shard, environment, .. } = &self.parts;
        let (log, topics) = (&*environment.log, &environment.topics);
        let at = TopicPartition::new(topics.changelog(name), *shard);
        match log.bounds(&at)? {
            (_, 0) => {
                follower::local(log, &at, store)?;
                if let Some(checkpoints) = &environment.checkpoints {
                    checkpoint::check_history(checkpoints, log, &at, name)?;
                }
                ownership::begin(log, topics, name, *shard, epoch)
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, store: Arc<dyn StateStore>) -> Result<Box<Standby>, ShardError> {
        self.hearing.begin();
        let Parts { name, shard, environment, moves, .. } = &self.parts;
        let mut standby = Standby::open(name, *shard, environment.clone(), store)?;
        standby.tell(moves.clone());
        Ok(Box::new(standby))
    }

    fn standby(&mut self, mut standby: Box<Standby>, order: &Order) -> Result<(Place<S>, Step), ShardError> {
        let (prepare, soon) = match &order.duty {
            Duty::Nothing => {
                standby.settle()?;
                return Ok((Place::Closed, Step::Closed));
            }
            Duty::Own | Duty::TakeOver => return self.acquire(standby, order),
            Duty::Standby { prepare, soon } => (*prepare, *soon),
            Duty::Release { .. } => (false, false),
        };
        standby.follow(FOLLOW)?;
        let standby = match standby.receive(order.plan)? {
            Received::Ours(acquired) => return self.own(*acquired, true),
            Received::Waiting(standby) => standby,
        };
        self.follow(standby, prepare, soon)
    }

    fn follow(&mut self, mut standby: Box<Standby>, prepare: bool, soon: bool) -> Result<(Place<S>, Step), ShardError> {
        if prepare {
            // It may have to read much first. What is reported meanwhile is how far it was behind before.
            standby.prepare()?;
        }
        let now_ms = self.parts.environment.clock.now_ms();
        if soon {
            standby.prefetch(now_ms)?;
        } else {
            standby.drop_prefetched();
        }
        if has_passed(LAG_EVERY_MS, self.lag_noted_ms, now_ms) {
            (self.lag, self.lag_noted_ms) = (standby.lag()?, now_ms);
            self.check_hearing(&standby.listened(), now_ms)?;
        }
        Ok((Place::Standby(standby), Step::Followed))
    }

    fn check_hearing(&mut self, heard: &Listened, now_ms: u64) -> Result<(), ShardError> {
        let visible: Vec<u64> = heard.read_to.iter().map(|(_, read_to)| read_to + self.lag).collect();
        let deaf = self.hearing.look(heard, Some(&visible), now_ms);
        deaf.map_or(Ok(()), |deaf| Err(ShardError::Reopen(deaf.to_string())))
    }

    fn acquire(&mut self, mut standby: Box<Standby>, order: &Order) -> Result<(Place<S>, Step), ShardError> {
        // The news that nobody has the shard may be faster than the release in its changelog.
        if standby.client().is_some() {
            standby.catch_up()?;
        }
        match standby.receive(order.plan)? {
            Received::Ours(acquired) => self.own(*acquired, true),
            Received::Waiting(mut standby) => {
                standby.begin(order.epoch)?;
                self.own(standby.take_over(order.plan)?, false)
            }
        }
    }

    fn own(&mut self, acquired: crate::standby::Acquired, by_handoff: bool) -> Result<(Place<S>, Step), ShardError> {
        let mended = acquired.lease.mended;
        let shard = Shard::own((self.parts.make)(), acquired, self.parts.limits.clone())?;
        Ok((Place::Owner(Box::new(shard)), Step::Acquired { by_handoff, mended }))
    }

    fn owner(&mut self, mut shard: Box<Shard<S>>, order: &Order) -> Result<(Place<S>, Step), ShardError> {
        match &order.duty {
            Duty::Nothing => {
                shard.close()?;
                Ok((Place::Closed, Step::Closed))
            }
            Duty::Release { to: Some(heir) } => {
                let Heir { client, .. } = heir;
                let slot = 1 - shard.position().slot.min(1);
                if mutant::is(Mutant::ReleaseIgnored) {
                    shard.give((client, slot))?;
                    return Ok((Place::Owner(shard), Step::Released));
                }
                shard.release((client, slot))?;
                Ok((Place::Closed, Step::Released))
            }
            // Somebody acquired it after us: whatever we would commit, the log would refuse.
            _ if order.epoch > shard.position().epoch => Ok((Place::Closed, Step::Closed)),
            _ => {
                shard.hear_of(&order.savepoints);
                let report = shard.run_batch()?.map(Box::new);
                Ok((Place::Owner(shard), Step::Batch(report)))
            }
        }
    }
}
