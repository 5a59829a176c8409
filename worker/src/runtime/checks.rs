//! What a process's readiness goes by, besides its shards: it serves and does not stop, and its stores have answered once. A store that is lost later is told, and
//! makes no process unready: all would be at the same time, and clients would find no gateway that tells them to come again.
//!
//! A check must answer at once, so that stores are asked in the background. The thread that asks keeps its store open; whoever drops the check waits for it,
//! so that no store is open when the process ends: RocksDB does not survive the end of `main`.

use super::system::Stop;
use crate::admin::{Check, Health};
use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, TopicPartition};
use millstream_shard::topics::Topics;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a store is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// An answer that takes so long is none: a client may go on asking for half a minute.
const ANSWERS_WITHIN: Duration = Duration::from_secs(4);
/// How long the last answer is waited for. Embedded stores answer at once; a server that is away need not be waited for.
const LAST_ANSWER: Duration = Duration::from_secs(5);

/// Where a process is between its start and its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The public port, if it has one, is not open yet.
    #[default]
    Starting,
    /// It does what it is for.
    Serving,
    /// It was told to stop, and finishes what it has begun. Nobody should send it anything any more.
    Stopping,
}

/// The phase of this process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct PhaseCheck(Arc<Mutex<Phase>>);

impl PhaseCheck {
    /// It has come so far.
    pub fn set(&self, phase: Phase) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }
}

impl Check for PhaseCheck {
    fn name(&self) -> String {
        "process".to_owned()
    }

    fn check(&self) -> Health {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Phase::Starting => Health::NotReady("is starting: it does not serve yet".to_owned()),
            Phase::Serving => Health::Well,
            Phase::Stopping => Health::NotReady("is stopping".to_owned()),
        }
    }
}

/// A store that is asked again and again.
pub struct StoreCheck {
    name: &'static str,
    asked: Asked,
    asking: Option<Asking>,
}

/// What is known of a store that is asked. Cheap to clone.
#[derive(Clone)]
pub struct Asked {
    /// It is none of this process's.
    pub is_server: bool,
    outcome: Arc<Mutex<Outcome>>,
}

impl Asked {
    /// It has answered once, and does not now.
    pub fn is_lost(&self) -> bool {
        let outcome = lock(&self.outcome);
        outcome.has_answered && outcome.trouble().is_some()
    }
}

/// What is known of a store.
struct Outcome {
    newest: Result<(), String>,
    /// It has answered once.
    has_answered: bool,
    /// It was asked then, and has not answered yet.
    asked: Option<Instant>,
}

impl Default for Outcome {
    fn default() -> Outcome {
        let newest = Err("was not asked yet".to_owned());
        Outcome { newest, has_answered: false, asked: None }
    }
}

impl Outcome {
    fn note(&mut self, answer: Result<(), String>) {
        self.has_answered |= answer.is_ok();
        (self.newest, self.asked) = (answer, None);
    }

    /// Why it is not as it should be.
    fn trouble(&self) -> Option<String> {
        match &self.newest {
            Ok(()) if self.asked.is_some_and(|asked| asked.elapsed() > ANSWERS_WITHIN) => {
                Some(format!("does not answer within {ANSWERS_WITHIN:?}"))
            }
            Ok(()) => None,
            Err(why) => Some(why.clone()),
        }
    }
}

/// The thread that asks.
struct Asking {
    thread: JoinHandle<()>,
    told: Arc<Stop>,
    /// Is closed when the thread has let go of the store.
    ended: Mutex<Receiver<()>>,
}

impl Drop for StoreCheck {
    fn drop(&mut self) {
        let Some(Asking { thread, told, ended }) = self.asking.take() else { return };
        told.stop();
        let ended = ended.into_inner().unwrap_or_else(PoisonError::into_inner);
        if ended.recv_timeout(LAST_ANSWER) == Err(RecvTimeoutError::Disconnected) {
            // A panic is in the log.
            let _ = thread.join();
        }
    }
}

