//! Publishes the plans of all pipelines: one thread for each, because a log is waited for.
//!
//! A thread prepares the pipeline's topics, listens to what workers report, and publishes ([`Planning`]); what it knows, it tells as a [`Fleet`], and asks for a reconciliation when that has changed.
//! What it meets it tells, too, and goes on. It ends with the operator or with its pipeline, or when another one is to take its place because Kafka is to be reached differently.
//!
//! An operator that was started later, or a person with `millstream plan auto`, may publish in between. The operator that leads is the one that counts: it takes the pipeline's plan back under
//! a higher term. (Of operators only one leads, by its lease, and one that has lost it ends.)

use crate::fleet::Fleet;
use millstream_crds::IngestionPipeline;
use millstream_plan::view::Bounds;
use millstream_shard::log::{Log, LogError};
use millstream_shard::planning::{Planning, Turn, Wishes};
use millstream_shard::topics::Topics;
use millstream_stores::kafka::{KafkaConfig, KafkaLog};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stages that have shards.
const STAGES: [&str; 3] = ["unify", "action", "reaction"];
/// How long one look at reports waits.
const LISTEN: Duration = Duration::from_millis(100);
/// How often a new plan is considered.
const CONSIDER: Duration = Duration::from_millis(300);
/// After the log was not there.
const PAUSE: Duration = Duration::from_secs(2);

/// How a pipeline's log is reached, and which topics are its.
#[derive(Clone, PartialEq)]
pub(crate) struct Access {
    pub(crate) kafka: KafkaConfig,
    pub(crate) topics: Topics,
}

/// What is known of a pipeline's workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Heard {
    /// Once it is known who is alive.
    pub(crate) fleet: Option<Fleet>,
    /// What stands in the way: a reason, and a message.
    pub(crate) problem: Option<(&'static str, String)>,
}

/// Asks for the reconciliation of a pipeline.
pub(crate) type Ask = Arc<dyn Fn(&IngestionPipeline) + Send + Sync>;

/// The plans of all pipelines.
pub(crate) struct Plans {
    threads: Mutex<HashMap<String, Running>>,
    ask: Ask,
}

struct Running {
    access: Access,
    shared: Arc<Shared>,
}

/// What a thread and the reconciler tell each other.
struct Shared {
    state: Mutex<State>,
    stopped: Condvar,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
    /// None: it only looks.
    wishes: Option<Wishes>,
    heard: Heard,
}

impl Plans {
    pub(crate) fn new(ask: Ask) -> Plans {
        Plans { threads: Mutex::default(), ask }
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a pipeline's workers; from the first call on somebody listens to them.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn heard(&self, pipeline: &IngestionPipeline, access: Access) -> std::io::Result<Heard> {
        let uid = pipeline.metadata.uid.clone().unwrap_or_default();
        let mut threads = self.locked();
        if threads.get(&uid).is_some_and(|running| running.access != access) {
            threads.remove(&uid);
        }
        if let Some(running) = threads.get(&uid) {
            return Ok(running.shared.locked().heard.clone());
        }
        let shared = Arc::new(Shared { state: Mutex::default(), stopped: Condvar::new() });
        let worker = Worker {
            access: access.clone(),
            shared: Arc::clone(&shared),
            ask: Arc::clone(&self.ask),
            pipeline: pipeline.clone(),
            began: Instant::now(),
        };
        std::thread::Builder::new().name(format!("plan-{uid}")).spawn(move || worker.run())?;
        threads.insert(uid, Running { access, shared });
        Ok(Heard::default())
    }

    /// Says what is wanted of a pipeline's plan; `None`: nothing is to be published.
    pub(crate) fn wish(&self, pipeline: &IngestionPipeline, wishes: Option<Wishes>) {
        let uid = pipeline.metadata.uid.as_deref().unwrap_or_default();
        if let Some(running) = self.locked().get(uid) {
            running.shared.locked().wishes = wishes;
        }
    }

