//! What a shard's thread and the rest of the process share: orders go in; condition, sums and what to report come out.

use super::ears::Ear;
use super::fitness::{Fitness, Stores};
use crate::admin::Health;
use millstream_model::proto::{Position, Usage};
use millstream_plan::plan::ShardId;
use millstream_plan::status::{Role, ShardStatus};
use millstream_plan::unread::Unread;
use millstream_plan::view::Duty;
use millstream_shard::ShardError;
use millstream_shard::follower::Wanted;
use millstream_shard::hearing::Listened;
use millstream_shard::member::Order;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After so many polls without input, about a second, a shard that had stopped counts as working again. Before, the input that stopped it
/// may only not have been fetched yet.
const QUIET_POLLS: u32 = 10;
/// An owner or a standby whose thread has not moved for so long hangs, and is told as none: much longer than a batch takes. Whoever reads a changelog moves.
const HANGS: Duration = Duration::from_secs(120);
/// An attempt to open a shard that has taken so long is told as one that fails: it may hang, and others may be quicker.
const OPENS_LONG: Duration = Duration::from_secs(600);
/// An attempt to open a shard that has gone on for so long is not failing, whatever the one before did: it may be reading a long changelog.
const GOES_ON: Duration = Duration::from_secs(5);
/// How a shard fares in this process, for readiness and look-ups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Follows its changelog and takes over.
    Opening,
    /// Works.
    Running,
    /// Works, but not as it should: state cannot be stored, clocks are wrong; says why.
    Hampered(String),
    /// Follows its changelog; another process works.
    Following,
    /// This process has nothing to do with it.
    Closed,
    /// Tries again soon; says why.
    Retrying(String),
    /// Tries again soon: nobody knows what became of a transaction; says why.
    InDoubt(String),
    /// Tries again soon, or writes again what was not taken: the log or the document store does not answer; says why.
    Away(String),
    /// Needs a person; says why.
    Stopped(String),
}

/// How far an owner is behind its inputs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    /// Messages that it has not read; `None`: the log did not say, and this and what keeps them from it are as before.
    pub lag: Option<u64>,
    /// They were appended at most so many milliseconds ago; 0: there are none. `None`: not known.
    pub unread_ms: Option<u64>,
    /// What keeps them from it.
    pub held_back: Option<String>,
}

/// A shard's place in a process, for everybody but its thread.
#[derive(Debug)]
pub struct Desk {
    /// Stage's name.
    pub stage: &'static str,
    /// Its number.
    pub shard: u32,
    /// After so long without a move an owner hangs, and whoever is to be one.
    hangs: Duration,
    inner: Mutex<Inner>,
    ordered: Condvar,
}

#[derive(Debug)]
struct Inner {
    order: Order,
    condition: Condition,
    fitness: Fitness,
    usage: BTreeMap<String, Usage>,
    status: ShardStatus,
    passed: Vec<Position>,
    /// Where an owner reads on.
    reads_from: Vec<Position>,
    /// When the newest message of each of these inputs that was processed was appended, as far as this owner has processed any.
    processed_ms: Vec<Option<u64>>,
    /// How far an owner is behind its inputs, once somebody has looked.
    behind: Option<Behind>,
    /// What was found last of each input: true for good but for what only an owner knows.
    unread: Vec<Unread>,
    /// What an owner has heard of its inputs.
    heard: Listened,
    /// It does not hear them.
    is_deaf: bool,
    /// When its thread began its newest step; none before the first, nor while it pauses after a failure.
    stepped: Option<Instant>,
    /// When that came on last.
    moved: Option<Instant>,
    /// During that step, it was to own the shard at some time.
    is_to_own: bool,
    /// Nobody is to wait for an order any more.
    is_awake: bool,
    /// Of a standby: its disk does not take what was followed.
    disk_hangs: bool,
}

