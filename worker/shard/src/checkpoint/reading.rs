//! Reading a file of a state store from the object store: what comes is what was written, or there is an error before its last part.

use super::layout::{self, File};
use crate::mutant::{self, Mutant};
use crate::objects::{ObjectError, ObjectStore};
use xxhash_rust::xxh3::Xxh3;

/// A file that is read part by part.
pub(crate) struct Reading<'a> {
    objects: &'a dyn ObjectStore,
    name: &'a str,
    file: &'a File,
    at: u64,
    hash: Xxh3,
}

impl<'a> Reading<'a> {
    /// Reads the file that lies under this name.
    pub(crate) fn new(objects: &'a dyn ObjectStore, name: &'a str, file: &'a File) -> Reading<'a> {
        Reading { objects, name, file, at: 0, hash: Xxh3::new() }
    }

    /// The next part, of up to so many bytes; `None`: there is no more.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub(crate) fn next(&mut self, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        let mut part = None;
        if self.at < self.file.size {
            let content = self.objects.read(self.name, self.at, size)?;
            let content = content.ok_or_else(|| layout::damaged(self.name, "it is missing"))?;
            if content.is_empty() {
                return Err(layout::damaged(self.name, "it is shorter than it was"));
            }
            self.hash.update(&content);
            self.at += content.len() as u64;
            part = Some(content);
        }
        let is_same = self.at == self.file.size && layout::in_words(self.hash.digest128()) == self.file.hash;
        if self.at < self.file.size || is_same || mutant::is(Mutant::FilesUnchecked) {
            return Ok(part);
        }
        Err(layout::damaged(self.name, "its content has changed"))
    }
}
