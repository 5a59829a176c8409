//! Markers: messages of internal topics that say what of a channel belongs to a savepoint.

use millstream_model::frame::{self, Content};
use millstream_model::proto::Marker;
use prost::Message as _;

/// The marker of a shard that is cut for a savepoint.
pub(crate) fn encode(savepoint: u64, stage: &str, shard: u32) -> Vec<u8> {
    frame::single(Content::Marker, &Marker { savepoint, stage: stage.to_owned(), shard })
}

/// The marker that a message is; `None`: it is something else.
pub fn read(payload: &[u8]) -> Option<Marker> {
    let record = frame::read(payload, Content::Marker).ok()?.next()?.ok()?;
    Marker::decode(record).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::frame::FrameWriter;

    #[test]
    fn a_marker_is_read_and_nothing_else_is_taken_for_one() {
        let bytes = encode(u64::MAX, "unify", 3);
        let marker = Marker { savepoint: u64::MAX, stage: "unify".into(), shard: 3 };
        assert_eq!(read(&bytes), Some(marker.clone()));
        assert_eq!(read(&bytes[..bytes.len() - 1]), None, "cut");
        assert_eq!(read(&frame::single(Content::Action, &marker)), None, "of another topic");
        assert_eq!(read(&FrameWriter::new(Content::Marker).finish()), None, "without a record");
        assert_eq!(read(b""), None);
    }
}
