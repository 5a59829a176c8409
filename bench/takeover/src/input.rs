//! The shard's input, prefetched by standbys too, so that the next owner starts with records at hand.

use crate::Settings;
use crate::follow::{assign, consumer};
use anyhow::Result;
use rdkafka::Message;
use rdkafka::consumer::BaseConsumer;
use std::collections::VecDeque;
use std::time::Duration;

/// Enough for ten seconds of load.
const MOST: usize = 20_000;

/// Input records by offset; the load's payload repeats the offset, so that is all that is kept.
pub struct Input {
    consumer: BaseConsumer,
    topic: String,
    shard: i32,
    queue: VecDeque<i64>,
    next: i64,
}

impl Input {
    /// Reads from the start.
    pub fn new(settings: &Settings) -> Result<Input> {
        let (consumer, topic) = (consumer(settings, 10)?, settings.topic("input"));
        assign(&consumer, &topic, settings.shard, 0)?;
        Ok(Input { consumer, topic, shard: settings.shard, queue: VecDeque::new(), next: 0 })
    }

    /// Takes what was fetched, waiting up to `timeout` for the first.
    pub fn fill(&mut self, timeout: Duration) {
        let mut wait = timeout;
        while self.queue.len() < MOST {
            match self.consumer.poll(wait) {
                Some(Ok(message)) if message.offset() >= self.next => {
                    self.queue.push_back(message.offset());
                    self.next = message.offset() + 1;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) => return, // end of partition, or a broker away: the client goes on by itself
                None => return,
            }
            wait = Duration::ZERO;
        }
    }

    /// Drops what is before `offset`.
    pub fn trim(&mut self, offset: i64) {
        while self.queue.front().is_some_and(|front| *front < offset) {
            self.queue.pop_front();
        }
    }

    /// Makes `offset` the next record that [`Input::take`] returns.
    pub fn advance(&mut self, offset: i64) -> Result<()> {
        self.trim(offset);
        let first = self.queue.front().copied().unwrap_or(self.next);
        if first != offset {
            self.queue.clear();
            self.next = offset;
            assign(&self.consumer, &self.topic, self.shard, offset)?;
        }
        Ok(())
    }

    /// Takes at most `most` records.
    pub fn take(&mut self, most: usize) -> Vec<i64> {
        let count = most.min(self.queue.len());
        self.queue.drain(..count).collect()
    }
}
