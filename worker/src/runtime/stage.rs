//! A thread per shard of a stage: steps the shard's [`Seat`] as its desk orders, opens it again when it must, answers look-ups between two steps.

use super::backoff::Backoff;
use super::desk::{Condition, Desk, EndOfThread};
use super::observe::Observer;
use super::stores::Creation;
use super::system::Stop;
use millstream_model::id::hex;
use millstream_model::proto::Usage;
use millstream_plan::status::ShardStatus;
use millstream_shard::ShardError;
use millstream_shard::checkpoint::Taken;
use millstream_shard::member::Order;
use millstream_shard::ownership::Mended;
use millstream_shard::runtime::{Environment, Limits, Report, Shard};
use millstream_shard::seat::{MakeStage, OpenStore, Parts, Seat, Step};
use millstream_stages::{Rejected, Stage};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a seat without a duty waits for one; it is woken when there is one.
const NO_DUTY: Duration = Duration::from_secs(5);

/// Work that needs an owned shard's state, done by its thread between two batches.
pub type Query<S> = Box<dyn FnOnce(&mut Shard<S>) + Send>;

/// Gives an owned shard what has changed for its stage, between two batches; how far in `control` that is what the stage goes by, also when the shard is not owned and is opened next.
pub type Adopt<S> = Box<dyn Fn(Option<&mut Shard<S>>) -> u64 + Send>;

/// Everything a shard's thread needs, but for what it stands on.
pub struct SeatThread<S: Stage> {
    /// Orders and reports.
    pub desk: Arc<Desk>,
    /// Look-ups.
    pub queries: Receiver<Query<S>>,
    /// Makes the stage, at each opening.
    pub make: MakeStage<S>,
    /// Of a stage that goes by what is published in `control`.
    pub adopt: Option<Adopt<S>>,
    /// Opens the local store.
    pub open_store: OpenStore,
    /// The pipeline's topics.
    pub creation: Arc<Creation>,
    /// Bounds.
    pub limits: Limits,
    /// Whom to tell.
    pub observer: Arc<dyn Observer>,
    /// When to end.
    pub stop: Arc<Stop>,
}

impl<S: Stage + 'static> SeatThread<S> {
    /// Starts the thread.
    ///
    /// # Errors
    /// When no thread can be had.
    pub fn start(self, environment: &Environment) -> std::io::Result<JoinHandle<()>> {
        let SeatThread { desk, queries, make, adopt, open_store, creation, limits, observer, stop } = self;
        let (name, shard) = (desk.stage, desk.shard);
        let (environment, at) = (environment.clone(), desk.clone());
        let moves = Arc::new(move || at.moves());
        let seat = Seat::new(Parts { name, shard, environment, limits, make, open_store, moves });
        let (backoff, quiet, goes_by) = (Backoff::default(), 0, 0);
        let mut work = Work { desk, seat, queries, adopt, goes_by, creation, observer, stop, backoff, quiet };
        std::thread::Builder::new().name(format!("{name}-{shard}")).spawn(move || work.run())
    }
}

/// Only for who looks for one record: a sender's mistake is no event in the operation of this process.
fn log_rejected(stage: &str, shard: u32, rejected: &Rejected) {
    let Rejected { tenant, reason, message_id, trace_id } = rejected;
    let trace_id = || (!trace_id.is_empty()).then(|| hex(trace_id));
    tracing::debug!(
        stage,
        shard,
        tenant,
        reason = reason.code(),
        message_id,
        trace_id = trace_id(),
        "a record was rejected"
    );
}

/// A shard's thread at work.
struct Work<S: Stage> {
    desk: Arc<Desk>,
    seat: Seat<S>,
    queries: Receiver<Query<S>>,
    adopt: Option<Adopt<S>>,
    /// What the newest step went by, of `control`: up to here.
    goes_by: u64,
    creation: Arc<Creation>,
    observer: Arc<dyn Observer>,
    stop: Arc<Stop>,
    backoff: Backoff,
    /// Polls in turn without input.
    quiet: u32,
}

impl<S: Stage> Work<S> {
    fn run(&mut self) {
        let desk = self.desk.clone();
        let ended = EndOfThread(&desk);
        while !self.stop.is_stopped() {
            let order = self.desk.order();
            self.desk.steps();
            // Before the step: a shard that it opens takes this, or what is newer.
            self.goes_by = self.adopt.as_ref().map_or(0, |adopt| adopt(self.seat.shard()));
            let stepped = self.creation.ensure(&self.stop).map_err(ShardError::from);
            let stepped = stepped.and_then(|()| self.read_anew_if_deaf());
            let stepped = stepped.and_then(|()| self.seat.step(&order));
            if matches!(stepped, Ok(Step::Acquired { .. })) {
                // Before it counts as owned: what is owned has all its sums.
                self.publish_all();
                self.note_passed();
            }
            self.report();
            match stepped {
                Ok(Step::Idle) => {
                    self.desk.set(Condition::Closed);
                    self.desk.wait_for_other(&order, NO_DUTY);
                }
                Ok(step) => self.stepped(step),
                Err(error) => self.failed(error, &order),
            }
            self.answer();
        }
        if let Err(error) = self.seat.close() {
            let (stage, shard) = (desk.stage, desk.shard);
            tracing::warn!(stage, shard, %error, "local state was not stored; the changelog has it");
        }
        self.report();
        drop(ended);
    }

