//! The stages: pure functions of (record, state view, batch time, configuration).
//!
//! A stage does no I/O and knows no clock; the shard runtime (`worker/shard`) feeds it records in log order and carries its
//! outputs out in one transaction, so that each stage is tested without a log, and the simulation runs the real code.
//! [`source`] turns what a source sends into envelopes (the gateway's part); [`unify`] turns envelopes into actions;
//! [`action`] resolves and applies them; [`reaction`] folds mutations into document writes. What cannot be processed goes to [`reject`].

pub mod action;
mod pattern;
pub mod reaction;
pub mod reject;
pub mod source;
pub mod unify;

use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{Action, Exchange, Mutation, Stamp, TraceContext, Usage};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Which of a shard's input topics a record came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Input {
    /// `ingress`: envelopes.
    Ingress,
    /// `actions`: actions.
    Actions,
    /// `exchange.action`: messages of other action shards.
    Exchange,
}

/// Where a record stands, and when.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The record's topic.
    pub input: Input,
    /// Partition of that topic; the shard's own number.
    pub partition: u32,
    /// Offset and index of the record, with time = max(previous stamp of the partition, append time) (I7).
    pub stamp: Stamp,
    /// Batch time, milliseconds since 1970; never goes back.
    pub batch_ms: u64,
    /// Generation of the pipeline.
    pub generation: u16,
    /// How many shards the stage has.
    pub shards: u32,
}

/// Why a batch must be given up, by what its caller must do. It says nothing about the record.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The store failed: open the shard again.
    #[error("reading state failed: {0}")]
    Io(String),
    /// A value or a message is not what it must be, and will not be the next time either: a person must decide (I6).
    #[error(
        "state or messages are damaged, or of a newer version: {0}; upgrade, or remove the shard's folder below `data_dir`/state, which is then read anew from the changelog"
    )]
    Invalid(String),
    /// Something is named that is not there. A former owner that was fenced and does not know it yet reads messages that only its successor's state explains;
    /// its commit fails, and this with it. So open the shard again: what was lost in earnest says the same each time.
    #[error("{0} is named but not there: another process may have the shard by now; when it stays so, state was lost")]
    Missing(String),
}

/// What a value of a shard's state can do.
pub trait StateValue: Clone + Send + Sync + 'static {
    /// Appends the stored form.
    fn encode(&self, bytes: &mut Vec<u8>);

    /// Reads the stored form of the value under `key`.
    ///
    /// # Errors
    /// When the bytes are not such a value.
    fn decode(key: &StateKey, bytes: &[u8]) -> Result<Self, StateError>;

    /// Memory that the value takes, itself included, when its stored form has so many bytes: what the cache's bound counts. It must be quick: it is
    /// asked for whenever a value is loaded or changed.
    fn memory(&self, stored_bytes: usize) -> usize {
        size_of::<Self>() + stored_bytes
    }
}

/// A stage's view of its shard's state: what is committed, and the changes of the running batch over it.
pub trait State<V> {
    /// The value under a key.
    ///
    /// # Errors
    /// [`StateError`] ends the batch.
    fn get(&mut self, key: &StateKey) -> Result<Option<&V>, StateError>;

    /// The value under a key, to be changed in place.
    ///
    /// # Errors
    /// [`StateError`] ends the batch.
    fn get_mut(&mut self, key: &StateKey) -> Result<Option<&mut V>, StateError>;

    /// Sets the value under a key.
    fn put(&mut self, key: StateKey, value: V);

    /// Removes the value under a key.
    fn remove(&mut self, key: StateKey);

    /// The periods by which anything is kept, ascending.
    fn periods(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// State in memory, for tests and tools.
#[derive(Clone, Debug)]
pub struct MemoryState<V> {
    /// What it holds.
    pub entries: BTreeMap<StateKey, V>,
    periods: BTreeSet<u32>,
}

impl<V> Default for MemoryState<V> {
    fn default() -> MemoryState<V> {
        MemoryState { entries: BTreeMap::new(), periods: BTreeSet::new() }
    }
}

impl<V> MemoryState<V> {
    /// Everything that is kept by an earlier period goes.
    pub fn forget_before(&mut self, period: u32) {
        self.periods = self.periods.split_off(&period);
        self.entries.retain(|key, _| key.period().is_none_or(|kept_by| kept_by >= period));
    }
}

impl<V> State<V> for MemoryState<V> {
    fn get(&mut self, key: &StateKey) -> Result<Option<&V>, StateError> {
        Ok(self.entries.get(key))
    }

    fn get_mut(&mut self, key: &StateKey) -> Result<Option<&mut V>, StateError> {
        Ok(self.entries.get_mut(key))
    }

    fn put(&mut self, key: StateKey, value: V) {
        self.periods.extend(key.period());
        self.entries.insert(key, value);
    }

    fn remove(&mut self, key: StateKey) {
        self.entries.remove(&key);
    }

    fn periods(&self) -> Vec<u32> {
        self.periods.iter().copied().collect()
    }
}

/// A public message, one log message each (not framed).
#[derive(Clone, Debug, PartialEq)]
pub struct PublicMessage {
    /// The log's message key: orders and compacts per user or tenant.
    pub key: Vec<u8>,
    /// CloudEvents attributes and trace context.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub payload: Vec<u8>,
    /// Key group that chooses the partition.
    pub group: u16,
}

/// A span of a sampled record in a stage: exported after the batch is committed, with the batch's begin and end.
#[derive(Clone, Debug, PartialEq)]
pub struct StageSpan {
    /// The context that came with the record: trace and parent.
    pub parent: TraceContext,
    /// This span's id (8 bytes), which went out with the record's outputs.
    pub span_id: [u8; 8],
    /// What was done: `unify segment identify`.
    pub name: String,
    /// Tenant of the record.
    pub tenant: String,
}

/// A record that was rejected as a whole: what logs and metrics say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Where it is counted.
    pub tenant: String,
    /// Why.
    pub reason: millstream_model::reject::Reason,
    /// Its own id.
    pub message_id: String,
    /// Its trace (16 bytes), when that is sampled, else nothing.
    pub trace_id: Vec<u8>,
}

/// What a record leads to. The runtime empties it after each record (buffers are kept).
#[derive(Debug, Default)]
pub struct Outbox {
    /// To `actions`, partition of `group`.
    pub actions: Vec<Action>,
    /// To `exchange.action`, partition of `group`.
    pub exchange: Vec<Exchange>,
    /// To `mutations`, partition of `group`.
    pub mutations: Vec<Mutation>,
    /// To `events`.
    pub events: Vec<PublicMessage>,
    /// To `rejects`.
    pub rejects: Vec<PublicMessage>,
    /// For the trace exporter.
    pub spans: Vec<StageSpan>,
    /// What to add to each tenant's sums.
    pub usage: BTreeMap<String, Usage>,
    /// Records that were rejected, for metrics and logs.
    pub reasons: Vec<Rejected>,
}

impl Outbox {
    /// The tenant's sums of this batch, to be added to.
    pub fn usage(&mut self, tenant: &str) -> &mut Usage {
        if !self.usage.contains_key(tenant) {
            self.usage.insert(tenant.to_owned(), Usage::default());
        }
        self.usage.entry(tenant.to_owned()).or_default()
    }

