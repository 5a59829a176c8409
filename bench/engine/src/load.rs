//! Fills `ingress`: as fast as it goes, or at a steady rate the way the gateway does it.

use crate::stage;
use anyhow::{Context, Result};
use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::{group_of_parts, shard_of};
use millstream_model::proto::{Envelope, Source};
use millstream_shard::Clock;
use millstream_shard::log::{Log, Outgoing, Producer};
use millstream_shard::topics::Topics;
use millstream_stores::embedded::SystemClock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

/// The key's and the id's parts that do not change.
const TENANT: &str = "bench";
/// Records that may be under way while loading.
const OUTSTANDING: usize = 20_000;
/// Between two looks at which frames may leave.
const TICK: Duration = Duration::from_millis(1);

/// Records over keys: the first ones name each key once, the others any.
pub(crate) struct Records {
    users: u64,
    number: u64,
    clock: SystemClock,
}

impl Records {
    pub(crate) fn new(users: u64) -> Records {
        Records { users, number: 0, clock: SystemClock }
    }

    /// The next record, with its key group.
    fn next(&mut self) -> (u16, Envelope) {
        let number = self.number;
        self.number += 1;
        let any = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        let user = if number < self.users { number } else { any % self.users };
        let name = format!("user-{user:08}");
        let group = group_of_parts(TENANT, "user_id", &name);
        let envelope = Envelope {
            tenant: TENANT.into(),
            source: Source::Native as i32,
            kind: "event".into(),
            message_id: name,
            group: u32::from(group),
            body: stage::example(number, user, self.clock.now_ms()).into(),
            ..Envelope::default()
        };
        (group, envelope)
    }
}

/// Frames per partition on their way to `ingress`.
pub(crate) struct Loader<'a> {
    producer: Box<dyn Producer>,
    topics: &'a Topics,
    lanes: Vec<Lane>,
    failed: Arc<AtomicBool>,
}

struct Lane {
    frame: FrameWriter,
    under_way: Arc<AtomicUsize>,
}

fn empty() -> FrameWriter {
    FrameWriter::new(Content::Envelope)
}

impl<'a> Loader<'a> {
    pub(crate) fn new(log: &dyn Log, topics: &'a Topics) -> Result<Loader<'a>> {
        let lane = |_| Lane { frame: empty(), under_way: Arc::default() };
        let lanes = (0..topics.shards).map(lane).collect();
        Ok(Loader { producer: log.producer()?, topics, lanes, failed: Arc::default() })
    }

    /// Writes so many records in frames of `frame` records.
    pub(crate) fn bulk(&mut self, records: &mut Records, count: u64, frame: usize) -> Result<()> {
        let (sent, acknowledged) = mpsc::channel();
        let (mut outstanding, most) = (0, OUTSTANDING / frame.max(1));
        for _ in 0..count {
            let shard = self.push(records)?;
            if self.lane(shard)?.frame.len() >= frame {
                self.send(shard, Some(sent.clone()))?;
                outstanding += 1;
            }
            if outstanding > most {
                acknowledged.recv()?;
                outstanding -= 1;
            }
        }
        for shard in 0..self.lanes.len() {
            self.send(shard, Some(sent.clone()))?;
        }
        drop(sent);
        while acknowledged.recv().is_ok() {}
        self.check()
    }

    /// Writes at a steady rate until told to stop. A frame leaves when none of its partition is under way, as the gateway does it.
    pub(crate) fn steady(&mut self, records: &mut Records, per_second: f64, stop: &AtomicBool) -> Result<()> {
        let (began, mut written) = (Instant::now(), 0.0);
        while !stop.load(Ordering::Relaxed) {
            let due = began.elapsed().as_secs_f64() * per_second;
            while written < due {
                self.push(records)?;
                written += 1.0;
            }
            for shard in 0..self.lanes.len() {
                if self.lane(shard)?.under_way.load(Ordering::Relaxed) == 0 {
                    self.send(shard, None)?;
                }
            }
            std::thread::sleep(TICK);
        }
        self.check()
    }

    fn lane(&mut self, shard: usize) -> Result<&mut Lane> {
        self.lanes.get_mut(shard).context("a shard that is not there")
    }

    /// Puts the next record into its partition's frame.
    fn push(&mut self, records: &mut Records) -> Result<usize> {
        let (group, envelope) = records.next();
        let shard = shard_of(group, self.topics.shards) as usize;
        self.lane(shard)?.frame.push(&envelope);
        Ok(shard)
    }

    fn send(&mut self, shard: usize, sent: Option<mpsc::Sender<()>>) -> Result<()> {
        let failed = self.failed.clone();
        let lane = self.lane(shard)?;
        if lane.frame.is_empty() {
            return Ok(());
        }
        let payload = std::mem::replace(&mut lane.frame, empty()).finish();
        let under_way = lane.under_way.clone();
        under_way.fetch_add(1, Ordering::Relaxed);
        let partition = u32::try_from(shard)?;
        let message = Outgoing { topic: &self.topics.ingress, partition, key: &[], payload: &payload, headers: &[] };
        let acknowledge = move |result: Result<u64, _>| {
            under_way.fetch_sub(1, Ordering::Relaxed);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            // Nobody waits at a steady rate.
            sent.map(|sent| sent.send(()));
        };
        self.producer.send(message, Box::new(acknowledge));
        Ok(())
    }

    fn check(&self) -> Result<()> {
        anyhow::ensure!(!self.failed.load(Ordering::Relaxed), "the log did not take the input");
        Ok(())
    }
}
