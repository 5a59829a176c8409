//! The object store: what Millstream needs of S3, as a trait.
//!
//! Contract, checked by one conformance suite on every implementation:
//! - **Atomic.** An object is there as a whole or not at all. What was acknowledged is seen by everybody who reads, lists or writes afterwards.
//! - **Conditional.** A write may be bound to nothing being there, or to the very version that was read: of any number of writers at the same time exactly one is taken.
//! - **Unknown.** A write that fails as [`ObjectError::Unavailable`] may have been done, or be done later. So a name is never used for two contents, and who writes a pointer reads it again before it
//!   goes on: each of them says who wrote it.
//! - Names are `/`-separated segments of letters, digits, `.`, `-`, `_` and `=`, of at most [`LONGEST_SEGMENT`] bytes each and [`LONGEST_NAME`] in all; none is `.` or `..`. Lists are in order of bytes,
//!   and leave out what has no such name: somebody else has put it there.
//! - Below an object there is none: who writes `a` never writes `a/b`. Not every store lists both.

use std::io::Read;

/// What a name may have, in bytes. S3 has 1,024: the rest is for the folder that a store is given.
pub const LONGEST_NAME: usize = 900;

/// What a segment of a name may have, in bytes. File systems have 255, and some stores keep objects as files.
pub const LONGEST_SEGMENT: usize = 250;

/// Which version of an object: opaque, and equal for no two contents of one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// What must be there for a write to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Whatever is there.
    Always,
    /// Nothing is.
    Absent,
    /// This version is.
    Is(Version),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there, as this version.
    Done(Version),
    /// What was to be there was not: nothing has changed.
    Refused,
}

/// An object, read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What is in it.
    pub content: Vec<u8>,
    /// Which one it is.
    pub version: Version,
}

/// One object of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the store's clock, milliseconds since 1970.
    pub modified_ms: u64,
}

/// Errors, by what the caller must do.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Cannot be reached, answers late, or asks for fewer requests: try again. A write may have been done.
    #[error("object store unavailable: {0}")]
    Unavailable(String),
    /// A bucket that is not there, wrong credentials, missing rights, a name that is none: a person must act.
    #[error("object store configuration: {0}")]
    Configuration(String),
    /// What is stored is not what was written; it is of no use.
    #[error("object {name} is damaged: {why}")]
    Damaged {
        /// Which object.
        name: String,
        /// How that was noticed.
        why: String,
    },
    /// What was to be uploaded could not be read.
    #[error("{name} cannot be uploaded: {why}")]
    Source {
        /// Which object.
        name: String,
        /// What the source said.
        why: String,
    },
}

/// A bucket, or a folder in one. All calls block.
pub trait ObjectStore: Send + Sync {
    /// An object as a whole; `None`: it is not there. For small ones: all of it is in memory.
    ///
    /// # Errors
    /// [`ObjectError`].
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError>;

    /// Part of an object, from byte `at` on: `size` bytes, or as many as there are; `None`: it is not there.
    ///
    /// # Errors
    /// [`ObjectError`].
    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError>;

    /// Writes a small object.
    ///
    /// # Errors
    /// [`ObjectError`]; after [`ObjectError::Unavailable`] it may have been written.
    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError>;

    /// Writes an object of any size from a stream of exactly `size` bytes, in parts where the store wants it so. It is there when all of it is; what is there under that name is replaced.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectError::Source`] when the stream fails or is of another length.
    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError>;

    /// Objects whose names begin with `prefix` and come after `after`, in order, a page of them; an empty page is the end.
    ///
    /// # Errors
    /// [`ObjectError`].
    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError>;

    /// Deletes objects. Those that are not there are no error.
    ///
    /// # Errors
    /// [`ObjectError`]; some may be deleted then.
    fn delete(&self, names: &[String]) -> Result<(), ObjectError>;
}

/// Is it a name?
///
/// # Errors
/// [`ObjectError::Configuration`] when it is none, with the reason.
pub fn check_name(name: &str) -> Result<(), ObjectError> {
    if name.len() <= LONGEST_NAME && name.split('/').all(is_segment) {
        return Ok(());
    }
    Err(ObjectError::Configuration(format!(
        "`{}` is no name of an object: at most {LONGEST_NAME} bytes, segments of up to {LONGEST_SEGMENT} letters, digits, `.`, `-`, `_` and `=` between slashes",
        name.chars().take(200).collect::<String>()
    )))
}

fn is_segment(segment: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || ".-_=".contains(c);
    !matches!(segment, "" | "." | "..") && segment.len() <= LONGEST_SEGMENT && segment.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_segments_between_slashes() {
        let (segment, whole) = ("s".repeat(LONGEST_SEGMENT), ["s".repeat(224).as_str(); 4].join("/"));
        for name in ["a", "a/b", "p=1/e-2/x_y.sst", "...", "a/..b", &segment, &whole] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        let (long_segment, long) = (format!("{segment}s"), format!("{whole}ss"));
        for name in ["", "/", "a/", "/a", "a//b", ".", "a/../b", "./a", "a b", "a~", "ü", &long_segment, &long] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
