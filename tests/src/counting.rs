//! A stage for tests of the shard runtime: it counts records per message id in state, and puts the count out, so that any record lost or doubled shows.
#![allow(clippy::unwrap_used)]

use millstream_model::frame::{Content, FrameWriter};
use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::Envelope;
use millstream_shard::log::{Log, Outgoing};
use millstream_shard::runtime::Shard;
use millstream_shard::topics::Topics;
use millstream_stages::{At, DecodeError, Input, Outbox, PublicMessage, Stage, State, StateError, StateValue};
use prost::Message as _;
use std::ops::Range;
use std::sync::mpsc::channel;

/// The stage.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

/// How often an id was seen, and bytes to make the value large: as many as the last record's `received_ms` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// How often.
    pub count: u64,
    filler: Vec<u8>,
}

impl Count {
    /// With so many bytes that do not compress.
    pub fn new(count: u64, filler: usize) -> Count {
        let mut state = count.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let next = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        Count { count, filler: (0..filler).map(next).collect() }
    }
}

impl StateValue for Count {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&self.filler);
    }

    fn decode(key: &StateKey, bytes: &[u8]) -> Result<Count, StateError> {
        let (count, filler) =
            bytes.split_first_chunk().ok_or_else(|| StateError::Invalid(format!("{key:?} is cut")))?;
        Ok(Count { count: u64::from_le_bytes(*count), filler: filler.to_vec() })
    }
}

/// Where an id is counted: not in the first key group, which a shard looks through when it is opened.
pub fn key(id: &str) -> StateKey {
    StateKey::new(1, "acme", Kind::Node, id.as_bytes())
}

/// Sends one record for each of these ids, whose state is this large, to the first shard.
pub fn send(log: &dyn Log, topics: &Topics, ids: Range<u32>, filler: usize) {
    let mut frame = FrameWriter::new(Content::Envelope);
    for id in ids {
        let message_id = format!("{id:04}");
        frame.push(&Envelope { message_id, received_ms: filler as i64, ..Envelope::default() });
    }
    let (done, waiting) = channel();
    let (topic, payload) = (&topics.ingress, frame.finish());
    let message = Outgoing { topic, partition: 0, key: &[], payload: &payload, headers: &[] };
    log.producer().unwrap().send(message, Box::new(move |result| done.send(result).unwrap()));
    waiting.recv().unwrap().unwrap();
}

/// How often an id of [`send`] was seen.
pub fn count(shard: &mut Shard<Counting>, id: u32) -> u64 {
    shard.state().get(&key(&format!("{id:04}"))).unwrap().map_or(0, |count| count.count)
}

impl Stage for Counting {
    type Value = Count;
    type Record = Envelope;

    fn name(&self) -> &'static str {
        "unify"
    }

    fn decode(&self, input: Input, bytes: &[u8]) -> Result<Envelope, DecodeError> {
        Envelope::decode(bytes).map_err(|error| DecodeError { input, message: error.to_string() })
    }

    fn keys(&self, record: &Envelope, _: &At, _: &[u32], keys: &mut Vec<StateKey>) {
        keys.push(key(&record.message_id));
    }

    fn process(
        &self,
        record: Envelope,
        _: &At,
        state: &mut dyn State<Count>,
        out: &mut Outbox,
    ) -> Result<(), StateError> {
        let key = key(&record.message_id);
        let count = state.get(&key)?.map_or(0, |count| count.count) + 1;
        state.put(key, Count::new(count, usize::try_from(record.received_ms).unwrap_or(0)));
        out.usage("acme").accepted += 1;
        let payload = format!("{}={count}", record.message_id).into_bytes();
        out.events.push(PublicMessage { key: Vec::new(), headers: Vec::new(), payload, group: 0 });
        Ok(())
    }
}
