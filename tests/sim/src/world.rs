//! The scheduler: who goes on next, and what time it is.
//!
//! Every actor is a coroutine with a stack of its own, and all of them run on one thread: real code that calls the log or the store comes to [`World::step`], deep in its
//! stack, and stands still there until it is its turn again. Turns are entries of one queue, ordered by simulated time and drawn latencies, so that one seed is one
//! run. Waiting costs nothing: when nobody is ready, time jumps.
//!
//! *A crash* unwinds the coroutines of a process from wherever they stand. Their destructors run, as they must in one address space, but have no effect: every handle asks
//! [`World::is_dead`] first. *A paused process* (SIGSTOP) is not scheduled until its time is up, then goes on as if nothing had happened: a zombie.
//!
//! Nothing may hold a lock of the simulation over a step: whoever is scheduled next would wait for it for ever.

use crate::counts::{Counts, Fault, Protocol};
use crate::rng::Rng;
use generator::{Generator, Gn};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Milliseconds since 1970 at which every run begins.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// Words of a coroutine's stack: 512 KiB, of which the system gives only what is used. The deepest are stages that parse JSON in a debug build.
const STACK_WORDS: usize = 0x80000 / size_of::<usize>();

/// A run that takes more steps than this does not end by itself.
const MOST_STEPS: u64 = 20_000_000;

/// A process of the simulated cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(usize);

/// Wakes a coroutine that waits; of several wakes of one wait only the first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waker {
    task: usize,
    token: u64,
}

impl Waker {
    /// Do both wake the same coroutine?
    pub fn is_of_same(&self, other: &Waker) -> bool {
        self.task == other.task
    }
}

/// What unwinds a coroutine whose process has crashed.
struct Crashed;

type Work = Box<dyn FnOnce(&World) + Send>;

enum What {
    Wake(Waker),
    Run(Work),
}

struct Entry {
    at_us: u64,
    /// Orders what is due at one moment.
    tie: u64,
    what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        (self.at_us, self.tie) == (other.at_us, other.tie)
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    /// The earliest is the greatest: [`BinaryHeap`] gives the greatest first.
    fn cmp(&self, other: &Entry) -> Ordering {
        (other.at_us, other.tie).cmp(&(self.at_us, self.tie))
    }
}

struct Task {
    process: ProcessId,
    name: String,
    coroutine: Option<Generator<'static, (), ()>>,
    started: bool,
    done: bool,
    /// Of its present wait.
    token: u64,
}

struct Process {
    name: String,
    dead: bool,
    paused_until_us: u64,
    /// Turns that came while it was paused.
    held: Vec<Waker>,
    /// It crashes after so many more steps.
    fuse: Option<u64>,
    /// Its clock is ahead by so much.
    skew_ms: i64,
    tasks: Vec<usize>,
}

struct Scheduler {
    now_us: u64,
    rng: Rng,
    queue: BinaryHeap<Entry>,
    tasks: Vec<Task>,
    /// Places in `tasks` that can be used again.
    free: Vec<usize>,
    processes: Vec<Process>,
    /// Processes whose coroutines are still to be unwound.
    died: Vec<ProcessId>,
    current: Option<usize>,
    steps: u64,
    /// A hash of every step: two runs of one seed have the same.
    fingerprint: u64,
    /// Latencies are multiplied by this, in tenths.
    slowness: u64,
    /// Faults happen.
    faults_on: bool,
    rates: [u32; Fault::ALL.len()],
    counts: Counts,
    failures: Vec<String>,
    trace: bool,
}

/// A simulated world; clones are the same one.
#[derive(Clone)]
pub struct World(Arc<Mutex<Scheduler>>);

impl World {
    /// An empty world of a seed.
    pub fn new(seed: u64, trace: bool) -> World {
        let scheduler = Scheduler {
            now_us: 0,
            rng: Rng::new(seed),
            queue: BinaryHeap::new(),
            tasks: Vec::new(),
            free: Vec::new(),
            processes: Vec::new(),
            died: Vec::new(),
            current: None,
            steps: 0,
            fingerprint: seed,
            slowness: 10,
            faults_on: false,
            rates: [0; Fault::ALL.len()],
            counts: Counts::default(),
            failures: Vec::new(),
            trace,
        };
        World(Arc::new(Mutex::new(scheduler)))
    }

