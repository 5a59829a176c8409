//! The machine's clock, background threads, and the signal to stop.

pub use millstream_stores::embedded::SystemClock;

use millstream_shard::{Executor, Job};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Runs background work in threads of its own: flushes are few and long, a pool would gain nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Threads;

impl Executor for Threads {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> Box<dyn Job> {
        let spawned = std::thread::Builder::new().name("background".into()).spawn(work);
        if let Err(error) = &spawned {
            // The work is dropped, which its owner notices by its channel.
            tracing::error!(%error, "cannot start a background thread");
        }
        Box::new(Thread(spawned.ok()))
    }
}

/// A background thread; none when it could not be started.
struct Thread(Option<JoinHandle<()>>);

impl Job for Thread {
    fn wait(self: Box<Self>) {
        // A panic is in the log, and leaves the work's channel without an answer.
        let _ = self.0.map(JoinHandle::join);
    }
}

/// The signal to stop, shared by every thread of a process.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Tells everybody to stop.
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Has somebody told so?
    pub fn is_stopped(&self) -> bool {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for at most `pause`, or until told to stop; says whether to stop.
    pub fn wait(&self, pause: Duration) -> bool {
        let guard = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(guard, pause, |stopped| !*stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}
