//! A standby: a shard's state kept up with its changelog while somebody else owns it.
//!
//! It becomes the owner in one of two ways ([`ownership`]): by a handoff, for which it [prepares](Standby::prepare) a client and fetches the inputs ahead; or by a
//! takeover, from everybody else, in every other case, also where a handoff went wrong. Opening a shard is a standby that takes over at once.
//!
//! While it follows, it makes its local state safe now and then, in the background: after a crash there is no more to read again than an owner would have.

use crate::checkpoint;
use crate::flush::SLOW_MS;
use crate::follower::{Follower, Moves};
use crate::hearing::Listened;
use crate::inputs::Inputs;
use crate::log::TopicPartition;
use crate::output;
use crate::ownership::{self, Claim, Lease, PlanNumber, Prepared};
use crate::runtime::{Environment, REPLAY_MS};
use crate::state::{StateStore, StoreError};
use crate::{Job, ShardError, has_passed};
use millstream_model::proto::StatePosition;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

/// Inputs that were fetched ahead are used for so long.
const PREFETCH_MS: u64 = 5_000;
/// A prepared client is made anew after so long: brokers forget a transactional id that is idle for days (7 by default).
const PREPARED_MS: u64 = 86_400_000;

/// What is stored in the background for so long may never be: a handoff would wait for it.
const HANGS_MS: u64 = 120_000;

/// A shard that this process follows.
pub struct Standby {
    stage: &'static str,
    shard: u32,
    environment: Environment,
    store: Arc<dyn StateStore>,
    follower: Follower,
    storing: Storing,
    prepared: Option<Prepared>,
    /// When it was prepared, milliseconds since 1970.
    prepared_ms: u64,
    /// Fetched ahead, and since when.
    inputs: Option<(Inputs, u64)>,
}

/// Everything that an owner starts with.
pub struct Acquired {
    pub(crate) shard: u32,
    pub(crate) environment: Environment,
    pub(crate) store: Arc<dyn StateStore>,
    /// Of the standby, and nothing to wait for, before the store is closed.
    pub(crate) storing: Storing,
    pub(crate) position: StatePosition,
    pub(crate) lease: Lease,
    pub(crate) inputs: Option<Inputs>,
}

/// What came of waiting for a release.
pub enum Received {
    /// The shard is ours.
    Ours(Box<Acquired>),
    /// Not yet.
    Waiting(Box<Standby>),
}

