//! The inputs of a running batch: from messages to the stage's work, frame by frame.
//!
//! The transaction begins with the first message. A failure is kept until the poll has returned, and ends the batch: nothing of it is kept (I1).

use crate::ShardError;
use crate::cache::Cache;
use crate::log::{Log, Message, Transactional};
use crate::mutant::{self, Mutant};
use crate::output::Output;
use crate::topics::Topics;
use crate::written::{Origin, Written};
use millstream_model::frame::{self, Content, FrameError};
use millstream_model::key::StateKey;
use millstream_model::proto::Stamp;
use millstream_stages::{At, DecodeError, Input, Outbox, Stage, State};

/// Where the inputs are read.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) shard: u32,
    pub(crate) topics: &'a Topics,
    /// No append time counts as later than this: [`FAR_AHEAD_MS`] after now.
    pub(crate) latest_ms: u64,
    pub(crate) log: &'a dyn Log,
    /// Where its outputs go.
    pub(crate) written: &'a Written,
    /// Which batch it is.
    pub(crate) origin: Origin,
}

/// Clocks of brokers and workers may differ by so much: far more than they should, far less than message ids are remembered.
pub(crate) const FAR_AHEAD_MS: u64 = 3_600_000;

/// Time that goes back by more is a condition (I7); less is what clocks of servers that are kept right differ by when a leader or an owner changes.
pub(crate) const FAR_BACK_MS: u64 = 60_000;

/// A record with its place; bytes that are none, with why.
type Decoded<R> = (At, Result<R, (DecodeError, Vec<u8>)>);

/// A batch while its inputs are read.
pub(crate) struct Batch<'a, S: Stage> {
    stage: &'a S,
    place: Place<'a>,
    cache: &'a mut Cache<S::Value>,
    producer: &'a mut dyn Transactional,
    output: &'a mut Output,
    out: &'a mut Outbox,
    /// Records and input bytes so far.
    pub(crate) records: usize,
    pub(crate) bytes: usize,
    /// Newest stamp given.
    pub(crate) stamp_time_ms: u64,
    /// What the stage can forget: decided before the first record, so that none of the batch reaches back to it.
    pub(crate) forget_before: u32,
    periods: Vec<u32>,
    decoded: Vec<Decoded<S::Record>>,
    keys: Vec<StateKey>,
    /// What is wrong with the clocks.
    pub(crate) clocks: Option<String>,
    begun: bool,
    failed: Option<ShardError>,
}

