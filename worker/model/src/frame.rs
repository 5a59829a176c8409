//! Frames: many records in one log message.
//!
//! ```text
//! 'M' | format (1) | content (1) | count (u32 LE) | count × [ length (u32 LE) | record ]
//! ```
//! The log's client compresses the message as a whole. A frame holds at most [`MAX_RECORDS`] records and about
//! [`MAX_BYTES`] bytes; a single larger record gets a frame of its own. Reading borrows: no record is copied.

/// The most records of a frame.
pub const MAX_RECORDS: usize = 1000;
/// A frame is closed when it is larger than this; a frame of one record may be larger.
pub const MAX_BYTES: usize = 900_000;

const MAGIC: u8 = b'M';
const FORMAT: u8 = 1;
const HEADER: usize = 7;

/// What kind of record a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Content {
    /// [`crate::proto::Envelope`]
    Envelope = 1,
    /// [`crate::proto::Action`]
    Action = 2,
    /// [`crate::proto::Exchange`]
    Exchange = 3,
    /// [`crate::proto::Mutation`]
    Mutation = 4,
    /// [`crate::proto::Changelog`]
    Changelog = 5,
    /// [`crate::proto::Control`]
    Control = 6,
    /// [`crate::proto::WorkerStatus`]
    Status = 7,
    /// [`crate::proto::Marker`]
    Marker = 8,
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// Not written by Millstream, or cut.
    #[error("not a frame: {0}")]
    Malformed(&'static str),
    /// Written by a newer version; upgrade this worker.
    #[error("frame format {0} is newer than this version understands (1)")]
    Format(u8),
    /// A frame of another topic.
    #[error("frame holds content {found}, expected {expected:?}")]
    Content {
        /// The content byte found.
        found: u8,
        /// What this topic carries.
        expected: Content,
    },
}

/// Builds one frame.
#[derive(Debug)]
pub struct FrameWriter {
    bytes: Vec<u8>,
    count: u32,
}

impl FrameWriter {
    /// An empty frame.
    pub fn new(content: Content) -> FrameWriter {
        let mut bytes = Vec::with_capacity(1024);
        bytes.extend_from_slice(&[MAGIC, FORMAT, content as u8, 0, 0, 0, 0]);
        FrameWriter { bytes, count: 0 }
    }

    /// Appends a record.
    pub fn push(&mut self, record: &impl prost::Message) {
        self.push_sized(record, record.encoded_len());
    }

    /// Appends a record whose encoded length is known.
    pub fn push_sized(&mut self, record: &impl prost::Message, length: usize) {
        self.bytes.reserve(length + 4);
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        record.encode_raw(&mut self.bytes);
        self.count += 1;
    }

    /// True when no further record should be added.
    pub fn is_full(&self) -> bool {
        self.count as usize >= MAX_RECORDS || self.bytes.len() >= MAX_BYTES
    }

    /// True when it would outgrow its bound by a record of `length` bytes.
    pub fn would_overflow(&self, length: usize) -> bool {
        self.count > 0 && (self.is_full() || self.bytes.len() + length + 4 > MAX_BYTES)
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Without a record?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The frame's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        if let Some(count) = self.bytes.get_mut(3..HEADER) {
            count.copy_from_slice(&self.count.to_le_bytes());
        }
        self.bytes
    }
}

/// One record as a frame.
pub fn single(content: Content, record: &impl prost::Message) -> Vec<u8> {
    let mut frame = FrameWriter::new(content);
    frame.push(record);
    frame.finish()
}

/// The records of a frame, in order, borrowed from its bytes.
///
/// # Errors
/// [`FrameError`] when the header is wrong; a record that is cut ends the iteration with an error item.
pub fn read(bytes: &[u8], expected: Content) -> Result<Records<'_>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(FrameError::Malformed("shorter than a header"));
    };
    let [magic, format, content, a, b, c, d] = *header;
    if magic != MAGIC {
        return Err(FrameError::Malformed("wrong first byte"));
    }
    if format != FORMAT {
        return Err(FrameError::Format(format));
    }
    if content != expected as u8 {
        return Err(FrameError::Content { found: content, expected });
    }
    Ok(Records { rest, left: u32::from_le_bytes([a, b, c, d]) })
}

/// Iterator of [`read`].
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> Records<'a> {
    /// Number of records still to come.
    pub fn left(&self) -> u32 {
        self.left
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let record = self
            .rest
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.split_at_checked(u32::from_le_bytes(*length) as usize));
        let Some((record, rest)) = record else {
            self.left = 0;
            return Some(Err(FrameError::Malformed("cut in the middle of a record")));
        };
        self.rest = rest;
        Some(Ok(record))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Identifier;

    fn identifier(value: &str) -> Identifier {
        Identifier { r#type: "user_id".into(), value: value.into() }
    }

    #[test]
    fn vector() {
        // docs/src/reference/frames.md prints the same bytes.
        let frame = single(Content::Envelope, &identifier("42"));
        assert_eq!(frame, b"M\x01\x01\x01\0\0\0\x0d\0\0\0\x0a\x07user_id\x12\x0242");
    }

    #[test]
    fn records_come_back_in_order() {
        let mut frame = FrameWriter::new(Content::Action);
        for value in ["a", "b", "c"] {
            frame.push(&identifier(value));
        }
        let bytes = frame.finish();
        let values: Vec<String> = read(&bytes, Content::Action)
            .unwrap()
            .map(|record| <Identifier as prost::Message>::decode(record.unwrap()).unwrap().value)
            .collect();
        assert_eq!(values, ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_frame_says_why() {
        let good = single(Content::Action, &identifier("x"));
        assert!(matches!(read(b"", Content::Action), Err(FrameError::Malformed(_))));
        assert!(matches!(read(b"{\"a\": 1}", Content::Action), Err(FrameError::Malformed(_))));
        assert!(matches!(read(&good, Content::Envelope), Err(FrameError::Content { .. })));
        let mut newer = good.clone();
        newer[1] = 9;
        assert_eq!(read(&newer, Content::Action).unwrap_err(), FrameError::Format(9));
        let cut = &good[..good.len() - 1];
        assert!(read(cut, Content::Action).unwrap().any(|record| record.is_err()));
    }
}