impl Standby {
    /// Begins to follow, from the local state if it fits.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open(
        stage: &'static str,
        shard: u32,
        environment: Environment,
        store: Arc<dyn StateStore>,
    ) -> Result<Standby, ShardError> {
        let (log, topics) = (&*environment.log, &environment.topics);
        output::check(log, topics, stage)?;
        let changelog = TopicPartition::new(topics.changelog(stage), shard);
        let checkpoints = environment.checkpoints.as_ref();
        let provide = |checkpoints| checkpoint::provide(checkpoints, &environment, &changelog, stage, &*store);
        let origin = checkpoints.map(|checkpoints| provide(checkpoints)).transpose()?;
        let follower = Follower::open(log, changelog, topics.shards, store.clone(), origin)?;
        let (since_ms, read_to) = (environment.clock.now_ms(), follower.read_to());
        let storing = Storing { under_way: None, since_ms, read_to, trouble: None, hangs: false };
        Ok(Standby {
            stage,
            shard,
            environment,
            store,
            follower,
            storing,
            prepared: None,
            prepared_ms: 0,
            inputs: None,
        })
    }

    /// Tells when it reads something.
    pub fn tell(&mut self, moves: Moves) {
        self.follower.tell(moves);
    }

    /// Reads what comes within `wait`.
    ///
    /// # Errors
    /// [`ShardError`]: open it again.
    pub fn follow(&mut self, wait: Duration) -> Result<(), ShardError> {
        self.follower.follow(wait)?;
        self.store_if_due()
    }

    fn store_if_due(&mut self) -> Result<(), ShardError> {
        let (now_ms, read_to) = (self.environment.clock.now_ms(), self.follower.read_to());
        if self.storing.is_under_way(now_ms)? || !self.storing.is_due(read_to, now_ms) {
            return Ok(());
        }
        self.follower.settle()?;
        let (store, (done, outcome)) = (self.store.clone(), channel());
        let job = self.environment.executor.run(Box::new(move || {
            let stored = store.sync();
            // Whoever waits for this may open the same store again at once.
            drop(store);
            // Nobody listens any more when the shard was acquired.
            let _ = done.send(stored);
        }));
        self.storing.under_way = Some((job, outcome));
        (self.storing.since_ms, self.storing.read_to) = (now_ms, read_to);
        Ok(())
    }

    /// What will stop it if nobody acts: what it follows cannot be stored.
    pub fn trouble(&self) -> Option<&str> {
        self.storing.trouble.as_deref()
    }

    /// Its disk does not take what was followed: it could own the shard only after that, and nobody knows when.
    pub fn hangs(&self) -> bool {
        self.storing.hangs
    }

    /// Reads everything that is visible now.
    ///
    /// # Errors
    /// [`ShardError`]: open it again.
    pub fn catch_up(&mut self) -> Result<(), ShardError> {
        self.follower.read_to_end(&*self.environment.log)
    }

    /// Writes what was read to the local store.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn settle(&mut self) -> Result<(), ShardError> {
        self.follower.settle()
    }

    /// How many messages of the changelog are still to be read.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn lag(&mut self) -> Result<u64, ShardError> {
        let lag = self.follower.lag(&*self.environment.log)?;
        if lag == 0 {
            self.follower.release_checkpoint(&*self.environment.executor);
        }
        Ok(lag)
    }

    /// What it has heard of the changelog.
    pub fn listened(&self) -> Listened {
        self.follower.listened()
    }

    /// How far it is.
    pub fn position(&self) -> &StatePosition {
        self.follower.position()
    }

    /// The client that a release can name, (name, slot).
    pub fn client(&self) -> Option<(&str, u32)> {
        self.prepared.as_ref().map(Prepared::client)
    }

    /// Writes the shard's first record, when there is none: this standby may have been opened before anybody owned the shard. `epoch` is the
    /// highest at which anybody has reported to.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn begin(&mut self, epoch: u64) -> Result<(), ShardError> {
        let Environment { log, topics, .. } = &self.environment;
        self.follower.read_to_end(&**log)?;
        self.follower.check_topic(&**log)?;
        if self.follower.has_genesis() {
            return Ok(());
        }
        ownership::begin(&**log, topics, self.stage, self.shard, epoch)
    }

    /// Makes the client for a handoff, when there is none, and gives up one whose id the log names without naming the client. Only the first successor should.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn prepare(&mut self) -> Result<(), ShardError> {
        let position = self.follower.position();
        let now_ms = self.environment.clock.now_ms();
        let is_fresh = !has_passed(PREPARED_MS, self.prepared_ms, now_ms);
        let is_ours = |(client, slot): (&str, u32)| {
            self.follower.released_to() == Some(client) || (position.slot != slot && is_fresh)
        };
        if self.client().is_some_and(is_ours) {
            return Ok(());
        }
        self.prepared = None;
        let claim = claim(&self.environment, self.stage, self.shard, (0, 0));
        self.prepared = claim.prepare(&mut self.follower)?;
        self.prepared_ms = now_ms;
        Ok(())
    }

    /// Fetches the inputs ahead, for a handoff that is near; anew when the owner has gone on for long, since all of that would have to be skipped.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn prefetch(&mut self, now_ms: u64) -> Result<(), ShardError> {
        let is_fresh = |(_, since_ms): &(Inputs, u64)| !has_passed(PREFETCH_MS, *since_ms, now_ms);
        if !self.inputs.as_ref().is_some_and(is_fresh) {
            // The log may read a partition once more cheaply than twice.
            self.inputs = None;
            let (log, topics) = (&*self.environment.log, &self.environment.topics);
            let inputs = Inputs::open(log, topics, self.stage, self.shard, self.follower.position())?;
            self.inputs = Some((inputs, now_ms));
        }
        Ok(())
    }

    /// No handoff is near any more: what was fetched ahead is memory for nothing.
    pub fn drop_prefetched(&mut self) {
        self.inputs = None;
    }

    /// Becomes the owner if the shard was released to the prepared client.
    ///
    /// # Errors
    /// [`ShardError`]: open it again.
    pub fn receive(mut self: Box<Self>, plan: PlanNumber) -> Result<Received, ShardError> {
        let Some(prepared) = self.prepared.take() else { return Ok(Received::Waiting(self)) };
        let claim = claim(&self.environment, self.stage, self.shard, plan);
        match claim.receive(prepared, &mut self.follower)? {
            Ok(lease) => self.acquired(lease).map(|acquired| Received::Ours(Box::new(acquired))),
            Err(prepared) => {
                self.prepared = Some(prepared);
                Ok(Received::Waiting(self))
            }
        }
    }

    /// Takes the shard over, whoever has it.
    ///
    /// # Errors
    /// [`ShardError`]: open it again.
    pub fn take_over(mut self, plan: PlanNumber) -> Result<Acquired, ShardError> {
        let (environment, prepared) = (&self.environment, self.prepared.take());
        let claim = claim(environment, self.stage, self.shard, plan);
        let lease = claim.take_over(prepared, &mut self.follower, &*environment.executor)?;
        self.acquired(lease)
    }

    fn acquired(mut self, lease: Lease) -> Result<Acquired, ShardError> {
        self.follower.settle()?;
        self.follower.release_checkpoint(&*self.environment.executor);
        let position = self.follower.position().clone();
        let (shard, environment, store) = (self.shard, self.environment, self.store);
        let (inputs, storing) = (self.inputs.map(|(inputs, _)| inputs), self.storing);
        Ok(Acquired { shard, environment, store, storing, position, lease, inputs })
    }
}