    /// Opens the span of a stage for a sampled record: returns the context that its outputs carry. The span id is a function of the
    /// parent, the stage and the record, so that a batch that is processed again names the same span.
    pub fn span(
        &mut self,
        parent: Option<&TraceContext>,
        stage: &str,
        kind: &str,
        tenant: &str,
        record_id: &[u8],
    ) -> Option<TraceContext> {
        let parent = parent.filter(|context| millstream_model::trace::is_sampled(context))?;
        let mut seed = parent.span_id.clone();
        seed.extend_from_slice(stage.as_bytes());
        seed.extend_from_slice(record_id);
        let span_id = millstream_model::id::content_hash(&seed).to_be_bytes();
        self.spans.push(StageSpan {
            parent: parent.clone(),
            span_id,
            name: format!("{stage} {kind}"),
            tenant: tenant.to_owned(),
        });
        Some(TraceContext { span_id: span_id.to_vec(), ..parent.clone() })
    }
}

/// Bytes of an internal topic that this version cannot read. The shard stops: going on would lose them (I6).
#[derive(Debug, thiserror::Error)]
#[error("cannot read a record of {input:?}: {message}")]
pub struct DecodeError {
    /// The topic.
    pub input: Input,
    /// What is wrong.
    pub message: String,
}

/// A stage of the pipeline with state.
pub trait Stage: Send {
    /// Its state's values.
    type Value: StateValue;
    /// A decoded input record: each record is parsed once.
    type Record: Send;

    /// `unify` or `action`.
    fn name(&self) -> &'static str;

    /// Decodes one record of a frame.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are not such a record.
    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Self::Record, DecodeError>;

    /// Deals with bytes of an input that cannot be decoded. A topic that others may write to rejects them; an internal one must not be
    /// read past them (I6).
    ///
    /// # Errors
    /// The error itself: the shard stops.
    fn unreadable(&self, error: DecodeError, _bytes: &[u8], _at: &At, _out: &mut Outbox) -> Result<(), DecodeError> {
        Err(error)
    }

    /// The state keys that processing will surely read, for one `multi_get` per frame; `periods` as of [`State::periods`].
    fn keys(&self, record: &Self::Record, at: &At, periods: &[u32], keys: &mut Vec<StateKey>);

    /// Everything that is kept by a period before this one can be forgotten when no record has an earlier stamp than `stamp_ms`; 0: nothing.
    fn forget_before(&self, _stamp_ms: u64, _periods: &[u32]) -> u32 {
        0
    }

    /// Tenants of whom everything that is kept is to be gone through, beside the records: each entry once ([`Stage::sweep`]). Each with a number that tells this time from others.
    fn sweeping(&self) -> Arc<BTreeMap<String, u64>> {
        Arc::default()
    }

    /// Is what is kept under a key of this kind one of this stage's values, and to be gone through?
    fn sweeps(&self, _kind: Kind) -> bool {
        false
    }

    /// Goes through what is kept under such a key of such a tenant.
    ///
    /// # Errors
    /// As of [`Stage::process`].
    fn sweep(
        &self,
        _key: StateKey,
        _at: &At,
        _state: &mut dyn State<Self::Value>,
        _out: &mut Outbox,
    ) -> Result<(), StateError> {
        Ok(())
    }

    /// Processes one record.
    ///
    /// # Errors
    /// [`StateError`] when state could not be read or makes no sense: the batch is given up and nothing of it is kept.
    fn process(
        &self,
        record: Self::Record,
        at: &At,
        state: &mut dyn State<Self::Value>,
        out: &mut Outbox,
    ) -> Result<(), StateError>;
}
