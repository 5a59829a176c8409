//! From envelopes to `ingress`: frames per partition, and who waits for them.
//!
//! A record is acknowledged only after the log has it (I2). Envelopes of one partition leave in the order in which they were
//! submitted (I3): they are appended to the partition's open frame, and frames are handed to the producer, under the partition's lock.
//!
//! *When a frame leaves.* At once, when no frame of its partition is under way: a lone request waits for nothing. Otherwise it gathers the
//! envelopes of concurrent requests until an earlier frame is acknowledged, or it is full, or it has waited for
//! [`IngressSettings::coalesce`]. So frames are as large as the load makes them, without a timer in the way when there is none.
//!
//! Each envelope's bytes are copied once, into the frame; the producer copies the frame.

use crate::telemetry::metrics::GatewayMetrics;
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::shard_of;
use millstream_model::proto::Envelope;
use millstream_shard::log::{LogError, Outgoing, Producer};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

/// Where and how envelopes go.
#[derive(Clone, Debug)]
pub(super) struct IngressSettings {
    /// The topic.
    pub(super) topic: Arc<str>,
    /// Its partitions.
    pub(super) shards: u32,
    /// How long an envelope may wait for company while an earlier frame is under way.
    pub(super) coalesce: Duration,
}

/// What the log said of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has it.
    Acknowledged,
    /// It may or may not have it.
    Unknown,
}

/// Some envelopes of a request, all in one frame.
pub(super) struct Part {
    /// Their positions in what was submitted.
    pub(super) positions: Vec<usize>,
    /// Resolves once; an error means that nobody will ever know: [`Fate::Unknown`].
    pub(super) fate: oneshot::Receiver<Fate>,
}

/// The way to `ingress`.
pub(super) struct Ingress {
    inner: Arc<Inner>,
    flushers: Vec<AbortHandle>,
}

struct Inner {
    settings: IngressSettings,
    producer: Box<dyn Producer>,
    lanes: Vec<Arc<Lane>>,
    metrics: GatewayMetrics,
}

/// One partition.
struct Lane {
    partition: u32,
    open: Mutex<Open>,
    under_way: AtomicUsize,
    filled: Notify,
    acknowledged: Notify,
}

/// The frame that is being filled.
struct Open {
    frame: FrameWriter,
    waiters: Vec<Waiter>,
}

/// A request's interest in a frame. What it holds on to (bytes in flight) is let go when the fate is known.
struct Waiter {
    fate: oneshot::Sender<Fate>,
    _held: Arc<dyn Send + Sync>,
}

impl Open {
    fn new() -> Open {
        Open { frame: FrameWriter::new(Content::Envelope), waiters: Vec::new() }
    }
}

impl Ingress {
    /// Must be called within a tokio runtime.
    pub(super) fn new(settings: IngressSettings, producer: Box<dyn Producer>, metrics: GatewayMetrics) -> Ingress {
        let lane = |partition| {
            Arc::new(Lane {
                partition,
                open: Mutex::new(Open::new()),
                under_way: AtomicUsize::new(0),
                filled: Notify::new(),
                acknowledged: Notify::new(),
            })
        };
        let lanes: Vec<Arc<Lane>> = (0..settings.shards).map(lane).collect();
        let inner = Arc::new(Inner { settings, producer, lanes, metrics });
        let flushers = inner.lanes.iter().map(|lane| {
            let (inner, lane) = (inner.clone(), lane.clone());
            tokio::spawn(async move { inner.flush_when_due(&lane).await }).abort_handle()
        });
        let flushers = flushers.collect();
        Ingress { inner, flushers }
    }