impl<'a, S: Stage> Batch<'a, S> {
    /// What it changes, in memory, and cannot let go of before it has ended.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.cache.pending_bytes()
    }

    pub(crate) fn new(
        stage: &'a S,
        place: Place<'a>,
        cache: &'a mut Cache<S::Value>,
        producer: &'a mut dyn Transactional,
        output: &'a mut Output,
        out: &'a mut Outbox,
        stamp_time_ms: u64,
    ) -> Batch<'a, S> {
        let periods = cache.periods();
        let forget_before = stage.forget_before(stamp_time_ms, &periods);
        let forgets = periods.first().is_some_and(|oldest| *oldest < forget_before);
        Batch {
            stage,
            place,
            cache,
            producer,
            output,
            out,
            records: 0,
            bytes: 0,
            stamp_time_ms,
            forget_before: if forgets { forget_before } else { 0 },
            periods,
            decoded: Vec::new(),
            keys: Vec::new(),
            clocks: None,
            begun: false,
            failed: None,
        }
    }

    /// Processes a message.
    pub(crate) fn take(&mut self, input: Input, message: &Message<'_>, batch_ms: u64) {
        if self.failed.is_none()
            && let Err(error) = self.try_take(input, message, batch_ms)
        {
            self.failed = Some(error);
        }
    }

    /// What went wrong, if anything did.
    pub(crate) fn check(&mut self) -> Result<(), ShardError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    fn try_take(&mut self, input: Input, message: &Message<'_>, batch_ms: u64) -> Result<(), ShardError> {
        self.decode(message, input, batch_ms)?;
        self.records += self.decoded.len();
        self.bytes += message.payload.len();
        self.prefetch()?;
        // Only now: however long the first reading of state takes, the transaction has its whole time.
        if !std::mem::replace(&mut self.begun, true) {
            self.place.written.settle_doubt(self.producer, self.place.log)?;
            self.producer.begin()?;
            self.output.begin(self.place.origin, self.producer)?;
        }
        let mut decoded = std::mem::take(&mut self.decoded);
        if mutant::is(Mutant::HalfFrame) && decoded.len() > 3 {
            decoded.truncate(decoded.len() / 2);
        }
        for (at, record) in decoded.drain(..) {
            match record {
                Ok(record) => self.stage.process(record, &at, self.cache, self.out)?,
                Err((error, bytes)) => self.stage.unreadable(error, &bytes, &at, self.out)?,
            }
            self.output.drain(self.out, self.producer)?;
        }
        self.decoded = decoded;
        Ok(())
    }

    fn prefetch(&mut self) -> Result<(), ShardError> {
        self.keys.clear();
        for (at, record) in &self.decoded {
            if let Ok(record) = record {
                self.stage.keys(record, at, &self.periods, &mut self.keys);
            }
        }
        Ok(self.cache.prefetch(&mut self.keys)?)
    }

    /// Each record of the message, once.
    fn decode(&mut self, message: &Message<'_>, input: Input, batch_ms: u64) -> Result<(), ShardError> {
        let (first, content) = (self.first(message, input, batch_ms), content_of(input));
        let unreadable = |error: &dyn std::fmt::Display| {
            (DecodeError { input, message: error.to_string() }, message.payload.to_vec())
        };
        let records = match frame::read(message.payload, content) {
            Ok(records) => records,
            // Written by a newer version, which is no fault of the records.
            Err(error @ FrameError::Format(_)) => {
                let at = (input, message.offset);
                return Err(ShardError::Stopped(format!("{at:?}: {error}: upgrade this worker")));
            }
            Err(error) => {
                self.decoded.push((first, Err(unreadable(&error))));
                return Ok(());
            }
        };
        for (index, record) in (0..).zip(records) {
            let at = At { stamp: Stamp { index, ..first.stamp }, ..first };
            let record = match record {
                Err(error) => Err(unreadable(&error)),
                Ok(bytes) => self.stage.decode(input, bytes).map_err(|error| (error, bytes.to_vec())),
            };
            self.decoded.push((at, record));
        }
        Ok(())
    }

    /// The place of the message's first record. Stamps of `ingress` never go back, so none may run far ahead (I7): it would take message ids with it that
    /// are still to be told apart. An append time beyond that counts as the latest there may be: it will be in the log however right the clocks are by then.
    fn first(&mut self, message: &Message<'_>, input: Input, batch_ms: u64) -> At {
        let mut time_ms = message.timestamp_ms;
        if input == Input::Ingress {
            let back_ms = self.stamp_time_ms.saturating_sub(time_ms);
            if time_ms > self.place.latest_ms {
                let ahead_ms = time_ms.saturating_sub(self.place.latest_ms).saturating_add(FAR_AHEAD_MS);
                self.clocks = Some(format!(
                    "offset {} of ingress was appended {ahead_ms} ms in the future by this worker's clock: set the clocks of brokers and workers right",
                    message.offset
                ));
            } else if back_ms > FAR_BACK_MS {
                self.clocks = Some(format!(
                    "offset {} of ingress was appended {back_ms} ms before what is ahead of it there; stamps stand still for so long: set the clocks of the brokers right",
                    message.offset
                ));
            }
            self.stamp_time_ms = self.stamp_time_ms.max(time_ms.min(self.place.latest_ms));
            time_ms = self.stamp_time_ms;
        }
        At {
            input,
            partition: self.place.shard,
            stamp: Stamp { time_ms, offset: message.offset, index: 0 },
            batch_ms,
            generation: self.place.topics.generation,
            shards: self.place.topics.shards,
        }
    }
}

fn content_of(input: Input) -> Content {
    match input {
        Input::Ingress => Content::Envelope,
        Input::Actions => Content::Action,
        Input::Exchange => Content::Exchange,
    }
}