type UnderWay = (Box<dyn Job>, Receiver<Result<(), StoreError>>);

/// Making safe what was followed.
pub(crate) struct Storing {
    under_way: Option<UnderWay>,
    /// When it was begun last, milliseconds since 1970.
    since_ms: u64,
    /// What was read of the changelog then.
    read_to: u64,
    /// Why it did not come about the last time.
    trouble: Option<String>,
    /// It takes so long that it may never come about.
    hangs: bool,
}

impl Storing {
    fn is_under_way(&mut self, now_ms: u64) -> Result<bool, ShardError> {
        let Some((_, outcome)) = &self.under_way else { return Ok(false) };
        self.trouble = match outcome.try_recv() {
            Err(TryRecvError::Empty) => {
                self.hangs = has_passed(HANGS_MS, self.since_ms, now_ms);
                if self.trouble.is_none() && has_passed(SLOW_MS, self.since_ms, now_ms) {
                    let seconds = now_ms.saturating_sub(self.since_ms) / 1_000;
                    self.trouble = Some(format!(
                        "the local disk is slow: what was followed is being stored for {seconds} s; a handoff to this process would wait for it"
                    ));
                }
                return Ok(true);
            }
            Err(TryRecvError::Disconnected) => return Err(ShardError::Reopen("a flush was given up".into())),
            Ok(Ok(())) => None,
            // It goes on following for as long as that needs no space.
            Ok(Err(error @ StoreError::Full(_))) => Some(error.to_string()),
            Ok(Err(error)) => return Err(error.into()),
        };
        (self.under_way, self.hangs) = (None, false);
        Ok(false)
    }

    fn is_due(&self, read_to: u64, now_ms: u64) -> bool {
        let is_unstored = read_to > self.read_to || self.trouble.is_some();
        is_unstored && has_passed(REPLAY_MS, self.since_ms, now_ms)
    }
}

impl Drop for Storing {
    /// What is under way must end before somebody opens the same local store again.
    fn drop(&mut self) {
        if let Some((job, _)) = self.under_way.take() {
            job.wait();
        }
    }
}

fn claim<'a>(environment: &'a Environment, stage: &'a str, shard: u32, plan: PlanNumber) -> Claim<'a> {
    let Environment { log, topics, claimant, .. } = environment;
    Claim { log: &**log, topics, stage, shard, claimant, plan }
}