impl StoreCheck {
    /// The log is ready when it answers for a partition of `ingress`.
    pub fn log(log: Arc<dyn Log>, topics: &Topics, is_server: bool) -> StoreCheck {
        let at = TopicPartition::new(topics.ingress.clone(), 0);
        StoreCheck::new("log", is_server, move || log.bounds(&at).map(drop).map_err(|error| error.to_string()))
    }

    /// The document store is ready when it can be read.
    pub fn documents(documents: Arc<dyn DocumentStore>, is_server: bool) -> StoreCheck {
        // No tenant has this name: there is no such document, and a store that is there can say so.
        let ask = move || documents.get("_ready", "users", "_ready").map(drop);
        StoreCheck::new("documents", is_server, move || ask().map_err(|error| error.to_string()))
    }

    /// Starts to ask; ends when the check is dropped.
    fn new(name: &'static str, is_server: bool, ask: impl Fn() -> Result<(), String> + Send + 'static) -> StoreCheck {
        let outcome = Arc::<Mutex<Outcome>>::default();
        let (told, (ending, ended)) = (Arc::<Stop>::default(), channel());
        let (answered, stop) = (outcome.clone(), told.clone());
        let started = std::thread::Builder::new().name(format!("{name}-check")).spawn(move || {
            let mut pause = Duration::ZERO;
            while !stop.wait(pause) {
                lock(&answered).asked = Some(Instant::now());
                let answer = ask();
                pause = if answer.is_ok() { ASK_EVERY } else { ASK_EVERY / 10 };
                lock(&answered).note(answer);
            }
            // In this order: who waits takes the end of the channel for the end of the store.
            drop(ask);
            drop::<Sender<()>>(ending);
        });
        if let Err(error) = &started {
            lock(&outcome).newest = Err(error.to_string());
        }
        let asking = started.ok().map(|thread| Asking { thread, told, ended: Mutex::new(ended) });
        StoreCheck { name, asked: Asked { is_server, outcome }, asking }
    }

    /// What is known of it, for others.
    pub fn asked(&self) -> Asked {
        self.asked.clone()
    }
}

fn lock(outcome: &Mutex<Outcome>) -> MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Check for StoreCheck {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn check(&self) -> Health {
        let outcome = lock(&self.asked.outcome);
        match outcome.trouble() {
            None => Health::Well,
            Some(why) if outcome.has_answered => Health::Impaired(why),
            Some(why) => Health::NotReady(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn a_process_is_ready_between_its_start_and_its_stop() {
        let phase = PhaseCheck::default();
        assert!(matches!(phase.check(), Health::NotReady(why) if why.contains("starting")));
        phase.set(Phase::Serving);
        assert_eq!(phase.check(), Health::Well);
        phase.set(Phase::Stopping);
        assert!(matches!(phase.check(), Health::NotReady(why) if why.contains("stopping")));
    }

    #[test]
    fn no_store_is_held_behind_the_end_of_its_check() {
        let store = Arc::new(());
        for _ in 0..20 {
            let held = store.clone();
            let check = StoreCheck::new("log", true, move || {
                assert!(Arc::strong_count(&held) > 1);
                Ok(())
            });
            drop(check);
            assert_eq!(Arc::strong_count(&store), 1);
        }
    }

    #[test]
    fn a_store_must_answer_once_and_is_impaired_when_it_is_lost() {
        let away = Arc::new(AtomicBool::new(true));
        let asked = away.clone();
        let check =
            StoreCheck::new(
                "log",
                true,
                move || if asked.load(Ordering::SeqCst) { Err("away".into()) } else { Ok(()) },
            );
        let until = |wanted: Health| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while check.check() != wanted {
                assert!(Instant::now() < deadline, "{:?}", check.check());
                std::thread::yield_now();
            }
        };
        until(Health::NotReady("away".into()));
        assert!(!check.asked().is_lost(), "it was never there");
        away.store(false, Ordering::SeqCst);
        until(Health::Well);
        away.store(true, Ordering::SeqCst);
        until(Health::Impaired("away".into()));
        assert!(check.asked().is_lost());
    }
}
