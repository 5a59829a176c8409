//! Copying what a savepoint consists of into its folder.

use super::SavepointError;
use super::layout::{self, Copied, Piece};
use super::store::Store;
use crate::checkpoint::layout::{self as checkpoints, File};
use crate::log::Whole;
use crate::objects::{ObjectError, When};
use std::collections::BTreeMap;
use std::io::{self, Read};
use xxhash_rust::xxh3::Xxh3;

/// A piece is written when it has so many bytes: small enough to be held in memory, one for each partition that is being read.
const PIECE_BYTES: usize = 4 << 20;
/// Bytes of one request.
const PART: usize = 4 << 20;

/// Where a savepoint's objects go.
pub(super) struct Folder<'a> {
    pub(super) store: &'a Store,
    pub(super) savepoint: u64,
    /// What is there already, with its bytes: content is known by its hash.
    pub(super) there: BTreeMap<String, u64>,
}

impl Folder<'_> {
    fn has(&self, name: &str, size: u64) -> bool {
        self.there.get(name) == Some(&size)
    }

    /// Copies a file of a checkpoint, unless it is there.
    pub(super) fn copy(&self, from: &str, file: &File) -> Result<File, SavepointError> {
        let object = layout::data(&file.hash);
        if !self.has(&object, file.size) {
            let objects = self.store.objects();
            let mut source = Source {
                store: self.store,
                name: from,
                file,
                at: 0,
                hash: Xxh3::new(),
                part: Vec::new(),
                failure: None,
            };
            let uploaded = objects.upload(&self.store.full(self.savepoint, &object), file.size, &mut source);
            source.failure.take().map_or(Ok(()), Err)?;
            uploaded?;
        }
        Ok(File { object, ..file.clone() })
    }

    fn put(&self, content: &[u8], messages: u64) -> Result<Piece, ObjectError> {
        let (hash, size) = (checkpoints::hash(content), content.len() as u64);
        let object = layout::data(&hash);
        if !self.has(&object, size) {
            self.store.objects().put(&self.store.full(self.savepoint, &object), content, &When::Always)?;
        }
        Ok(Piece { object, size, hash, messages })
    }
}

/// An object that is read, and must be what it was.
struct Source<'a> {
    store: &'a Store,
    name: &'a str,
    file: &'a File,
    at: u64,
    hash: Xxh3,
    part: Vec<u8>,
    failure: Option<ObjectError>,
}

impl Source<'_> {
    fn next(&mut self) -> Result<(), ObjectError> {
        if self.at == self.file.size {
            let is_same = checkpoints::in_words(self.hash.digest128()) == self.file.hash;
            return if is_same { Ok(()) } else { Err(checkpoints::damaged(self.name, "its content has changed")) };
        }
        let part = self.store.objects().read(self.name, self.at, PART)?;
        self.part = part.ok_or_else(|| checkpoints::damaged(self.name, "it is missing"))?;
        if self.part.is_empty() {
            return Err(checkpoints::damaged(self.name, "it is shorter than it was"));
        }
        self.at += self.part.len() as u64;
        self.hash.update(&self.part);
        // The last bytes go on only when all are what they were.
        if self.at >= self.file.size && checkpoints::in_words(self.hash.digest128()) != self.file.hash {
            return Err(checkpoints::damaged(self.name, "its content has changed"));
        }
        Ok(())
    }
}

impl Read for Source<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let more = if self.part.is_empty() { self.next() } else { Ok(()) };
        if let Err(error) = more {
            let said = error.to_string();
            self.failure = Some(error);
            return Err(io::Error::other(said));
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
