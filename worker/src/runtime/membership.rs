//! This process among the workers of the pipeline: hears plan and reports, gives its shards their orders, and reports.
//!
//! One thread. It joins when the log is there, and only then starts the threads of the shards, because who they claim shards for has the incarnation that joining
//! gives. From then on it passes orders to the desks, and what the desks say to `status`.
//!
//! **Leaving** (SIGTERM): it says so; its successors prepare; each owned shard is released to the one that has. That takes as long as a handoff, and is
//! given up after [`Bound`](MemberSettings::release), or at once when nobody is left who could take over. What was not released is taken over by a
//! successor, as after a crash but for the detection: a worker that said it leaves is believed at once.
//!
//! **Fenced**: a newer process of the same name runs. This one ends, and does not release anything: its successor is itself.

use super::desk::Desk;
use super::ears::Ear;
use super::rules::Rulebook;
use super::stores::Creation;
use super::system::Stop;
use crate::admin::{Check, Health};
use crate::gateway::Keyring;
use crate::telemetry::Metrics;
use millstream_plan::plan::ShardId;
use millstream_plan::unread::Unread;
use millstream_plan::view::{Bounds, GATEWAY_GONE_MS, Verdict, View};
use millstream_shard::ShardError;
use millstream_shard::hearing::Listened;
use millstream_shard::log::{Log, LogError, TopicPartition};
use millstream_shard::member::{Member, Now, Profile, Statuses};
use millstream_shard::ownership::Claimant;
use millstream_shard::runtime::Environment;
use millstream_shard::topics::Topics;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long one look at `control` and `status` waits: how late a change of a shard's role is reported.
const LISTEN: Duration = Duration::from_millis(20);
/// Pause after the log was not there.
const PAUSE: Duration = Duration::from_secs(1);
/// A gateway lets nobody in when it is so long ago that it had heard all there was in `control`: a key may have been revoked. Who says that a change is effective waits for one that is silent for
/// as long. (One that hears `control` and gets no report out is not waited for after that. It hears what is revoked; should it go deaf just then, it takes the key for this long at most.)
const TRUSTED: Duration = Duration::from_millis(GATEWAY_GONE_MS);
/// How long the last report may take to get out.
const LAST_REPORT: Duration = Duration::from_secs(1);

/// Starts a shard's thread on what it stands on.
pub type Starter = Box<dyn FnOnce(&Environment) -> std::io::Result<JoinHandle<()>> + Send>;

/// Settings of a membership.
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// What this process is.
    pub profile: Profile,
    /// Bounds of patience.
    pub bounds: Bounds,
    /// How long leaving may take.
    pub release: Duration,
}

/// What a process learns that it cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It has not joined yet.
    Joining(String),
    /// It is a member.
    Member,
    /// There is no plan for this generation, or one of a higher generation.
    Waiting(String),
    /// It must end.
    Fenced(String),
}

/// What the rest of the process sees of its membership.
pub struct Shared {
    control: TopicPartition,
    standing: Mutex<Standing>,
    reports: Mutex<Vec<Heard>>,
    /// What was heard of `control` and `status`.
    listened: Mutex<Listened>,
    /// It does not hear them.
    is_deaf: AtomicBool,
    hearing: Mutex<Hearing>,
    /// Told to leave.
    leave: Stop,
    /// Has left, or must end.
    ended: tokio::sync::Notify,
    /// Has heard all that there is to hear.
    joined: tokio::sync::watch::Sender<bool>,
}

/// Whether a process hears `control`.
#[derive(Debug, Default)]
struct Hearing {
    /// Readers saw this end then, and it has not come so far yet.
    awaits: Option<(u64, Instant)>,
    /// So many answers came since then.
    missed: u32,
    /// All that there was then has been heard.
    heard_all: Option<Instant>,
}

