//! The threads of the reaction role that write documents: bulks in, outcomes out.

use millstream_model::proto::Mutation;
use millstream_shard::ShardError;
use millstream_shard::documents::{DocumentStore, Outcome};
use millstream_stages::reaction::{DocumentKey, Written};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Writes of different documents.
pub(super) type Bulk = Vec<(DocumentKey, Mutation)>;
/// What became of them.
pub(super) type Outcomes = Vec<(DocumentKey, Written)>;

/// Threads that write bulks.
pub(super) struct Writers {
    bulks: Option<SyncSender<Bulk>>,
    outcomes: Mutex<Receiver<Outcomes>>,
    threads: Vec<JoinHandle<()>>,
}

impl Writers {
    /// Starts so many threads.
    ///
    /// # Errors
    /// [`ShardError::Reopen`] when no thread can be had.
    pub(super) fn start(count: usize, documents: &Arc<dyn DocumentStore>) -> Result<Writers, ShardError> {
        let (bulks, waiting) = sync_channel::<Bulk>(count);
        let (decided, outcomes) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let spawn = |_| {
            let (documents, waiting, decided) = (documents.clone(), waiting.clone(), decided.clone());
            std::thread::Builder::new().name("documents".into()).spawn(move || {
                loop {
                    let bulk = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(bulk) = bulk else { return };
                    if decided.send(write(&*documents, bulk)).is_err() {
                        return;
                    }
                }
            })
        };
        let threads: Result<Vec<_>, _> = (0..count).map(spawn).collect();
        let threads = threads.map_err(|error| ShardError::Reopen(format!("no thread for writes: {error}")))?;
        Ok(Writers { bulks: Some(bulks), outcomes: Mutex::new(outcomes), threads })
    }

    /// What became of bulks.
    pub(super) fn outcomes(&self) -> std::sync::MutexGuard<'_, Receiver<Outcomes>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over a bulk.
    ///
    /// # Errors
    /// [`ShardError::Reopen`] when the threads are gone.
    pub(super) fn submit(&self, bulk: Bulk) -> Result<(), ShardError> {
        let sent = self.bulks.as_ref().is_some_and(|bulks| bulks.send(bulk).is_ok());
        if sent { Ok(()) } else { Err(ShardError::Reopen("the threads that write documents are gone".into())) }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.bulks = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn write(documents: &dyn DocumentStore, bulk: Bulk) -> Outcomes {
    let (keys, mutations): (Vec<DocumentKey>, Vec<Mutation>) = bulk.into_iter().unzip();
    let mut outcomes = documents.write(&mutations).into_iter();
    let written = |outcome| match outcome {
        Some(Outcome::Applied | Outcome::Stale) => Written::Done,
        Some(Outcome::Gap) => Written::Gap,
        Some(Outcome::Refused(message)) => Written::Refused(message),
        Some(Outcome::Retry(message)) => Written::Retry(message),
        None => Written::Retry("the store gave no outcome".into()),
    };
    keys.into_iter().map(|key| (key, written(outcomes.next()))).collect()
}