    fn lock(&self) -> MutexGuard<'_, Scheduler> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Simulated time since the run began, microseconds.
    pub fn now_us(&self) -> u64 {
        self.lock().now_us
    }

    /// Simulated time since the run began, milliseconds: what a monotonic clock shows.
    pub fn monotonic_ms(&self) -> u64 {
        self.now_us() / 1000
    }

    /// The true time, milliseconds since 1970.
    pub fn true_ms(&self) -> u64 {
        EPOCH_MS + self.monotonic_ms()
    }

    /// Draws numbers.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.lock().rng)
    }

    /// How slow calls are, in tenths of the usual.
    pub fn set_slowness(&self, tenths: u64) {
        self.lock().slowness = tenths;
    }

    /// Sets how often each fault happens, of ten thousand occasions.
    pub fn set_rate(&self, fault: Fault, of_10_000: u32) {
        self.lock().rates[fault as usize] = of_10_000;
    }

    /// Begins or ends the time of faults.
    pub fn set_faults(&self, on: bool) {
        self.lock().faults_on = on;
    }

    /// Is it the time of faults?
    pub fn has_faults(&self) -> bool {
        self.lock().faults_on
    }

    /// Does this fault happen here? It is counted if so.
    pub fn happens(&self, fault: Fault) -> bool {
        let mut scheduler = self.lock();
        let rate = scheduler.rates[fault as usize];
        // Without a draw when it never happens: what else is drawn does not depend on which faults there are.
        let happens = scheduler.faults_on && rate > 0 && scheduler.rng.chance(rate);
        if happens {
            scheduler.counts.faults[fault as usize] += 1;
        }
        drop(scheduler);
        if happens {
            self.trace(|| format!("FAULT {}", fault.name()));
        }
        happens
    }

    /// Counts a fault that happened.
    pub fn count_fault(&self, fault: Fault) {
        self.lock().counts.faults[fault as usize] += 1;
        self.trace(|| format!("FAULT {}", fault.name()));
    }

    /// Counts a step of the protocol.
    pub fn count(&self, step: Protocol) {
        self.lock().counts.steps[step as usize] += 1;
        self.trace(|| format!("STEP {}", step.name()));
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts.clone()
    }

    /// Notes that something must not be.
    pub fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.trace(|| format!("FAILURE {what}"));
        self.lock().failures.push(what);
    }

    /// What must not be, and was.
    pub fn failures(&self) -> Vec<String> {
        self.lock().failures.clone()
    }

    /// Steps so far, and a hash of all of them.
    pub fn fingerprint(&self) -> (u64, u64) {
        let scheduler = self.lock();
        (scheduler.steps, scheduler.fingerprint)
    }

    /// Is every step printed?
    pub fn traces(&self) -> bool {
        self.lock().trace
    }

    /// Prints what happens, when everything is printed.
    pub fn trace(&self, what: impl FnOnce() -> String) {
        let scheduler = self.lock();
        if !scheduler.trace {
            return;
        }
        let who = scheduler.current.map_or(String::from("-"), |task| {
            let task = &scheduler.tasks[task];
            format!("{} {}", scheduler.processes[task.process.0].name, task.name)
        });
        let now_us = scheduler.now_us;
        drop(scheduler);
        println!("{:>6}.{:06} [{who}] {}", now_us / 1_000_000, now_us % 1_000_000, what());
    }

    /// Does something at a time, outside of every coroutine.
    pub fn at(&self, at_us: u64, work: impl FnOnce(&World) + Send + 'static) {
        self.lock().push(at_us, What::Run(Box::new(work)));
    }

    /// Does something after a while, outside of every coroutine.
    pub fn after(&self, delay_us: u64, work: impl FnOnce(&World) + Send + 'static) {
        let at_us = self.now_us() + delay_us;
        self.at(at_us, work);
    }

    // ---- processes ---------------------------------------------------------------------------------------------------

    /// A new process; its clock is ahead by `skew_ms`.
    pub fn process(&self, name: impl Into<String>, skew_ms: i64) -> ProcessId {
        let mut scheduler = self.lock();
        let name = name.into();
        let process =
            Process { name, dead: false, paused_until_us: 0, held: Vec::new(), fuse: None, skew_ms, tasks: Vec::new() };
        scheduler.processes.push(process);
        ProcessId(scheduler.processes.len() - 1)
    }

    /// What the process is called.
    pub fn name(&self, process: ProcessId) -> String {
        self.lock().processes[process.0].name.clone()
    }

    /// What the clock of a process shows, milliseconds since 1970.
    pub fn clock_ms(&self, process: ProcessId) -> u64 {
        let scheduler = self.lock();
        let skew_ms = scheduler.processes[process.0].skew_ms;
        (EPOCH_MS + scheduler.now_us / 1000).saturating_add_signed(skew_ms)
    }

    /// The clock of a process jumps.
    pub fn set_skew(&self, process: ProcessId, skew_ms: i64) {
        self.lock().processes[process.0].skew_ms = skew_ms;
    }

    /// Has it crashed or ended?
    pub fn is_dead(&self, process: ProcessId) -> bool {
        self.lock().processes[process.0].dead
    }

    /// Does any coroutine of it still run?
    pub fn is_running(&self, process: ProcessId) -> bool {
        let scheduler = self.lock();
        let process = &scheduler.processes[process.0];
        !process.dead && process.tasks.iter().any(|task| !scheduler.tasks[*task].done)
    }

    /// Kills a process where it stands.
    pub fn crash(&self, process: ProcessId) {
        self.trace(|| format!("crash of {}", self.name(process)));
        self.lock().kill(process);
    }

    /// Kills a process at one of its next steps.
    pub fn crash_after(&self, process: ProcessId, steps: u64) {
        self.lock().processes[process.0].fuse = Some(steps);
    }

    /// A crash that was to come does not.
    pub fn spare(&self, process: ProcessId) {
        self.lock().processes[process.0].fuse = None;
    }

    /// Stops a process for a while; it notices nothing.
    pub fn pause(&self, process: ProcessId, for_us: u64) {
        self.trace(|| format!("pause of {} for {} ms", self.name(process), for_us / 1000));
        let mut scheduler = self.lock();
        let until_us = scheduler.now_us + for_us;
        scheduler.processes[process.0].paused_until_us = until_us;
        drop(scheduler);
        self.at(until_us, move |world| world.lock().resume_paused(process));
    }

    /// Ends every pause.
    pub fn wake_all(&self) {
        let mut scheduler = self.lock();
        for index in 0..scheduler.processes.len() {
            scheduler.processes[index].paused_until_us = 0;
            scheduler.resume_paused(ProcessId(index));
        }
    }

    /// Starts a coroutine of a process.
    pub fn spawn(&self, process: ProcessId, name: impl Into<String>, work: impl FnOnce() + Send + 'static) {
        let world = self.clone();
        let coroutine = Gn::<()>::new_opt(STACK_WORDS, move || {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(work))
                && !payload.is::<Crashed>()
            {
                let what = payload.downcast_ref::<String>().map(String::as_str);
                let what = what.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("something");
                world.fail(format!("a panic: {what}"));
            }
        });
        let mut scheduler = self.lock();
        let name = name.into();
        let mut task = Task { process, name, coroutine: Some(coroutine), started: false, done: false, token: 0 };
        let index = match scheduler.free.pop() {
            Some(index) => {
                // Wakes of the one that was here before are for none.
                task.token = scheduler.tasks[index].token + 1;
                scheduler.tasks[index] = task;
                index
            }
            None => {
                scheduler.tasks.push(task);
                scheduler.tasks.len() - 1
            }
        };
        scheduler.processes[process.0].tasks.push(index);
        let (at_us, token) = (scheduler.now_us + 1, scheduler.tasks[index].token);
        scheduler.push(at_us, What::Wake(Waker { task: index, token }));
    }

    // ---- inside of coroutines --------------------------------------------------------------------------------------

    /// One step, before a call: others may go on before the caller does, and its process may crash here.
    pub fn step(&self, what: &'static str) {
        self.step_of(what, 1);
    }

    /// A step that takes about `factor` times as long.
    pub fn step_of(&self, what: &'static str, factor: u64) {
        self.step_or_crash(what, factor, Fault::CrashBeforeACall);
    }

    /// The same, after a call has taken effect.
    pub fn step_after(&self, what: &'static str, factor: u64) {
        self.step_or_crash(what, factor, Fault::CrashAfterACall);
    }

    fn step_or_crash(&self, what: &'static str, factor: u64, crash: Fault) {
        if !self.is_inside() {
            return;
        }
        let mut scheduler = self.lock();
        let Some(task) = scheduler.current else { return };
        scheduler.note(task, what);
        let latency_us = scheduler.latency() * factor;
        let at_us = scheduler.now_us + latency_us;
        let process = scheduler.tasks[task].process.0;
        let hit = match &mut scheduler.processes[process].fuse {
            Some(0) => true,
            Some(fuse) => {
                *fuse -= 1;
                false
            }
            None => false,
        };
        if hit {
            scheduler.counts.faults[crash as usize] += 1;
            scheduler.kill(ProcessId(process));
        }
        drop(scheduler);
        self.trace(|| what.to_owned());
        if hit {
            self.trace(|| "crash at this step".to_owned());
            resume_unwind(Box::new(Crashed));
        }
        self.sleep_until(at_us);
    }

    /// Are we in a coroutine that is not being unwound?
    fn is_inside(&self) -> bool {
        generator::is_generator() && !std::thread::panicking()
    }

    /// Waits for simulated time to pass.
    pub fn sleep_ms(&self, ms: u64) {
        let at_us = self.now_us() + ms * 1000;
        self.sleep_until(at_us);
    }

    /// Waits until a time.
    pub fn sleep_until(&self, at_us: u64) {
        self.park(at_us, |_| ());
    }

    /// Waits until a time, or until the waker that `register` is given is used.
    pub fn park(&self, until_us: u64, register: impl FnOnce(Waker)) {
        if !self.is_inside() {
            return;
        }
        let mut scheduler = self.lock();
        let Some(task) = scheduler.current else { return };
        scheduler.tasks[task].token += 1;
        let waker = Waker { task, token: scheduler.tasks[task].token };
        let at_us = until_us.max(scheduler.now_us);
        scheduler.push(at_us, What::Wake(waker));
        drop(scheduler);
        register(waker);
        #[allow(deprecated)] // The scoped form cannot be reached from below the traits' calls.
        generator::yield_with(());
        let scheduler = self.lock();
        let dead = scheduler.processes[scheduler.tasks[task].process.0].dead;
        drop(scheduler);
        if dead {
            resume_unwind(Box::new(Crashed));
        }
    }

    /// Lets one that waits go on.
    pub fn wake(&self, waker: Waker) {
        let mut scheduler = self.lock();
        let at_us = scheduler.now_us + scheduler.rng.below(300);
        scheduler.push(at_us, What::Wake(waker));
    }

    // ---- the loop --------------------------------------------------------------------------------------------------

    /// Runs until a time, or until a check, made after each turn of time, says so; true when it said so.
    pub fn run_until(&self, until_us: u64, mut check: impl FnMut(&World) -> bool) -> bool {
        let mut next_check_us = 0;
        loop {
            let mut scheduler = self.lock();
            if scheduler.steps > MOST_STEPS {
                drop(scheduler);
                self.fail(format!("no end after {MOST_STEPS} steps"));
                return false;
            }
            if scheduler.queue.peek().is_none_or(|entry| entry.at_us > until_us) {
                scheduler.now_us = scheduler.now_us.max(until_us);
                drop(scheduler);
                return check(self);
            }
            let Some(entry) = scheduler.queue.pop() else { continue };
            scheduler.now_us = scheduler.now_us.max(entry.at_us);
            let now_us = scheduler.now_us;
            match entry.what {
                What::Run(work) => {
                    drop(scheduler);
                    work(self);
                }
                What::Wake(waker) => self.go_on(scheduler, waker),
            }
            self.reap();
            if now_us >= next_check_us {
                next_check_us = now_us + 50_000;
                if check(self) {
                    return true;
                }
            }
        }
    }

    fn go_on(&self, mut scheduler: MutexGuard<'_, Scheduler>, waker: Waker) {
        let task = &scheduler.tasks[waker.task];
        if task.done || task.token != waker.token {
            return;
        }
        let (index, now_us) = (task.process.0, scheduler.now_us);
        let process = &mut scheduler.processes[index];
        if process.paused_until_us > now_us && !process.dead {
            process.held.push(waker);
            return;
        }
        // A later wake of the same wait is for none.
        scheduler.tasks[waker.task].token += 1;
        drop(scheduler);
        self.resume(waker.task);
    }

    fn resume(&self, task: usize) {
        let mut scheduler = self.lock();
        let Some(mut coroutine) = scheduler.tasks[task].coroutine.take() else { return };
        scheduler.tasks[task].started = true;
        scheduler.current = Some(task);
        drop(scheduler);
        coroutine.resume();
        let done = coroutine.is_done();
        let mut scheduler = self.lock();
        scheduler.current = None;
        if done {
            let (index, process) = (task, scheduler.tasks[task].process.0);
            scheduler.tasks[index].done = true;
            scheduler.processes[process].tasks.retain(|other| *other != index);
            scheduler.free.push(index);
        } else {
            scheduler.tasks[task].coroutine = Some(coroutine);
        }
    }

    /// Unwinds what is left of processes that have died.
    fn reap(&self) {
        loop {
            let Some(process) = self.lock().died.pop() else { return };
            self.unwind(process);
        }
    }

    /// Unwinds all coroutines of a dead process.
    fn unwind(&self, process: ProcessId) {
        loop {
            let mut scheduler = self.lock();
            let Some(task) = scheduler.processes[process.0].tasks.first().copied() else { return };
            if scheduler.tasks[task].started {
                drop(scheduler);
                self.resume(task);
            } else {
                let never_ran = scheduler.tasks[task].coroutine.take();
                scheduler.tasks[task].done = true;
                scheduler.processes[process.0].tasks.retain(|other| *other != task);
                scheduler.free.push(task);
                drop(scheduler);
                drop(never_ran);
            }
        }
    }

    /// Ends everything.
    pub fn end(&self) {
        let count = self.lock().processes.len();
        for index in 0..count {
            self.lock().kill(ProcessId(index));
            self.unwind(ProcessId(index));
        }
        // What is still to happen may hold on to the world.
        let queue = std::mem::take(&mut self.lock().queue);
        drop(queue);
    }
}