    /// Sends envelopes. `held` is kept until the log has decided on each of them, however long the caller waits.
    pub(super) fn submit(&self, envelopes: &[(usize, Envelope)], held: &Arc<dyn Send + Sync>) -> Vec<Part> {
        let mut by_partition: BTreeMap<u32, Vec<&(usize, Envelope)>> = BTreeMap::new();
        for entry in envelopes {
            let group = u16::try_from(entry.1.group).unwrap_or_default();
            by_partition.entry(shard_of(group, self.inner.settings.shards)).or_default().push(entry);
        }
        let mut parts = Vec::with_capacity(by_partition.len());
        for (partition, envelopes) in by_partition {
            if let Some(lane) = self.inner.lanes.get(partition as usize) {
                self.inner.append(lane, &envelopes, held, &mut parts);
            }
        }
        parts
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.flushers.iter().for_each(AbortHandle::abort);
    }
}

impl Inner {
    fn append(
        &self,
        lane: &Arc<Lane>,
        envelopes: &[&(usize, Envelope)],
        held: &Arc<dyn Send + Sync>,
        parts: &mut Vec<Part>,
    ) {
        let mut open = lane.lock();
        let mut positions = Vec::new();
        for (position, envelope) in envelopes {
            if open.frame.would_overflow(envelope.encoded_len()) {
                open.wait(std::mem::take(&mut positions), held, parts);
                self.send(lane, &mut open);
            }
            open.frame.push(envelope);
            positions.push(*position);
        }
        open.wait(positions, held, parts);
        if lane.under_way.load(Ordering::Acquire) == 0 || open.frame.is_full() {
            self.send(lane, &mut open);
        } else {
            lane.filled.notify_one();
        }
    }

    /// Hands the open frame to the producer. The lock is held, so that frames keep their order; the acknowledgement takes no lock, because the
    /// producer may call it at once.
    fn send(&self, lane: &Arc<Lane>, open: &mut MutexGuard<'_, Open>) {
        if open.frame.is_empty() {
            return;
        }
        let Open { frame, waiters } = std::mem::replace(&mut **open, Open::new());
        self.metrics.frame(frame.len());
        let payload = frame.finish();
        lane.under_way.fetch_add(1, Ordering::AcqRel);
        let (on_its_way, metrics, begin) = (lane.clone(), self.metrics.clone(), Instant::now());
        let acknowledge = move |result: Result<u64, LogError>| {
            on_its_way.under_way.fetch_sub(1, Ordering::AcqRel);
            on_its_way.acknowledged.notify_one();
            metrics.acknowledged(begin.elapsed());
            let fate = fate(&result);
            for waiter in waiters {
                // Nobody waits any more: the deadline has passed or the sender has left.
                let _ = waiter.fate.send(fate);
            }
        };
        let message = Outgoing {
            topic: &self.settings.topic,
            partition: lane.partition,
            key: &[],
            payload: &payload,
            headers: &[],
        };
        self.producer.send(message, Box::new(acknowledge));
    }

    async fn flush_when_due(&self, lane: &Arc<Lane>) {
        loop {
            lane.filled.notified().await;
            // A notification may be left over from before: then the frame leaves early, which is harmless.
            if lane.under_way.load(Ordering::Acquire) > 0 {
                let _ = tokio::time::timeout(self.settings.coalesce, lane.acknowledged.notified()).await;
            }
            self.send(lane, &mut lane.lock());
        }
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Open> {
        // A frame is consistent after each push, so a panic elsewhere in a handler leaves nothing half done.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn wait(&mut self, positions: Vec<usize>, held: &Arc<dyn Send + Sync>, parts: &mut Vec<Part>) {
        if positions.is_empty() {
            return;
        }
        let (sender, fate) = oneshot::channel();
        self.waiters.push(Waiter { fate: sender, _held: held.clone() });
        parts.push(Part { positions, fate });
    }
}

/// Whatever error it was: the sender repeats the records with the same ids, and those that did get through are found to be duplicates.
fn fate(result: &Result<u64, LogError>) -> Fate {
    match result {
        Ok(_) => Fate::Acknowledged,
        Err(error @ (LogError::Unknown(_) | LogError::Unavailable(_))) => {
            tracing::warn!(%error, "a frame was not acknowledged");
            Fate::Unknown
        }
        Err(error) => {
            tracing::error!(%error, "the log refuses frames; records are not accepted");
            Fate::Unknown
        }
    }
}