    /// Ends the threads of pipelines that are not among these uids.
    pub(crate) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.locked().retain(|uid, _| is_there(uid));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.locked().is_stopped = true;
        self.shared.stopped.notify_all();
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, or less when it is stopped.
    fn pause(&self, pause: Duration) {
        let waits = |state: &mut State| !state.is_stopped;
        drop(self.stopped.wait_timeout_while(self.locked(), pause, waits).unwrap_or_else(PoisonError::into_inner));
    }
}

struct Worker {
    access: Access,
    shared: Arc<Shared>,
    ask: Ask,
    pipeline: IngestionPipeline,
    began: Instant,
}

impl Worker {
    fn run(&self) {
        while !self.shared.locked().is_stopped {
            if let Err(error) = self.open().and_then(|mut planning| self.go_on(&mut planning)) {
                self.meets(&error);
                self.shared.pause(PAUSE);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn open(&self) -> Result<Planning, LogError> {
        let log: Arc<dyn Log> = Arc::new(KafkaLog::new(self.access.kafka.clone())?);
        log.create_topics(&self.access.topics.specs())?;
        Planning::open(log, self.access.topics.clone(), &STAGES, Bounds::default(), self.now_ms())
    }

    /// Until it is stopped. Only what cannot be mended by trying again is an error.
    fn go_on(&self, planning: &mut Planning) -> Result<(), LogError> {
        let mut is_leading = false;
        loop {
            let wishes = {
                let state = self.shared.locked();
                if state.is_stopped {
                    return Ok(());
                }
                state.wishes.clone()
            };
            match (&wishes, is_leading) {
                (Some(_), false) => planning.lead(),
                (None, true) => planning.look(),
                _ => {}
            }
            is_leading = wishes.is_some();
            match planning.turn(&wishes.unwrap_or_default(), self.now_ms()) {
                Ok(Turn::Replaced { term }) => {
                    tracing::warn!(
                        pipeline = self.access.topics.pipeline,
                        term,
                        "somebody else published a plan; it is taken back"
                    );
                    is_leading = false;
                    self.shared.pause(PAUSE);
                }
                Ok(turn) => self.tell(planning, &turn),
                Err(error @ LogError::Unavailable(_) | error @ LogError::Unknown(_)) => self.meets(&error),
                Err(error) => return Err(error),
            }
            let until = Instant::now() + CONSIDER;
            while Instant::now() < until && !self.shared.locked().is_stopped {
                if let Err(error) = planning.listen(LISTEN, self.now_ms()) {
                    self.meets(&error);
                    self.shared.pause(PAUSE);
                    break;
                }
            }
        }
    }

    fn tell(&self, planning: &Planning, turn: &Turn) {
        let heard = match turn {
            Turn::Hearing | Turn::Replaced { .. } => return,
            Turn::NoWorkers => Heard { fleet: Some(Fleet::default()), problem: None },
            Turn::Planned { outcome, is_published } => {
                if *is_published {
                    let (pipeline, version) = (&self.access.topics.pipeline, outcome.plan.version);
                    tracing::info!(pipeline, %version, moving = outcome.pending.len(), "published a plan");
                }
                let fleet = Fleet::of(planning.view(), outcome, self.now_ms());
                Heard { fleet: Some(fleet), problem: None }
            }
        };
        self.says(heard);
    }

    /// What was known of the workers is not known any more.
    fn meets(&self, error: &LogError) {
        let reason = match error {
            LogError::Unavailable(_) | LogError::Unknown(_) | LogError::OutOfRange { .. } => "LogUnavailable",
            LogError::Topic { .. } | LogError::TooLarge { .. } => "TopicMismatch",
            LogError::Configuration(_) => "InvalidSpec",
        };
        self.says(Heard { fleet: None, problem: Some((reason, error.to_string())) });
    }

    fn says(&self, heard: Heard) {
        let mut state = self.shared.locked();
        if state.heard != heard {
            state.heard = heard;
            drop(state);
            (self.ask)(&self.pipeline);
        }
    }
}