impl Desk {
    /// With a first order.
    pub fn new(stage: &'static str, shard: u32, duty: Duty) -> Desk {
        let condition = if duty == Duty::Nothing { Condition::Closed } else { Condition::Opening };
        let order = Order { duty, ..Order::default() };
        let inner = Inner {
            order,
            condition,
            fitness: Fitness::default(),
            usage: BTreeMap::new(),
            status: ShardStatus::default(),
            passed: Vec::new(),
            reads_from: Vec::new(),
            processed_ms: Vec::new(),
            behind: None,
            unread: Vec::new(),
            heard: Listened::default(),
            is_deaf: false,
            stepped: None,
            moved: None,
            is_to_own: false,
            is_awake: false,
            disk_hangs: false,
        };
        Desk { stage, shard, hangs: HANGS, inner: Mutex::new(inner), ordered: Condvar::new() }
    }

    /// Of a shard whose transactions may take so long: an owner may wait for two in one step.
    pub fn patient(self, transaction: Duration) -> Desk {
        Desk { hangs: HANGS.max(transaction * 4), ..self }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which shard it is.
    pub fn id(&self) -> ShardId {
        ShardId::new(self.stage, self.shard)
    }

    /// What to do now.
    pub fn order(&self) -> Order {
        self.lock().order.clone()
    }

    /// Says what to do from now on; true when it begins to be taken over.
    pub fn set_order(&self, order: Order) -> bool {
        let mut inner = self.lock();
        let takes_over = order.duty == Duty::TakeOver && inner.order.duty != Duty::TakeOver;
        if inner.order != order {
            if inner.condition == Condition::Closed && order.duty != Duty::Nothing {
                inner.condition = Condition::Opening;
            }
            inner.is_to_own |= owns(&order.duty);
            inner.order = order;
            self.ordered.notify_all();
        }
        takes_over
    }

    /// Waits until there is another order than this one, or until the pause is over.
    pub fn wait_for_other(&self, than: &Order, pause: Duration) {
        self.wait_while(self.lock(), pause, |order| order == than);
    }

    /// Waits until there is something else to do than this, or until the pause is over. That it is to be its owner in another way is nothing else: what failed was to own it, and to try that again
    /// has time.
    pub fn wait_for_other_duty(&self, than: &Duty, pause: Duration) {
        self.wait_while(self.lock(), pause, |order| order.duty == *than || (owns(&order.duty) && owns(than)));
    }

    fn wait_while(&self, inner: MutexGuard<'_, Inner>, pause: Duration, is_same: impl Fn(&Order) -> bool) {
        let waits = |inner: &mut Inner| is_same(&inner.order) && !inner.is_awake;
        drop(self.ordered.wait_timeout_while(inner, pause, waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the waiting for an order, for good.
    pub fn wake(&self) {
        self.lock().is_awake = true;
        self.ordered.notify_all();
    }

    /// How it fares.
    pub fn condition(&self) -> Condition {
        let inner = self.lock();
        match self.hangs(&inner, Instant::now()) {
            Some(why) => Condition::Stopped(why),
            None => inner.condition.clone(),
        }
    }

    /// Notes that its thread begins a step.
    pub fn steps(&self) {
        let mut inner = self.lock();
        inner.is_to_own = owns(&inner.order.duty);
        inner.stepped = Some(Instant::now());
        inner.moved = inner.stepped;
    }

    /// Notes that its step, however long it takes, comes on; tells what is wanted of it: not to own the shard, when it was to and is not any more.
    pub fn moves(&self) -> Wanted {
        let mut inner = self.lock();
        inner.moved = inner.stepped.map(|_| Instant::now());
        match inner.is_to_own && !owns(&inner.order.duty) {
            _ if inner.is_awake => Wanted::Nothing,
            true => Wanted::NotToOwn,
            false => Wanted::All,
        }
    }

    /// How it fares, for readiness.
    pub fn health(&self, stores: Stores) -> Health {
        let (inner, now) = (self.lock(), Instant::now());
        if let Some(why) = self.hangs(&inner, now) {
            return Health::NotReady(format!("stopped: {why}"));
        }
        let behind = (inner.status.role == Role::Standby).then_some(inner.status.lag);
        inner.fitness.health(&inner.condition, behind, stores, now)
    }

    /// Sets how it fares.
    pub fn set(&self, condition: Condition) {
        self.lock().fares(condition);
    }

    /// Do others keep it from its work, as far as this process can tell?
    pub fn is_kept(&self) -> bool {
        matches!(self.lock().condition, Condition::Away(_) | Condition::InDoubt(_))
    }

    /// Notes why it does not work. What a person must look after stays until it works again: that another attempt failed otherwise,
    /// because the log was away, says nothing about it.
    pub fn fail(&self, error: ShardError) {
        let mut inner = self.lock();
        inner.stepped = None;
        match error {
            ShardError::Stopped(message) => inner.fares(Condition::Stopped(message)),
            _ if matches!(inner.condition, Condition::Stopped(_)) => {}
            // It was to own it, and is not any more: that it does not is no failure.
            ShardError::Reopen(_) | ShardError::InDoubt(_) if inner.is_to_own && !owns(&inner.order.duty) => {
                inner.fares(Condition::Opening);
            }
            ShardError::Reopen(message) => inner.fares(Condition::Retrying(message)),
            ShardError::InDoubt(message) => inner.fares(Condition::InDoubt(message)),
            ShardError::Away(message) => inner.fares(Condition::Away(message)),
        }
    }

    /// Notes that it polled without an error, so many times in turn without input; true when what hampered it is over.
    pub fn polled(&self, quiet: u32) -> bool {
        let mut inner = self.lock();
        let was_hampered = matches!(inner.condition, Condition::Hampered(_));
        if quiet == 0 || quiet >= QUIET_POLLS {
            inner.fitness.works();
        }
        if quiet == 0 || quiet >= QUIET_POLLS || !matches!(inner.condition, Condition::Stopped(_)) {
            inner.fares(Condition::Running);
        }
        was_hampered
    }

    /// Notes whether the disk of a standby takes what was followed. One whose does not is told as none, however well its thread follows.
    pub fn note_disk(&self, hangs: bool) {
        self.lock().disk_hangs = hangs;
    }

    /// Notes that it works, and what is wrong all the same; true when that is new.
    pub fn hampered(&self, why: &str) -> bool {
        let mut inner = self.lock();
        let is_new = !matches!(inner.condition, Condition::Hampered(_));
        inner.fares(Condition::Hampered(why.to_owned()));
        is_new
    }

    /// Notes that it does what its owner is for: a write was decided, or there is nothing to do.
    pub fn works(&self) {
        self.lock().fitness.works();
    }

    /// Notes that it followed its changelog without an error.
    pub fn followed(&self) {
        let mut inner = self.lock();
        if inner.status.lag == 0 || !matches!(inner.condition, Condition::Stopped(_)) {
            inner.fares(Condition::Following);
            inner.fitness.follows();
        }
    }

    /// Sums per tenant as of the last batch; none while another process has the shard.
    pub fn usage(&self) -> BTreeMap<String, Usage> {
        self.lock().usage.clone()
    }

    /// Changed sums.
    pub fn add_usage(&self, changed: &BTreeMap<String, Usage>) {
        self.lock().usage.extend(changed.iter().map(|(tenant, sums)| (tenant.clone(), *sums)));
    }

    /// Notes what the thread has to report; true when it has just lost the shard, whose sums are another process's now.
    pub fn report(&self, status: ShardStatus) -> bool {
        let mut inner = self.lock();
        let is_lost = inner.status.role == Role::Owner && status.role != Role::Owner;
        if is_lost {
            inner.usage.clear();
            inner.behind = None;
        }
        if inner.status.role != Role::Owner {
            if status.role == Role::Owner {
                // Its inputs are read anew.
                (inner.behind, inner.heard, inner.is_deaf) = (None, Listened::default(), false);
            }
            // Opening it may have taken long.
            inner.stepped = inner.stepped.map(|_| Instant::now());
            inner.moved = inner.stepped;
        }
        // A shard that was owned does not begin anew, whoever looks for its changelog next.
        let epoch = status.epoch.max(inner.status.epoch);
        inner.status = ShardStatus { epoch, ..status };
        is_lost
    }

    /// What to report; nothing of a shard that is closed and has no trouble. An owner that hangs is none: what it would still commit, its successor fences. Nor is a standby that does: others must
    /// not wait for it.
    pub fn status(&self) -> Option<ShardStatus> {
        self.status_at(Instant::now())
    }

    fn status_at(&self, now: Instant) -> Option<ShardStatus> {
        let inner = self.lock();
        let unread = inner.unread.iter().map(Unread::for_good).collect();
        if let Some(condition) = self.hangs(&inner, now) {
            let status = inner.status.clone();
            return Some(ShardStatus { role: Role::Opening, condition, prepared: None, unread, ..status });
        }
        let condition = match &inner.condition {
            Condition::Closed => return None,
            _ if inner.opens_for(OPENS_LONG, now) => {
                let (status, condition) = (inner.status.clone(), "it takes long to open: look whether its disk hangs");
                let condition = condition.to_owned();
                return Some(ShardStatus { role: Role::Opening, condition, prepared: None, unread, ..status });
            }
            _ if inner.opens_for(GOES_ON, now) => String::new(),
            Condition::Hampered(message) if inner.disk_hangs && inner.status.role == Role::Standby => {
                let (status, condition) = (inner.status.clone(), message.clone());
                return Some(ShardStatus { role: Role::Opening, condition, prepared: None, unread, ..status });
            }
            Condition::Hampered(message)
            | Condition::Retrying(message)
            | Condition::InDoubt(message)
            | Condition::Away(message)
            | Condition::Stopped(message) => message.clone(),
            _ => inner.behind.as_ref().and_then(|behind| behind.held_back.clone()).unwrap_or_default(),
        };
        let mut status = ShardStatus { condition, unread, ..inner.status.clone() };
        if let Some(behind) = inner.behind.as_ref().filter(|_| status.role == Role::Owner) {
            (status.lag, status.unread_ms) = (behind.lag.unwrap_or_default(), behind.unread_ms);
            status.unread.clone_from(&inner.unread);
        }
        Some(status)
    }

    /// What is known for good of what waits for it, of each input; nothing: nobody has looked yet.
    pub fn known(&self) -> Vec<Unread> {
        self.lock().unread.iter().map(Unread::for_good).collect()
    }

    /// The former process of this name knew this of its inputs, unless this one knows more by now.
    pub fn was_known(&self, unread: Vec<Unread>) {
        let known = &mut self.lock().unread;
        for former in unread {
            if known.iter().all(|known| known.topic != former.topic) {
                known.push(former);
            }
        }
    }

    /// Notes how far its inputs are read for good: nothing below will be read again, whatever happens.
    pub fn note_passed(&self, passed: Vec<Position>) {
        let mut inner = self.lock();
        inner.reads_from.clone_from(&passed);
        inner.passed = passed;
    }

    /// Notes when the newest message of each input that was processed was appended, in the inputs' order.
    pub fn note_processed(&self, processed_ms: Vec<Option<u64>>) {
        self.lock().processed_ms = processed_ms;
    }

    /// Notes where an owner reads on: further than what is read for good when only markers of transactions follow.
    pub fn note_reads_from(&self, positions: Vec<Position>) {
        self.lock().reads_from = positions;
    }

    /// Where an owner reads on, and when the newest message that it has processed of each input was appended; `None`: it is no owner.
    pub fn reads_from(&self) -> Option<Vec<(Position, Option<u64>)>> {
        let inner = self.lock();
        let processed_ms = inner.processed_ms.iter().copied().chain(std::iter::repeat(None));
        let inputs = inner.reads_from.iter().cloned().zip(processed_ms);
        (inner.status.role == Role::Owner).then(|| inputs.collect())
    }

    /// It is an owner's, and nobody has looked yet how far it is behind.
    pub fn is_unmeasured(&self) -> bool {
        let inner = self.lock();
        inner.status.role == Role::Owner && inner.behind.is_none()
    }

    /// Notes how far an owner is behind its inputs, and what is known of each; tells whether something has begun or ended to keep them from it. `None`: it is no owner any more.
    pub fn is_behind(&self, mut behind: Behind, unread: Vec<Unread>) -> Option<bool> {
        let mut inner = self.lock();
        if inner.status.role != Role::Owner {
            return None;
        }
        if behind.lag.is_none()
            && let Some(before) = &inner.behind
        {
            (behind.lag, behind.held_back) = (before.lag, before.held_back.clone());
        }
        let was_held = inner.behind.as_ref().is_some_and(|before| before.held_back.is_some());
        let is_new = was_held != behind.held_back.is_some();
        (inner.behind, inner.unread) = (Some(behind), unread);
        Some(is_new)
    }

    /// Notes what an owner has heard of its inputs.
    pub fn note_listened(&self, heard: Listened) {
        self.lock().heard = heard;
    }

    /// Is its thread to read on with another client? It is told so once.
    pub fn take_deaf(&self) -> bool {
        std::mem::take(&mut self.lock().is_deaf)
    }

    /// How far its inputs are read for good, as far as that is known.
    pub fn passed(&self) -> Vec<Position> {
        self.lock().passed.clone()
    }

    fn hangs(&self, inner: &Inner, now: Instant) -> Option<String> {
        let bound = match inner.status.role {
            Role::Owner | Role::Standby => self.hangs,
            Role::Opening => return None,
        };
        let still = inner.moved.map(|moved| now.saturating_duration_since(moved)).filter(|still| *still > bound)?;
        let seconds = still.as_secs();
        Some(format!("its thread has not moved for {seconds} s: look whether the disk of its state hangs"))
    }

    /// Does this process own the shard?
    pub fn is_owner(&self) -> bool {
        self.lock().status.role == Role::Owner
    }
}

impl Ear for Desk {
    fn name(&self) -> String {
        self.id().to_string()
    }

    fn listened(&self) -> Option<Listened> {
        let inner = self.lock();
        (inner.status.role == Role::Owner).then(|| inner.heard.clone())
    }

    fn read_anew(&self) {
        self.lock().is_deaf = true;
    }
}

impl Inner {
    fn fares(&mut self, condition: Condition) {
        self.fitness.note(&condition, Instant::now());
        self.condition = condition;
    }

    /// Has its newest step taken longer than this to open the shard, or to take it over?
    fn opens_for(&self, longer_than: Duration, now: Instant) -> bool {
        let opens = self.status.role == Role::Opening || (self.status.role == Role::Standby && self.is_to_own);
        opens && self.stepped.is_some_and(|stepped| now.saturating_duration_since(stepped) > longer_than)
    }
}

/// To own a shard, it may have to be taken over first.
fn owns(duty: &Duty) -> bool {
    matches!(duty, Duty::Own | Duty::TakeOver)
}

/// A shard whose thread has ended, in whatever way, does not work any more.
pub(super) struct EndOfThread<'a>(pub(super) &'a Desk);

impl Drop for EndOfThread<'_> {
    fn drop(&mut self) {
        let why =
            if std::thread::panicking() { "its thread panicked: restart the process" } else { "its thread ended" };
        // Others must not wait for an owner that is none.
        self.0.report(ShardStatus::default());
        self.0.fail(ShardError::Stopped(why.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fitness::FOLLOWS_WITHIN;
    use super::*;
    use millstream_shard::log::LogError;

    const STORES: Stores = Stores { are_servers: true, are_lost: false };

    #[test]
    fn an_owner_that_has_worked_is_excused_while_its_stores_are_away() {
        let desk = Desk::new("unify", 0, Duty::Own);
        let is_ready = || !matches!(desk.health(STORES), Health::NotReady(_));
        desk.polled(1);
        desk.fail(ShardError::Away("nobody listens".into()));
        assert!(!is_ready(), "nothing has come yet");
        desk.polled(QUIET_POLLS);
        desk.fail(ShardError::Away("nobody listens".into()));
        assert!(is_ready());
        desk.set(Condition::Closed);
        desk.fail(ShardError::Away("nobody listens".into()));
        assert!(!is_ready());
        desk.works();
        desk.fail(ShardError::Away("nobody listens".into()));
        assert!(is_ready());
    }

    #[test]
    fn a_follower_that_is_far_behind_is_not_ready() {
        let desk = Desk::new("unify", 0, Duty::Standby { prepare: false, soon: false });
        let report = |lag: u64| desk.report(ShardStatus { role: Role::Standby, lag, ..ShardStatus::default() });
        report(FOLLOWS_WITHIN + 1);
        desk.followed();
        assert!(matches!(desk.health(STORES), Health::NotReady(why) if why.contains("10001 messages behind")));
        desk.hampered("the disk is full");
        assert!(matches!(desk.health(STORES), Health::NotReady(_)));
        report(FOLLOWS_WITHIN);
        assert_eq!(desk.health(STORES), Health::Impaired("the disk is full".into()));
        desk.followed();
        assert_eq!(desk.health(STORES), Health::Well);
    }

    #[test]
    fn an_owner_whose_thread_hangs_is_told_as_none() {
        let desk = Desk::new("unify", 0, Duty::Own);
        desk.report(ShardStatus { role: Role::Owner, epoch: 7, ..ShardStatus::default() });
        assert_eq!(
            desk.status_at(Instant::now() + HANGS * 2).unwrap().role,
            Role::Owner,
            "nobody has counted its steps"
        );
        desk.steps();
        let now = Instant::now();
        assert_eq!(desk.status_at(now + HANGS / 2).unwrap().role, Role::Owner);
        let told = desk.status_at(now + HANGS + Duration::from_secs(1)).unwrap();
        assert_eq!((told.role, told.epoch), (Role::Opening, 7));
        assert!(told.condition.contains("has not moved for 12"), "{}", told.condition);
    }

    /// Of a standby; what it is told as after so long.
    fn told(desk: &Desk, after: Duration) -> (Role, String, Option<String>) {
        let status = desk.status_at(Instant::now() + after).unwrap();
        (status.role, status.condition, status.prepared)
    }

    fn standby(duty: Duty) -> Desk {
        let desk = Desk::new("unify", 0, duty);
        let prepared = Some("client".to_owned());
        desk.report(ShardStatus { role: Role::Standby, epoch: 7, prepared, ..ShardStatus::default() });
        desk.followed();
        desk.steps();
        desk
    }

    #[test]
    fn a_standby_whose_thread_hangs_while_it_is_to_own_the_shard_is_told_as_none() {
        let (second, order) = (Duration::from_secs(1), |duty| Order { duty, ..Order::default() });
        let desk = standby(Duty::TakeOver);
        assert_eq!(told(&desk, HANGS / 2).0, Role::Standby);
        let (role, condition, prepared) = told(&desk, HANGS + second);
        assert_eq!((role, prepared), (Role::Opening, None));
        assert!(condition.contains("has not moved for 12"), "{condition}");
        // One that only follows hangs like one that is to own the shard: it would be handed off to.
        let desk = standby(Duty::Standby { prepare: true, soon: false });
        for duty in
            [Duty::Standby { prepare: true, soon: false }, Duty::Own, Duty::Standby { prepare: false, soon: false }]
        {
            desk.set_order(order(duty));
            assert_eq!(told(&desk, HANGS / 2).0, Role::Standby);
            assert_eq!(told(&desk, HANGS + second).0, Role::Opening);
        }
        assert_eq!(desk.health(STORES), Health::Well);
    }

    #[test]
    fn a_standby_that_reads_a_long_changelog_before_it_owns_the_shard_does_not_hang() {
        let desk = standby(Duty::TakeOver);
        let long_ago = |ago: Duration| Instant::now().checked_sub(ago);
        let began = |ago: Duration| {
            let mut inner = desk.lock();
            (inner.stepped, inner.moved) = (long_ago(ago), long_ago(ago));
        };
        began(HANGS * 2);
        assert_eq!(told(&desk, Duration::ZERO).0, Role::Opening);
        desk.moves();
        assert_eq!(told(&desk, Duration::ZERO), (Role::Standby, String::new(), Some("client".to_owned())));
        assert_eq!(told(&desk, HANGS + Duration::from_secs(1)).0, Role::Opening, "it does not move any more");
        // Others may be quicker.
        began(OPENS_LONG * 2);
        desk.moves();
        let (role, condition, _) = told(&desk, Duration::ZERO);
        assert!(role == Role::Opening && condition.contains("takes long"), "{role:?} {condition}");
        // Nobody waits for one that is to have a client prepared, and does not own the shard before.
        desk.set_order(Order { duty: Duty::Standby { prepare: true, soon: true }, ..Order::default() });
        desk.steps();
        began(OPENS_LONG * 2);
        desk.moves();
        assert_eq!(told(&desk, Duration::ZERO).0, Role::Standby);
    }

    #[test]
    fn a_standby_whose_disk_hangs_is_told_as_none_while_its_thread_goes_on() {
        let desk = standby(Duty::Standby { prepare: true, soon: false });
        desk.hampered("the local disk is slow");
        assert_eq!(told(&desk, Duration::ZERO).0, Role::Standby, "it is slow");
        desk.note_disk(true);
        let (role, condition, prepared) = told(&desk, Duration::ZERO);
        assert_eq!((role, condition.as_str(), prepared), (Role::Opening, "the local disk is slow", None));
        desk.note_disk(false);
        assert_eq!(told(&desk, Duration::ZERO).0, Role::Standby);
    }

    #[test]
    fn to_be_told_that_somebody_else_was_quicker_is_no_failure() {
        let desk = standby(Duty::TakeOver);
        desk.set_order(Order { duty: Duty::Standby { prepare: false, soon: false }, ..Order::default() });
        desk.fail(ShardError::Reopen("not to be taken over any more".into()));
        assert_eq!(desk.condition(), Condition::Opening);
        desk.fail(ShardError::Away("the log".into()));
        assert!(desk.is_kept());
        desk.fail(ShardError::Reopen("the disk is full".into()));
        assert_eq!(desk.condition(), Condition::Opening);
    }

    #[test]
    fn who_is_kept_from_its_work_and_who_is_not() {
        let is_kept = |error| {
            let desk = Desk::new("unify", 0, Duty::Own);
            desk.fail(error);
            desk.is_kept()
        };
        assert!(is_kept(ShardError::Away("the log".into())));
        assert!(is_kept(ShardError::from(LogError::Unknown("a commit".into()))));
        assert!(!is_kept(ShardError::Reopen("the disk is full".into())));
        assert!(!is_kept(ShardError::Stopped("a gap".into())));
    }

    #[test]
    fn who_reads_to_own_a_shard_hears_that_it_is_not_wanted_any_more() {
        let order = |duty| Order { duty, ..Order::default() };
        let desk = standby(Duty::TakeOver);
        assert_eq!(desk.moves(), Wanted::All);
        desk.set_order(order(Duty::Own));
        assert_eq!(desk.moves(), Wanted::All, "in another way");
        desk.set_order(order(Duty::Standby { prepare: false, soon: false }));
        assert_eq!(desk.moves(), Wanted::NotToOwn, "somebody else was quicker");
        desk.steps();
        assert_eq!(desk.moves(), Wanted::All, "it follows");
        desk.wake();
        assert_eq!(desk.moves(), Wanted::Nothing, "the process ends");
    }

    #[test]
    fn an_attempt_that_goes_on_does_not_say_why_the_one_before_failed() {
        let desk = Desk::new("unify", 0, Duty::Own);
        let condition = |after: Duration| desk.status_at(Instant::now() + after).unwrap().condition;
        desk.fail(ShardError::Reopen("local state was discarded".into()));
        assert_eq!(condition(GOES_ON * 2), "local state was discarded");
        desk.steps();
        assert_eq!(condition(Duration::ZERO), "local state was discarded");
        assert_eq!(condition(GOES_ON * 2), "", "it reads the changelog");
        assert!(condition(OPENS_LONG * 2).contains("takes long"), "{}", condition(OPENS_LONG * 2));
        desk.fail(ShardError::Reopen("again".into()));
        assert_eq!(condition(GOES_ON * 2), "again");
    }

    #[test]
    fn a_thread_that_ends_is_no_owner_and_says_so() {
        let desk = Desk::new("unify", 0, Duty::Own);
        desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
        desk.steps();
        drop(EndOfThread(&desk));
        let told = desk.status_at(Instant::now() + HANGS * 2).unwrap();
        assert_eq!((told.role, told.condition.as_str()), (Role::Opening, "its thread ended"));
    }

    #[test]
    fn stopped_stays_until_it_works() {
        let desk = Desk::new("unify", 0, Duty::Own);
        let stopped = Condition::Stopped("topic was made again".into());
        desk.fail(ShardError::Reopen("log away".into()));
        assert_eq!(desk.condition(), Condition::Retrying("log away".into()));
        desk.fail(ShardError::Stopped("topic was made again".into()));
        desk.fail(ShardError::Reopen("log away".into()));
        assert_eq!(desk.condition(), stopped, "another failure says nothing about it");
        desk.polled(QUIET_POLLS - 1);
        assert_eq!(desk.condition(), stopped, "what stopped it may not have been fetched yet");
        desk.polled(QUIET_POLLS);
        assert_eq!(desk.condition(), Condition::Running);
        desk.fail(ShardError::Stopped("again".into()));
        desk.polled(0);
        assert_eq!(desk.condition(), Condition::Running, "a batch was committed");
    }

    #[test]
    fn a_shard_without_input_works_after_its_first_poll() {
        let desk = Desk::new("unify", 0, Duty::Own);
        assert_eq!(desk.condition(), Condition::Opening);
        desk.polled(1);
        assert_eq!(desk.condition(), Condition::Running);
    }

    #[test]
    fn a_standby_that_stopped_follows_again_when_it_has_read_everything() {
        let desk = Desk::new("unify", 0, Duty::Standby { prepare: false, soon: false });
        desk.fail(ShardError::Stopped("chain broken".into()));
        desk.report(ShardStatus { role: Role::Standby, lag: 3, ..ShardStatus::default() });
        desk.followed();
        assert_eq!(desk.condition(), Condition::Stopped("chain broken".into()));
        desk.report(ShardStatus { role: Role::Standby, ..ShardStatus::default() });
        desk.followed();
        assert_eq!(desk.condition(), Condition::Following);
    }

    #[test]
    fn whoever_is_woken_waits_no_more() {
        let desk = Desk::new("unify", 0, Duty::Nothing);
        desk.wake();
        desk.wait_for_other(&desk.order(), Duration::from_secs(3_600));
    }

    #[test]
    fn sums_go_with_the_shard() {
        let desk = Desk::new("unify", 0, Duty::Own);
        desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() });
        desk.add_usage(&BTreeMap::from([("acme".to_owned(), Usage::default())]));
        assert!(!desk.report(ShardStatus { role: Role::Owner, ..ShardStatus::default() }));
        assert_eq!(desk.usage().len(), 1);
        assert!(desk.report(ShardStatus::default()), "lost");
        assert!(desk.usage().is_empty());
    }
}
