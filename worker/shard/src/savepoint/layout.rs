//! What savepoints look like in the object store. Format 1:
//!
//! ```text
//! <prefix>/<pipeline>/savepoints/<id>/begun.json             that it is being created, or was, and by whom
//!                                     manifest-<hash>.json   everything that it consists of
//!                                     data/<hash>            what a file of a state store holds, or a piece of what was copied from the log
//! ```
//!
//! Ids are decimal, and never used again, as long as `control` or this folder remembers them. A hash is the XXH3-128 of the content (32 hexadecimal digits), so what is written twice is the same. A piece is messages, one after the other:
//!
//! ```text
//! offset (u64 LE) | bytes of the key (u32 LE) | bytes of the payload (u32 LE) | key | payload
//! ```

use crate::checkpoint::layout::{Entry, File, damaged, hash, hex};
use crate::objects::ObjectError;
use millstream_model::proto::{Batch, Position};
use serde::{Deserialize, Serialize};

/// The version of what is described here.
pub const FORMAT: u32 = 1;
/// That there is a savepoint, or is to be.
pub const BEGUN: &str = "begun.json";
/// How the name of a manifest begins.
pub const MANIFEST: &str = "manifest-";

/// The folder of a pipeline's savepoints.
pub fn all(pipeline: &str) -> String {
    format!("{pipeline}/savepoints/")
}

/// The folder of one.
pub fn folder(pipeline: &str, savepoint: u64) -> String {
    format!("{}{savepoint}", all(pipeline))
}

/// The name of a manifest with this content.
pub fn manifest(content: &[u8]) -> String {
    format!("{MANIFEST}{}.json", hash(content))
}

/// The name of an object with this hash.
pub fn data(hash: &str) -> String {
    format!("data/{hash}")
}

/// A savepoint that is being created, or was. Written before anybody hears of it, and the first that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// [`FORMAT`].
    pub format: u32,
    /// Which one.
    pub savepoint: u64,
    /// Of this pipeline.
    pub pipeline: String,
    /// Its generation.
    pub generation: u16,
    /// Shards of each stage.
    pub shards: u32,
    /// When, milliseconds since 1970.
    pub began_ms: u64,
    /// Until then it is complete, or is given up, milliseconds since 1970.
    pub deadline_ms: u64,
    /// Who creates it: no two have the same name.
    pub by: String,
    /// The checkpoints that states are made of, each with what follows in its changelog. They are leased.
    pub pinned: Vec<Pinned>,
    /// Where the reaction stage stood in each partition of `mutations`: what comes from there on may not be in the documents.
    pub written: Vec<Place>,
}

/// A checkpoint of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Stage.
    pub stage: String,
    /// Shard.
    pub shard: u32,
    /// Which one.
    pub checkpoint: Entry,
}

/// A place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: u32,
    /// Offset.
    pub offset: u64,
    /// Another topic of the same name is another history.
    pub topic_id: String,
}

/// A savepoint that is complete. It needs nothing but the objects that it names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Which one.
    pub savepoint: u64,
    /// Of this pipeline.
    pub pipeline: String,
    /// Its generation.
    pub generation: u16,
    /// Shards of each stage.
    pub shards: u32,
    /// When it was begun, milliseconds since 1970.
    pub began_ms: u64,
    /// When it was complete, milliseconds since 1970.
    pub complete_ms: u64,
    /// Of each shard of unify and of action.
    pub states: Vec<State>,
    /// Of each partition of `actions`, `exchange.action` and `mutations`.
    pub channels: Vec<Channel>,
}

impl Manifest {
    /// Every object that it consists of, with its bytes.
    pub fn objects(&self) -> impl Iterator<Item = (&str, u64)> {
        let of_states = self.states.iter().flat_map(|state| {
            let files = state.files.iter().map(|file| (file.object.as_str(), file.size));
            files.chain(state.changelog.iter().map(Piece::object))
        });
        of_states.chain(self.channels.iter().flat_map(|channel| channel.pieces.iter().map(Piece::object)))
    }

    /// Messages that were under way.
    pub fn messages(&self) -> u64 {
        self.channels.iter().flat_map(|channel| &channel.pieces).map(|piece| piece.messages).sum()
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> u64 {
        self.objects().map(|(_, size)| size).sum()
    }
}

/// A shard's state at its cut: a checkpoint, or nothing, and what follows in its changelog, up to the cut's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Stage.
    pub stage: String,
    /// Shard.
    pub shard: u32,
    /// The checkpoint that was copied; none: there was none yet.
    pub checkpoint: Option<Entry>,
    /// Its files.
    pub files: Vec<File>,
    /// From the checkpoint's position, or from the beginning, up to the cut.
    pub changelog: Vec<Piece>,
    /// The cut.
    pub cut: Cut,
}

