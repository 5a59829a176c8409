//! The topics `control` and `status`: listening to them, and publishing a plan.
//!
//! A [`Listener`] reads both from their beginnings (they are compacted: of each key the newest message is enough) and feeds a [`View`]. A message that cannot be
//! read is skipped and remembered: the last good plan is better than none.
//!
//! A [`Publisher`] writes plans, and what else is in `control`, under one transactional id per pipeline, so that of two who publish only the newer one can: opening it fences the former, then
//! reads the topic to its end, so that what it publishes is newer than everything that is there. Workers ignore lower versions, so that nothing depends on that.

use crate::hearing::Listened;
use crate::log::{Consumer, Log, LogError, Outgoing, Start, TopicPartition, Transactional};
use crate::topics::Topics;
use millstream_plan::message::{self, Control, MessageError};
use millstream_plan::plan::Plan;
use millstream_plan::view::{Bounds, View};
use std::collections::BTreeMap;
use std::time::Duration;

/// Messages per poll.
const MESSAGES: usize = 256;
/// How long one poll of a reader that goes to the end waits.
const POLL: Duration = Duration::from_millis(100);
/// After so many polls without progress, the log counts as unavailable.
const PATIENCE: u32 = 100;
const CONTROL: usize = 0;

/// A reader of `control` and `status`, and what it has heard.
pub struct Listener {
    at: [TopicPartition; 2],
    consumer: Box<dyn Consumer>,
    view: View,
    /// Where the newest message about each tenant is.
    tenants: BTreeMap<String, u64>,
    /// `control` was heard up to here, exclusive.
    heard_to: u64,
    problem: Option<MessageError>,
    looks: u64,
}

impl Listener {
    /// Reads both topics to their ends.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(log: &dyn Log, topics: &Topics, bounds: Bounds, now_ms: u64) -> Result<Listener, LogError> {
        let at = [&topics.control, &topics.status].map(|topic| TopicPartition::new(topic.clone(), 0));
        let starts = at.clone().map(|at| (at, Start::Earliest));
        let view = View::new(u32::from(topics.generation), bounds);
        let mut listener = Listener {
            at,
            consumer: log.consumer(&starts)?,
            view,
            tenants: BTreeMap::new(),
            heard_to: 0,
            problem: None,
            looks: 0,
        };
        listener.read_to_end(log, now_ms)?;
        Ok(listener)
    }

    /// Reads both topics once more, with a new reader: what was heard stays, and what is older says nothing. A reader that has failed may not come back by
    /// itself. The former one is given back: to drop it may take long.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open_again(&mut self, log: &dyn Log) -> Result<Box<dyn Consumer>, LogError> {
        self.consumer.retire();
        let consumer = log.consumer(&self.at.clone().map(|at| (at, Start::Earliest)))?;
        Ok(std::mem::replace(&mut self.consumer, consumer))
    }

    /// Reads everything that is visible now.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn read_to_end(&mut self, log: &dyn Log, now_ms: u64) -> Result<(), LogError> {
        let ends = self.at.iter().map(|at| Ok(log.bounds(at)?.1)).collect::<Result<Vec<u64>, LogError>>()?;
        let mut idle = 0;
        while self.consumer.positions().iter().zip(&ends).any(|(position, end)| position < end) {
            idle = if self.listen(POLL, now_ms)? == 0 { idle + 1 } else { 0 };
            if idle > PATIENCE {
                let [control, status] = &self.at;
                return Err(LogError::Unavailable(format!("{control} and {status} cannot be read to their ends")));
            }
        }
        Ok(())
    }

    /// Hears what comes within `wait`; how many messages. `now_ms` is of a monotonic clock, see [`View`].
    ///
    /// # Errors
    /// [`LogError`].
    pub fn listen(&mut self, wait: Duration, now_ms: u64) -> Result<usize, LogError> {
        let (view, problem, tenants) = (&mut self.view, &mut self.problem, &mut self.tenants);
        let heard = self.consumer.poll(MESSAGES, wait, &mut |message| {
            let heard = if message.assignment == CONTROL {
                message::decode_control(message.payload).map(|control| {
                    let Some(control) = control else { return };
                    if let Control::Tenant(tenant) = &control
                        && view.is_newer(tenant)
                    {
                        tenants.insert(tenant.name.clone(), message.offset);
                    }
                    view.control(control, now_ms);
                })
            } else {
                message::decode_status(message.payload).map(|status| view.status(status, now_ms))
            };
            if let Err(error) = heard {
                *problem = Some(error);
            }
        });
        // A new reader begins again, and what was heard before stays heard.
        self.heard_to = self.heard_to.max(self.consumer.positions().first().copied().unwrap_or_default());
        self.looks += u64::from(heard.as_ref().is_ok_and(|heard| *heard < MESSAGES));
        heard
    }

    /// How far both topics were heard by this reader.
    pub fn listened(&self) -> Listened {
        let read_to = self.at.iter().cloned().zip(self.consumer.positions()).collect();
        Listened { read_to, looks: self.looks }
    }

    /// What was heard.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// `control` was heard up to here, exclusive.
    pub fn control_offset(&self) -> u64 {
        self.heard_to
    }

    /// Where the newest message about a tenant is: whoever has heard `control` beyond it knows what it says.
    pub fn tenant_offset(&self, name: &str) -> Option<u64> {
        self.tenants.get(name).copied()
    }

    /// The newest message that could not be read, once.
    pub fn problem(&mut self) -> Option<MessageError> {
        self.problem.take()
    }
}

/// Publishes plans; the newest one that was opened for a pipeline can.
pub struct Publisher {
    topics: Topics,
    producer: Box<dyn Transactional>,
}

impl Publisher {
    /// Fences whoever published before. Whoever makes a plan must read `control` to its end after this.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn open(log: &dyn Log, topics: &Topics) -> Result<Publisher, LogError> {
        let producer = log.transactional(&format!("{}.control", topics.pipeline))?;
        Ok(Publisher { topics: topics.clone(), producer })
    }

    /// Publishes a plan.
    ///
    /// # Errors
    /// [`LogError`]: open it anew, read `control` to its end, and see whether the plan is there.
    pub fn publish(&mut self, plan: Plan) -> Result<(), LogError> {
        self.publish_all(&[Control::Plan(plan)])
    }

    /// Publishes all of these, or none.
    ///
    /// # Errors
    /// As [`Publisher::publish`].
    pub fn publish_all(&mut self, controls: &[Control]) -> Result<(), LogError> {
        self.producer.begin()?;
        for control in controls {
            let (key, payload) = (message::control_key(control), message::encode_control(control));
            let (topic, key) = (&*self.topics.control, key.as_bytes());
            self.producer.send(Outgoing { topic, partition: 0, key, payload: &payload, headers: &[] })?;
        }
        self.producer.commit()
    }
}