impl Scheduler {
    fn push(&mut self, at_us: u64, what: What) {
        let tie = self.rng.next();
        self.queue.push(Entry { at_us, tie, what });
    }

    /// Unless it was paused for longer meanwhile.
    fn resume_paused(&mut self, process: ProcessId) {
        let state = &mut self.processes[process.0];
        if state.paused_until_us <= self.now_us {
            let (held, at_us) = (std::mem::take(&mut state.held), self.now_us);
            held.into_iter().for_each(|waker| self.push(at_us, What::Wake(waker)));
        }
    }

    fn kill(&mut self, process: ProcessId) {
        let state = &mut self.processes[process.0];
        if !std::mem::replace(&mut state.dead, true) {
            self.died.push(process);
        }
    }

    /// Most calls are quick, some take some milliseconds, few much longer.
    fn latency(&mut self) -> u64 {
        let draw = self.rng.below(100);
        let us = match draw {
            0..70 => self.rng.between(5, 150),
            70..95 => self.rng.between(150, 1_500),
            95..99 => self.rng.between(1_500, 10_000),
            _ => self.rng.between(10_000, 60_000),
        };
        us * self.slowness / 10
    }

    fn note(&mut self, task: usize, what: &str) {
        self.steps += 1;
        let mut hash = self.fingerprint ^ self.now_us ^ ((task as u64) << 48);
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ what.len() as u64;
        self.fingerprint = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World::new(7, false)
    }