    fn read_anew_if_deaf(&mut self) -> Result<(), ShardError> {
        if !self.desk.take_deaf() {
            return Ok(());
        }
        match self.seat.read_anew() {
            // It is told again when that stays so.
            Err(ShardError::Reopen(message) | ShardError::InDoubt(message) | ShardError::Away(message)) => {
                let (stage, shard) = (self.desk.stage, self.desk.shard);
                tracing::warn!(stage, shard, message, "inputs cannot be read with another client yet");
                Ok(())
            }
            read => read,
        }
    }

    fn report(&self) {
        let status = ShardStatus { control_offset: self.goes_by, ..self.seat.status() };
        if self.desk.report(status) {
            self.observer.lost(self.desk.stage, self.desk.shard);
        }
    }

    fn stepped(&mut self, step: Step) {
        let (stage, shard) = (self.desk.stage, self.desk.shard);
        match step {
            Step::Idle => {}
            Step::Followed => self.followed(),
            Step::Opened => tracing::info!(stage, shard, "shard is followed"),
            Step::Acquired { by_handoff, mended: Mended { ended, copied } } => {
                self.backoff.reset();
                let epoch = self.seat.status().epoch;
                if ended > 0 || copied > 0 {
                    tracing::warn!(
                        stage,
                        shard,
                        ended,
                        copied,
                        "the brokers had forgotten a transaction: it was ended, and what of it was committed was copied"
                    );
                }
                tracing::info!(stage, shard, epoch, by_handoff, "shard is open");
            }
            Step::Batch(report) => self.batch(report.as_deref()),
            Step::Released => tracing::info!(stage, shard, "shard was handed off"),
            Step::Closed => tracing::info!(stage, shard, "shard is closed"),
        }
    }

    fn followed(&mut self) {
        let (stage, shard) = (self.desk.stage, self.desk.shard);
        self.backoff.reset();
        self.desk.note_disk(self.seat.hangs());
        match self.seat.trouble() {
            None => self.desk.followed(),
            Some(why) if self.desk.hampered(why) => {
                tracing::warn!(stage, shard, why, "shard is followed, but not as it should")
            }
            Some(_) => {}
        }
    }

    fn batch(&mut self, report: Option<&Report>) {
        let (stage, shard) = (self.desk.stage, self.desk.shard);
        self.quiet = if report.is_some() { 0 } else { self.quiet.saturating_add(1) };
        match self.seat.trouble() {
            None if self.desk.polled(self.quiet) => tracing::info!(stage, shard, "shard works as it should again"),
            None => {}
            Some(why) if self.desk.hampered(why) => {
                tracing::warn!(stage, shard, why, "shard works, but not as it should")
            }
            Some(_) => {}
        }
        if report.is_some() {
            self.desk.works();
        }
        self.checkpoint();
        let heard = self.seat.shard().map(|shard| shard.listened());
        heard.into_iter().for_each(|heard| self.desk.note_listened(heard));
        let Some(report) = report else {
            if let Some(shard) = self.seat.shard() {
                self.desk.note_reads_from(shard.reads_from());
            }
            return;
        };
        self.backoff.reset();
        self.note_passed();
        self.publish(&report.usage);
        self.observer.batch(stage, shard, report);
        for span in &report.spans {
            self.observer.span(stage, shard, span, report.began_ms, report.committed_ms);
        }
        for rejected in &report.reasons {
            self.observer.rejected(stage, &rejected.tenant, rejected.reason);
            log_rejected(stage, shard, rejected);
        }
    }

    fn checkpoint(&mut self) {
        let (stage, shard) = (self.desk.stage, self.desk.shard);
        let Some(taken) = self.seat.shard().and_then(Shard::take_taken) else { return };
        let Taken { manifest, batch, bytes, uploaded_bytes, took_ms, trimmed } = &taken;
        tracing::debug!(
            stage,
            shard,
            manifest,
            batch,
            bytes,
            uploaded_bytes,
            took_ms,
            ?trimmed,
            "a checkpoint was taken"
        );
        self.observer.checkpoint(stage, shard, &taken);
    }

    /// What a batch has committed to have read is never read again.
    fn note_passed(&mut self) {
        if let Some(shard) = self.seat.shard() {
            self.desk.note_passed(shard.position().inputs.clone());
            self.desk.note_processed(shard.processed_ms());
        }
    }

    fn publish_all(&mut self) {
        if let Some(usage) = self.seat.shard().map(|shard| shard.usage().clone()) {
            self.publish(&usage);
        }
    }

    fn publish(&self, changed: &BTreeMap<String, Usage>) {
        self.observer.usage(self.desk.stage, self.desk.shard, changed);
        self.desk.add_usage(changed);
    }

    fn failed(&mut self, error: ShardError, order: &Order) {
        let (stage, shard) = (self.desk.stage, self.desk.shard);
        match &error {
            _ if self.stop.is_stopped() => tracing::info!(stage, shard, %error, "shard is left as it is"),
            ShardError::Reopen(message) | ShardError::InDoubt(message) | ShardError::Away(message) => {
                tracing::warn!(stage, shard, message, "shard is opened again");
            }
            ShardError::Stopped(message) => tracing::error!(stage, shard, message, "shard stopped"),
        }
        let pause = self.backoff.after(&error);
        self.quiet = 0;
        self.desk.fail(error);
        // Rivals that pause equally long would meet again. What it is told meanwhile does not wait: it may be the only one that can take the shard over.
        self.desk.wait_for_other_duty(&order.duty, pause.mul_f64(rand::random_range(0.5..=1.0)));
    }

    /// Answers look-ups; who asks while another process owns the shard is told so by the end of its channel.
    fn answer(&mut self) {
        for query in self.queries.try_iter() {
            if let Some(shard) = self.seat.shard() {
                query(shard);
            }
        }
    }
}