/// A cut, as its record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// Number of its batch.
    pub batch: u64,
    /// Where its record is in the changelog.
    pub offset: u64,
    /// Digests of the batch and of the state, 16 hexadecimal digits each.
    pub digest: String,
    /// See `digest`.
    pub state_digest: String,
    /// Batch time, milliseconds since 1970.
    pub time_ms: u64,
    /// Newest stamp, milliseconds since 1970.
    pub stamp_time_ms: u64,
    /// Where the inputs stood.
    pub inputs: Vec<Place>,
}

impl Cut {
    /// The cut that a batch is, whose record is at this offset.
    pub fn of(offset: u64, batch: &Batch) -> Cut {
        let place = |it: &Position| Place {
            topic: it.topic.clone(),
            partition: it.partition,
            offset: it.offset,
            topic_id: it.topic_id.clone(),
        };
        Cut {
            batch: batch.number,
            offset,
            digest: hex(batch.digest),
            state_digest: hex(batch.state_digest),
            time_ms: batch.time_ms,
            stamp_time_ms: batch.stamp_time_ms,
            inputs: batch.inputs.iter().map(place).collect(),
        }
    }
}

/// What was under way in a partition: sent before its senders' cuts, and not processed at the receiver's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// `actions`, `exchange` or `mutations`.
    pub of: Between,
    /// Partition.
    pub partition: u32,
    /// In their order; none when nothing was.
    pub pieces: Vec<Piece>,
}

/// Between which stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Between {
    /// Unify and action.
    Actions,
    /// Shards of action, and reaction and action.
    Exchange,
    /// Action and reaction.
    Mutations,
}

/// Messages in an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The object.
    pub object: String,
    /// Bytes.
    pub size: u64,
    /// XXH3-128 of its content, 32 hexadecimal digits.
    pub hash: String,
    /// How many.
    pub messages: u64,
}

impl Piece {
    fn object(&self) -> (&str, u64) {
        (&self.object, self.size)
    }
}

/// A message in a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied<'a> {
    /// Where it was.
    pub offset: u64,
    /// Key, or empty.
    pub key: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

/// Adds a message to a piece.
pub fn push(piece: &mut Vec<u8>, message: Copied<'_>) {
    let Copied { offset, key, payload } = message;
    piece.extend_from_slice(&offset.to_le_bytes());
    for part in [key, payload] {
        piece.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    }
    piece.extend_from_slice(key);
    piece.extend_from_slice(payload);
}

/// The messages of a piece.
///
/// # Errors
/// [`ObjectError::Damaged`].
pub fn messages<'a>(name: &str, mut piece: &'a [u8]) -> Result<Vec<Copied<'a>>, ObjectError> {
    let mut messages = Vec::new();
    while !piece.is_empty() {
        let message = piece.split_first_chunk().and_then(|(offset, rest)| {
            let (key, rest) = rest.split_first_chunk()?;
            let (payload, rest) = rest.split_first_chunk()?;
            let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key) as usize)?;
            let (payload, rest) = rest.split_at_checked(u32::from_le_bytes(*payload) as usize)?;
            Some((Copied { offset: u64::from_le_bytes(*offset), key, payload }, rest))
        });
        let (message, rest) = message.ok_or_else(|| damaged(name, "a message in it is cut"))?;
        messages.push(message);
        piece = rest;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_gives_back_its_messages_and_one_that_is_cut_is_damaged() {
        let all = [
            Copied { offset: 3, key: b"", payload: b"a" },
            Copied { offset: u64::MAX, key: b"key", payload: b"" },
            Copied { offset: 5, key: b"k", payload: &[7; 300] },
        ];
        let mut piece = Vec::new();
        all.iter().for_each(|message| push(&mut piece, *message));
        assert_eq!(messages("p", &piece).unwrap(), all);
        for cut in [1, 7, 12, 16, 20, 30, piece.len() - 1] {
            assert!(matches!(messages("p", &piece[..cut]), Err(ObjectError::Damaged { .. })), "{cut}");
        }
    }
}