    /// What several coroutines did, in order.
    type Notes = Arc<Mutex<Vec<String>>>;

    fn note(notes: &Notes, what: impl Into<String>) {
        notes.lock().unwrap().push(what.into());
    }

    #[test]
    fn coroutines_take_turns_and_one_seed_is_one_order() {
        let run = |seed| {
            let (world, notes) = (World::new(seed, false), Notes::default());
            for name in ["a", "b", "c"] {
                let process = world.process(name, 0);
                let (inside, notes) = (world.clone(), notes.clone());
                world.spawn(process, "main", move || {
                    for round in 0..20 {
                        inside.step("x");
                        note(&notes, format!("{name}{round}"));
                    }
                });
            }
            world.run_until(u64::MAX, |_| false);
            let notes = notes.lock().unwrap().clone();
            (notes, world.fingerprint())
        };
        let (first, second, other) = (run(1), run(1), run(2));
        assert_eq!(first, second);
        assert_ne!(first.0, other.0);
        assert_eq!(first.0.len(), 60);
        assert!(!first.0[..20].iter().all(|note| note.starts_with('a')), "they take turns");
    }

    struct Bell(Notes, World, ProcessId);
    impl Drop for Bell {
        fn drop(&mut self) {
            note(&self.0, if self.1.is_dead(self.2) { "unwound" } else { "ended" });
        }
    }

