//! Copying what a savepoint consists of into its folder.

use super::SavepointError;
use super::layout::{self, Copied, Piece};
use super::store::Store;
use crate::checkpoint::layout::{self as checkpoints, File};
use crate::checkpoint::reading::Reading;
use crate::log::Whole;
use crate::objects::{ObjectError, When};
use std::io::{self, Read};

/// A piece is written when it has so many bytes: small enough to be held in memory, one for each partition that is being read.
const PIECE_BYTES: usize = 4 << 20;
/// Bytes of one request.
const PART: usize = 4 << 20;

/// Where a savepoint's objects go.
pub(super) struct Folder<'a> {
    pub(super) store: &'a Store,
    pub(super) savepoint: u64,
}

impl Folder<'_> {
    /// Copies a file of a checkpoint.
    pub(super) fn copy(&self, from: &str, file: &File) -> Result<File, SavepointError> {
        let (objects, object) = (&**self.store.objects(), layout::data(&file.hash));
        let mut source = Source { reading: Reading::new(objects, from, file), part: Vec::new(), failure: None };
        let uploaded = objects.upload(&self.store.full(self.savepoint, &object), file.size, &mut source);
        source.failure.take().map_or(Ok(()), Err)?;
        uploaded?;
        Ok(File { object, ..file.clone() })
    }

    fn put(&self, content: &[u8], messages: u64) -> Result<Piece, ObjectError> {
        let (hash, size) = (checkpoints::hash(content), content.len() as u64);
        let object = layout::data(&hash);
        self.store.objects().put(&self.store.full(self.savepoint, &object), content, &When::Always)?;
        Ok(Piece { object, size, hash, messages })
    }
}

/// A file on its way into an upload.
struct Source<'a> {
    reading: Reading<'a>,
    /// What was read, and is not taken yet.
    part: Vec<u8>,
    failure: Option<ObjectError>,
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() {
            let next = self.reading.next(PART).map_err(|error| {
                let said = error.to_string();
                self.failure = Some(error);
                io::Error::other(said)
            });
            self.part = next?.unwrap_or_default();
        }
        let size = into.len().min(self.part.len());
        let rest = self.part.split_off(size);
        if let Some(into) = into.get_mut(..size) {
            into.copy_from_slice(&self.part);
        }
        self.part = rest;
        Ok(size)
    }
}

/// Messages of one partition on their way into pieces.
#[derive(Default)]
pub(super) struct Pieces {
    open: Vec<u8>,
    messages: u64,
    pub(super) done: Vec<Piece>,
}

impl Pieces {
    /// Adds a message, once there is room for it.
    pub(super) fn add(&mut self, folder: &Folder<'_>, message: &Whole) -> Result<(), ObjectError> {
        if self.open.len() >= PIECE_BYTES {
            self.close(folder)?;
        }
        let Whole { offset, key, payload, .. } = message;
        layout::push(&mut self.open, Copied { offset: *offset, key, payload });
        self.messages += 1;
        Ok(())
    }

    /// Messages that were added.
    #[cfg(test)]
    pub(super) fn count(&self) -> u64 {
        self.messages + self.done.iter().map(|piece| piece.messages).sum::<u64>()
    }

    /// Writes what is left.
    pub(super) fn close(&mut self, folder: &Folder<'_>) -> Result<(), ObjectError> {
        if self.messages > 0 {
            self.done.push(folder.put(&self.open, self.messages)?);
            (self.open, self.messages) = (Vec::new(), 0);
        }
        Ok(())
    }
}