impl Hearing {
    /// There is so much; it was asked for then. `None`: the log did not say, and who hears nothing then is not deaf.
    fn there_is(&mut self, end: Option<u64>, asked: Instant) {
        match end {
            Some(_) if self.awaits.is_some() => self.missed += 1,
            Some(end) => self.awaits = Some((end, asked)),
            None => (self.awaits, self.missed) = (None, 0),
        }
    }

    /// Heard up to here, exclusive. Returns since when at least nothing is missing, when that is news.
    fn heard_to(&mut self, position: u64) -> Option<Instant> {
        let (_, asked) = self.awaits.take_if(|(end, _)| *end <= position)?;
        (self.heard_all, self.missed) = (self.heard_all.max(Some(asked)), 0);
        Some(asked)
    }

    /// Seconds for which it has not heard what there was.
    fn waits(&self, now: Instant) -> u64 {
        self.awaits.map_or(0, |(_, asked)| now.saturating_duration_since(asked).as_secs())
    }

    /// It has not heard what there was when the log was asked the time before: another client may.
    fn is_deaf(&self) -> bool {
        self.missed > 0
    }

    /// Nor did another client hear it.
    fn stays_deaf(&self) -> bool {
        self.missed > 1
    }

    /// So long ago it had heard everything.
    fn age(&self, now: Instant) -> Duration {
        self.heard_all.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

/// A worker's newest report, and how long ago it was heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The report.
    pub status: millstream_plan::status::WorkerStatus,
    /// Milliseconds ago, when [`Shared::reports`] was called.
    pub ago_ms: u64,
    at: Instant,
}

impl Shared {
    fn set(&self, standing: Standing) {
        self.joined.send_replace(!matches!(standing, Standing::Joining(_)));
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Is there a plan for this process?
    ///
    /// # Errors
    /// Why not.
    pub fn has_place(&self) -> Result<(), String> {
        match self.standing() {
            Standing::Member => Ok(()),
            Standing::Joining(why) | Standing::Waiting(why) | Standing::Fenced(why) => Err(why),
        }
    }

    /// Every worker's newest report.
    pub fn reports(&self) -> Vec<Heard> {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for heard in &mut reports {
            heard.ago_ms = u64::try_from(heard.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        reports
    }

    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives all shards away; [`Shared::ended`] tells when.
    pub fn leave(&self) {
        self.leave.stop();
    }

    /// Returns when it has heard all that there is in `control`.
    pub async fn joined(&self) {
        // The sender is here as well, so that it is never gone.
        drop(self.joined.subscribe().wait_for(|joined| *joined).await);
    }

    /// Returns when it has left, or must end at once; then says why.
    pub async fn ended(&self) -> Option<String> {
        self.ended.notified().await;
        match self.standing() {
            Standing::Fenced(why) => Some(why),
            _ => None,
        }
    }
}

impl Ear for Shared {
    fn name(&self) -> String {
        "plan and reports".to_owned()
    }

    fn listened(&self) -> Option<Listened> {
        Some(self.listened.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn must_hear(&self) -> Option<TopicPartition> {
        Some(self.control.clone())
    }

    fn there_is(&self, end: Option<u64>, asked: Instant) -> Option<String> {
        let mut hearing = self.hearing();
        hearing.there_is(end, asked);
        let waits =
            || format!("{} has not been heard up to where it ended {} s ago", self.control, hearing.waits(asked));
        hearing.is_deaf().then(waits)
    }

    fn read_anew(&self) {
        self.is_deaf.store(true, Ordering::Relaxed);
    }
}

/// A process that has shards is ready when there is a plan for it. That it does not hear `control` for a while changes nothing: it is ready by its shards.
pub struct PlanCheck(pub Arc<Shared>);

impl Check for PlanCheck {
    fn name(&self) -> String {
        "plan".to_owned()
    }

    fn check(&self) -> Health {
        self.0.has_place().map_or_else(Health::NotReady, |()| Health::Well)
    }
}

/// A process without shards does without a plan, and is ready for as long as it hears `control`. When it does not because the log is lost, as a whole or in part, it is ready all
/// the same, since all of its kind would not be. (Revoked keys do not go on counting because nobody told it: [`Keyring::trust_until`].)
pub struct HearingCheck(pub Arc<Shared>);

impl Check for HearingCheck {
    fn name(&self) -> String {
        "plan".to_owned()
    }

    fn check(&self) -> Health {
        if let Standing::Joining(why) | Standing::Fenced(why) = self.0.standing() {
            return Health::NotReady(why);
        }
        let hearing = self.0.hearing();
        let age = hearing.age(Instant::now());
        if hearing.stays_deaf() {
            let seconds = age.as_secs();
            Health::NotReady(format!("has not heard all of `control` for {seconds} s, though the log has more to hear"))
        } else if age > TRUSTED {
            let seconds = age.as_secs();
            Health::Impaired(format!(
                "has not heard `control` for {seconds} s, and lets nobody in: who may send may have changed"
            ))
        } else {
            Health::Well
        }
    }
}

/// Whom it concerns who may send, and on which terms, as far as it was published.
pub struct Senders {
    /// Judges requests.
    pub keys: Arc<Keyring>,
    /// Counts tenants under their names.
    pub metrics: Arc<Metrics>,
    /// What shards of unify go by.
    pub rules: Arc<Rulebook>,
}

impl Senders {
    fn publish(&self, view: &View, control_offset: u64) {
        let tenants = view.tenants();
        let there = tenants.values().filter(|tenant| !tenant.is_deleted);
        self.metrics.publish(there.map(|tenant| tenant.name.as_str()));
        self.keys.publish(tenants, view.gateway_count().map(|gateways| gateways.count));
        self.rules.publish(tenants, control_offset);
    }
}

/// A process that is about to join.
pub struct Membership {
    settings: MemberSettings,
    log: Arc<dyn Log>,
    topics: Topics,
    creation: Arc<Creation>,
    senders: Senders,
    /// `control` was heard up to here, by whichever reader, and by this one.
    heard_to: (u64, u64),
    /// The shards that it has told it cannot open.
    unable: BTreeSet<ShardId>,
    /// Of this process, but for the claimant.
    environment: Environment,
    desks: Vec<Arc<Desk>>,
    starters: Vec<(Arc<Desk>, Starter)>,
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    began: Instant,
}

impl Membership {
    /// Of a process with these shards.
    pub fn new(
        settings: MemberSettings,
        environment: Environment,
        creation: Arc<Creation>,
        senders: Senders,
        desks: Vec<Arc<Desk>>,
        starters: Vec<(Arc<Desk>, Starter)>,
        stop: Arc<Stop>,
    ) -> Membership {
        let shared = Arc::new(Shared {
            control: TopicPartition::new(environment.topics.control.clone(), 0),
            standing: Mutex::new(Standing::Joining("has not heard the plan yet".to_owned())),
            reports: Mutex::default(),
            listened: Mutex::default(),
            is_deaf: AtomicBool::new(false),
            hearing: Mutex::default(),
            leave: Stop::default(),
            ended: tokio::sync::Notify::new(),
            joined: tokio::sync::watch::Sender::new(false),
        });
        let (log, topics) = (environment.log.clone(), environment.topics.clone());
        let began = Instant::now();
        Membership {
            settings,
            log,
            topics,
            creation,
            senders,
            heard_to: (0, 0),
            unable: BTreeSet::new(),
            environment,
            desks,
            starters,
            shared,
            stop,
            began,
        }
    }

    /// What the rest of the process sees of it.
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Starts the thread; it ends with all threads of the shards, when the process is stopped.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("membership".into()).spawn(move || self.run())
    }

    fn run(mut self) {
        let Some((mut member, began)) = self.join() else {
            self.shared.ended.notify_one();
            return;
        };
        // What it was told to hear while it joined, it has heard.
        *self.shared.hearing() = Hearing { heard_all: Some(began), ..Hearing::default() };
        self.senders.keys.trust_until(began + TRUSTED);
        let incarnation = member.incarnation().to_string();
        tracing::info!(worker = self.settings.profile.worker, incarnation, "joined the pipeline");
        self.environment.claimant = Claimant::new(self.settings.profile.worker.as_str(), incarnation);
        for desk in &self.desks {
            member.known().get(&desk.id()).into_iter().for_each(|unread| desk.was_known(unread.clone()));
        }
        let environment = self.environment.clone();
        let starters = std::mem::take(&mut self.starters);
        let threads: Vec<_> =
            starters.into_iter().filter_map(|(desk, start)| started(&desk, start(&environment))).collect();
        let mut leaving_since = None;
        while !self.stop.is_stopped() {
            self.turn(&mut member, &mut leaving_since);
        }
        for desk in &self.desks {
            desk.wake();
        }
        for thread in threads {
            // A panic is in the log, and its shard's condition says so.
            let _ = thread.join();
        }
        self.farewell(&mut member);
    }

    fn now(&self) -> Now {
        Now { wall_ms: self.environment.clock.now_ms(), monotonic_ms: self.monotonic_ms() }
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Joins when the log is there, and tells when it began to: it has heard all that there was then. None when the process is stopped before.
    fn join(&self) -> Option<(Member, Instant)> {
        loop {
            if self.stop.is_stopped() || self.shared.leave.is_stopped() {
                return None;
            }
            let began = Instant::now();
            match self.try_join() {
                Ok(member) => return Some((member, began)),
                Err(error) => {
                    tracing::warn!(%error, "cannot join the pipeline yet");
                    self.shared.set(Standing::Joining(error.to_string()));
                    self.stop.wait(PAUSE);
                }
            }
        }
    }

    fn try_join(&self) -> Result<Member, LogError> {
        self.creation.ensure(&self.stop)?;
        let MemberSettings { profile, bounds, .. } = self.settings.clone();
        Member::join(&*self.log, &self.topics, profile, rand::random(), bounds, self.now())
    }

    fn turn(&mut self, member: &mut Member, leaving_since: &mut Option<Instant>) {
        self.listen(member);
        // Before it reports that it has heard it.
        let heard_to = (member.control_offset(), control_read_to(member));
        if std::mem::replace(&mut self.heard_to, heard_to) != heard_to {
            self.senders.publish(member.view(), heard_to.0);
        }
        if let Some(problem) = member.problem() {
            tracing::warn!(problem, "plan and reports");
        }
        if self.shared.leave.is_stopped() {
            // Only who leaves tells it.
            member.know(self.known());
        }
        if self.shared.leave.is_stopped() && !member.is_leaving() {
            tracing::info!("leaving: shards are given to their successors");
            member.leave();
            *leaving_since = Some(Instant::now());
            member.report_now(self.statuses(), self.monotonic_ms());
        }
        let orders = member.orders(self.monotonic_ms());
        for desk in &self.desks {
            if desk.set_order(orders.get(&desk.id()).cloned().unwrap_or_default()) {
                tracing::info!(stage = desk.stage, shard = desk.shard, "shard is taken over");
            }
        }
        self.note_hearing(member);
        self.judge(member);
        let kept = self.desks.iter().filter(|desk| desk.is_kept()).map(|desk| desk.id()).collect();
        member.report(self.statuses(), &kept, self.monotonic_ms());
        self.note_unable(member);
        self.note_reports(member);
        if leaving_since.is_some_and(|since| self.has_left(member, since)) {
            self.shared.ended.notify_one();
        }
    }

    fn note_unable(&mut self, member: &Member) {
        let unable = member.unable();
        for id in unable.difference(&self.unable) {
            let (stage, shard) = (&id.stage, id.shard);
            tracing::warn!(stage, shard, "shard cannot be opened here for long: whoever can goes before this worker");
        }
        for id in self.unable.difference(&unable) {
            tracing::info!(stage = &id.stage, shard = id.shard, "shard is to be tried here again");
        }
        self.unable = unable;
    }

    fn listen(&self, member: &mut Member) {
        let heard = member.listen(LISTEN, self.monotonic_ms());
        *self.shared.listened.lock().unwrap_or_else(PoisonError::into_inner) = member.listened();
        let is_deaf = self.shared.is_deaf.swap(false, Ordering::Relaxed);
        if let Err(error) = &heard {
            tracing::warn!(%error, "cannot hear plan and reports");
            self.stop.wait(PAUSE);
        }
        if heard.is_ok() && !is_deaf {
            return;
        }
        // A reader that has failed for whatever reason may go on failing.
        match member.listen_anew(&*self.log) {
            Ok(former) => drop(self.environment.executor.run(Box::new(move || drop(former)))),
            Err(error) => tracing::warn!(%error, "cannot hear plan and reports yet"),
        }
    }

    fn note_hearing(&self, member: &Member) {
        // By this reader: another topic of that name may end before what was heard of the former one.
        let read_to = control_read_to(member);
        if let Some(since) = self.shared.hearing().heard_to(read_to) {
            self.senders.keys.trust_until(since + TRUSTED);
        }
    }

    fn known(&self) -> BTreeMap<ShardId, Vec<Unread>> {
        self.desks.iter().map(|desk| (desk.id(), desk.known())).filter(|(_, known)| !known.is_empty()).collect()
    }

    fn statuses(&self) -> Statuses {
        self.desks.iter().filter_map(|desk| Some((desk.id(), desk.status()?))).collect()
    }

    fn judge(&self, member: &Member) {
        let (topics, view) = (&self.topics, member.view());
        let generation = u32::from(topics.generation);
        let standing = match member.verdict() {
            Verdict::Fenced { by } => {
                let worker = &self.settings.profile.worker;
                Standing::Fenced(format!(
                    "a newer process of the worker {worker} runs ({by}); this one ends. Give each process a `worker` name of its own"
                ))
            }
            Verdict::Superseded { generation } => Standing::Waiting(format!(
                "the pipeline is in generation {generation} by now: this process is of {}; start it with the new one",
                topics.generation
            )),
            Verdict::GoOn if view.plan().is_none_or(|plan| plan.generation != generation) => {
                Standing::Waiting(format!(
                    "there is no plan for generation {generation} in {}: publish one with `millstream plan`",
                    topics.control
                ))
            }
            Verdict::GoOn => Standing::Member,
        };
        if standing == self.shared.standing() {
            return;
        }
        match &standing {
            Standing::Fenced(why) => {
                tracing::error!(why, "fenced");
                self.shared.set(standing);
                self.shared.ended.notify_one();
                return;
            }
            Standing::Waiting(why) => tracing::warn!(why, "waiting"),
            _ => {}
        }
        self.shared.set(standing);
    }

    fn note_reports(&self, member: &Member) {
        let (now, now_ms) = (Instant::now(), self.monotonic_ms());
        let heard = |(status, at_ms): (&millstream_plan::status::WorkerStatus, u64)| {
            let ago_ms = now_ms.saturating_sub(at_ms);
            let at = now.checked_sub(Duration::from_millis(ago_ms)).unwrap_or(now);
            Heard { status: status.clone(), ago_ms, at }
        };
        let reports = member.view().reports().map(heard).collect();
        *self.shared.reports.lock().unwrap_or_else(PoisonError::into_inner) = reports;
    }

    /// Nothing is left to give away, nobody is left to give it to, or it has taken too long.
    fn has_left(&self, member: &Member, since: Instant) -> bool {
        let owned: Vec<ShardId> = self.desks.iter().filter(|desk| desk.is_owner()).map(|desk| desk.id()).collect();
        let own_name = &self.settings.profile.worker;
        let alive = member.view().alive(self.monotonic_ms());
        let mut others = alive.iter().filter(|worker| worker.name != *own_name && !worker.leaving);
        let anybody = others.any(|worker| owned.iter().any(|id| worker.stages.contains(&id.stage)));
        let is_late = since.elapsed() > self.settings.release;
        if is_late && !owned.is_empty() && anybody {
            let shards = owned.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(shards, "not handed off in time; their successors take them over");
        }
        owned.is_empty() || !anybody || is_late
    }

    /// The last word: nothing is open here any more, so that nobody need wait for this process to fall silent.
    fn farewell(&self, member: &mut Member) {
        if matches!(self.shared.standing(), Standing::Fenced(_)) {
            return;
        }
        member.leave();
        // Nobody may own a shard from here on: how old what waits for it is must stay known.
        member.know(self.known());
        member.report_now(Statuses::new(), self.monotonic_ms());
        let deadline = Instant::now() + LAST_REPORT;
        while !member.is_heard() && Instant::now() < deadline {
            if member.listen(LISTEN, self.monotonic_ms()).is_err() {
                return;
            }
        }
    }
}

fn control_read_to(member: &Member) -> u64 {
    // `control` comes first.
    member.listened().read_to.first().map_or(0, |(_, read_to)| *read_to)
}

/// A shard without a thread does not work before its process is restarted, as one whose thread has ended: others must not wait for it.
fn started(desk: &Desk, thread: std::io::Result<JoinHandle<()>>) -> Option<JoinHandle<()>> {
    let failed = |error: &std::io::Error| {
        tracing::error!(stage = desk.stage, shard = desk.shard, %error, "cannot start a shard's thread");
        desk.fail(ShardError::Stopped(format!("there is no thread for it ({error}): restart the process")));
    };
    thread.inspect_err(failed).ok()
}

#[cfg(test)]
mod tests {
    use super::super::desk::Condition;
    use super::*;
    use millstream_plan::status::Role;
    use millstream_plan::view::Duty;
    use millstream_shard::member::Order;

    /// However it is told to own it, or not.
    #[test]
    fn a_shard_whose_thread_cannot_be_started_says_so_and_nobody_waits_for_it() {
        let desk = Desk::new("unify", 0, Duty::Nothing);
        assert!(started(&desk, Err(std::io::Error::other("no more threads"))).is_none());
        for duty in [Duty::Nothing, Duty::Own, Duty::Standby { prepare: true, soon: true }] {
            desk.set_order(Order { duty, ..Order::default() });
            let told = desk.status().unwrap();
            assert_eq!((told.role, told.prepared), (Role::Opening, None));
            assert!(told.condition.contains("no more threads"), "{}", told.condition);
            assert!(matches!(desk.condition(), Condition::Stopped(_)));
        }
    }

    #[test]
    fn who_does_not_hear_what_the_log_told_twice_is_deaf() {
        let (mut hearing, began) = (Hearing::default(), Instant::now());
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        hearing.there_is(Some(7), at(0));
        assert_eq!((hearing.heard_to(6), hearing.heard_to(7), hearing.heard_to(8)), (None, Some(at(0)), None));
        assert_eq!(hearing.age(at(9)), Duration::from_secs(9));
        // More comes all the time: it must have heard what there was first, not all that there is.
        hearing.there_is(Some(8), at(10));
        assert!(!hearing.is_deaf());
        hearing.there_is(Some(9), at(20));
        assert!(hearing.is_deaf() && !hearing.stays_deaf());
        hearing.there_is(Some(9), at(30));
        assert!(hearing.stays_deaf());
        assert_eq!(hearing.heard_to(8), Some(at(10)));
        assert!(!hearing.is_deaf());
        // The log is lost meanwhile: nobody is deaf for that.
        hearing.there_is(Some(9), at(30));
        hearing.there_is(None, at(40));
        hearing.there_is(Some(9), at(70));
        assert!(!hearing.is_deaf());
        assert_eq!(hearing.age(at(70)), Duration::from_secs(60));
    }
}