    #[test]
    fn a_crash_unwinds_every_coroutine_of_the_process_and_no_other() {
        let (world, notes) = (world(), Notes::default());
        let (victim, other) = (world.process("victim", 0), world.process("other", 0));
        for (process, name) in [(victim, "1"), (victim, "2"), (other, "3")] {
            let (inside, notes) = (world.clone(), notes.clone());
            world.spawn(process, name, move || {
                let _bell = Bell(notes, inside.clone(), process);
                for _ in 0..100 {
                    inside.step("x");
                }
            });
        }
        world.crash_after(victim, 30);
        world.run_until(u64::MAX, |_| false);
        let mut notes = notes.lock().unwrap().clone();
        notes.sort();
        assert_eq!(notes, ["ended", "unwound", "unwound"]);
        assert_eq!(world.counts().faults[Fault::CrashBeforeACall as usize], 1);
        assert!(!world.is_running(victim));
    }

    #[test]
    fn a_paused_process_goes_on_later_and_waiting_takes_no_steps() {
        let (world, notes) = (world(), Notes::default());
        let process = world.process("sleepy", 250);
        let (inside, noted) = (world.clone(), notes.clone());
        world.spawn(process, "main", move || {
            inside.sleep_ms(10);
            note(&noted, format!("{}", inside.monotonic_ms()));
        });
        world.pause(process, 5_000_000);
        world.run_until(u64::MAX, |world| world.monotonic_ms() > 100_000);
        assert_eq!(*notes.lock().unwrap(), ["5010"]);
        assert_eq!(world.clock_ms(process), world.true_ms() + 250);
    }

    #[test]
    fn whoever_waits_is_woken_once() {
        let (world, notes) = (world(), Notes::default());
        let process = world.process("waiting", 0);
        let (inside, noted) = (world.clone(), notes.clone());
        world.spawn(process, "main", move || {
            for _ in 0..2 {
                let (again, at_us) = (inside.clone(), inside.now_us() + 60_000_000);
                inside.park(at_us, move |waker| {
                    let world = again.clone();
                    again.after(1_000_000, move |_| (0..3).for_each(|_| world.wake(waker)));
                });
                note(&noted, format!("{}", inside.now_us() / 1_000_000));
            }
        });
        world.run_until(u64::MAX, |_| false);
        assert_eq!(*notes.lock().unwrap(), ["1", "2"]);
    }

    #[test]
    fn a_panic_is_a_failure_of_the_run() {
        let world = world();
        let process = world.process("clumsy", 0);
        world.spawn(process, "main", || panic!("what a {}", "pity"));
        world.run_until(u64::MAX, |_| false);
        assert_eq!(world.failures(), ["a panic: what a pity"]);
    }
}
