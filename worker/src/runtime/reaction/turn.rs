//! What a partition's thread knows while the partition is its own.

use crate::runtime::pace::Pace;
use millstream_model::frame::{self, Content};
use millstream_model::proto::Mutation;
use millstream_shard::ShardError;
use millstream_shard::log::Producer;
use millstream_shard::savepoint::marker;
use millstream_stages::reaction::Reaction;
use prost::Message as _;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

/// One partition, from when it came on.
pub(super) struct Turn {
    /// Of `mutations`.
    pub(super) topic_id: String,
    /// What is before was decided by who had the partition before.
    pub(super) start: u64,
    /// Of `mutations`, when it was opened.
    pub(super) end: u64,
    /// Something was read, or there was nothing to read.
    pub(super) runs: bool,
    pub(super) reaction: Reaction,
    pub(super) producer: Box<dyn Producer>,
    pub(super) recorded: Option<u64>,
    pub(super) recorded_at: Option<Instant>,
    pub(super) undecided: Undecided,
    pub(super) in_flight: usize,
    pub(super) pace: Pace,
    /// Since when the store is in trouble, and the condition says so; or when it was last found to be there all the same.
    pub(super) struggles_since: Option<Instant>,
    /// Polls that took all that had come.
    pub(super) looks: u64,
    /// Everything before this offset was read and decided when nothing more came: behind the last mutation there may be markers of transactions.
    pub(super) read_to: u64,
    /// The documents of these tenants are gone when `mutations` has been read and decided up to here.
    pub(super) erasing: Option<(Arc<BTreeMap<String, u64>>, u64)>,
    /// What was reported: `control` up to here, exclusive.
    pub(super) goes_by: u64,
    /// Pauses are measured from here: the wall clock may be set back.
    began: Instant,
}

impl Turn {
    /// From what was recorded last on; `end` is that of `mutations` when it was opened.
    pub(super) fn new(
        topic_id: String,
        recorded: Option<u64>,
        end: u64,
        producer: Box<dyn Producer>,
        pace: Pace,
    ) -> Turn {
        let start = recorded.unwrap_or(0);
        Turn {
            topic_id,
            start,
            end,
            runs: false,
            reaction: Reaction::starting_at(start),
            producer,
            recorded,
            recorded_at: None,
            undecided: Undecided::default(),
            in_flight: 0,
            pace,
            struggles_since: None,
            looks: 0,
            read_to: 0,
            erasing: None,
            goes_by: 0,
            began: Instant::now(),
        }
    }

    /// The time, in milliseconds, by a clock that nobody sets.
    pub(super) fn ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes what a message says, which was read for the first time.
    pub(super) fn take(&mut self, offset: u64, timestamp_ms: u64, payload: &[u8]) -> Result<(), ShardError> {
        self.undecided.read.push_back((offset, timestamp_ms));
        if marker::read(payload).is_some() {
            // There is nothing to be cut here: a document may be written again (I8).
            drop(self.reaction.offer(offset, Vec::new()));
            return Ok(());
        }
        let decode = |record| Mutation::decode(record).map_err(|error| error.to_string());
        let mutations = frame::read(payload, Content::Mutation)
            .and_then(|records| records.map(|record| record.map(decode)).collect::<Result<Vec<_>, _>>());
        let mutations = mutations.map_err(|error| error.to_string());
        let mutations = mutations.and_then(|mutations| mutations.into_iter().collect::<Result<Vec<Mutation>, _>>());
        match mutations {
            // Those that are decided with it need nothing: the whole document is asked for.
            Ok(mutations) => drop(self.reaction.offer(offset, mutations)),
            Err(error) => return Err(ShardError::Stopped(format!("mutations at offset {offset}: {error}"))),
        }
        Ok(())
    }
}

/// How old what is not decided is.
#[derive(Default)]
pub(super) struct Undecided {
    /// Offset and append time of each message that was read and is not decided.
    pub(super) read: VecDeque<(u64, u64)>,
    /// No message that is not decided was appended before, milliseconds since 1970; none while none was read.
    pub(super) since_ms: Option<u64>,
}

impl Undecided {
    /// Every message before this offset is decided; tells whether that says something new of those that are not.
    pub(super) fn decide_before(&mut self, position: u64) -> bool {
        let before = self.since_ms;
        while let Some((_, appended_ms)) = self.read.pop_front_if(|(offset, _)| *offset < position) {
            self.since_ms = Some(appended_ms);
        }
        // The oldest of them says it best.
        if let Some((_, appended_ms)) = self.read.front() {
            self.since_ms = Some(*appended_ms);
        }
        self.since_ms != before
    }
}
