//! What checkpoints look like in the object store. Format 1:
//!
//! ```text
//! <prefix>/<pipeline>/g<generation>/<stage>/<shard>/pointer.json                                  which checkpoints there are
//!                                                  manifests/<epoch>-<attempt>-<hash>.json        one checkpoint: position and files
//!                                                  files/<epoch>-<attempt>-<hash>                 what a file of a state store holds
//! ```
//!
//! Epochs are the owner's (16 hexadecimal digits), attempts count up in one ownership (8), a hash is the XXH3-128 of the content (32). So no name is ever used for two contents, nor again after
//! it was deleted: an epoch has one owner (I4), which makes each attempt once. Only the pointer is ever replaced, each time on the condition that nobody else did.

use crate::objects::ObjectError;
use millstream_model::proto::StatePosition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use xxhash_rust::xxh3::xxh3_128;

/// The version of what is described here.
pub const FORMAT: u32 = 1;
/// The name of the pointer.
pub const POINTER: &str = "pointer.json";

/// Which checkpoints of a shard there are. The only object that is ever replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pointer {
    /// [`FORMAT`].
    pub format: u32,
    /// The highest epoch of an owner that has written it: one of a lower epoch is none any more.
    pub epoch: u64,
    /// Those that are kept, the newest first.
    pub checkpoints: Vec<Entry>,
    /// Who is restoring which: it is kept meanwhile, and so is the changelog behind it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leases: Vec<Lease>,
    /// Names that no checkpoint refers to, or ever will: what is deleted is named here first, so that it is deleted in the end whatever happens meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub condemned: Vec<String>,
}

impl Default for Pointer {
    fn default() -> Pointer {
        Pointer { format: FORMAT, epoch: 0, checkpoints: Vec::new(), leases: Vec::new(), condemned: Vec::new() }
    }
}

impl Pointer {
    /// Is a checkpoint among those that are kept?
    pub fn keeps(&self, manifest: &str) -> bool {
        self.checkpoints.iter().any(|entry| entry.manifest == manifest)
    }

    /// Manifests of checkpoints that somebody is restoring now.
    pub fn leased(&self, now_ms: u64) -> BTreeSet<&str> {
        self.leases.iter().filter(|lease| lease.until_ms > now_ms).map(|lease| lease.manifest.as_str()).collect()
    }
}

/// One checkpoint, as the pointer has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name of its manifest.
    pub manifest: String,
    /// The last batch in it.
    pub batch: u64,
    /// That batch's digest, 16 hexadecimal digits.
    pub digest: String,
    /// Whoever starts from it follows the changelog from here.
    pub changelog_offset: u64,
    /// The last batch is met from there on; else the changelog was read that far.
    pub batch_follows: bool,
    /// Of the changelog: another topic of the same name is another history.
    pub topic_id: String,
    /// Bytes of all its files.
    pub bytes: u64,
    /// When it was complete, milliseconds since 1970.
    pub taken_ms: u64,
}

/// Somebody restores a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who.
    pub holder: String,
    /// Which checkpoint.
    pub manifest: String,
    /// Until then, milliseconds since 1970.
    pub until_ms: u64,
}

/// One checkpoint: what a state store held at one position of the changelog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Whose it is.
    pub of: ShardName,
    /// Epoch of the owner that took it.
    pub epoch: u64,
    /// When, milliseconds since 1970.
    pub taken_ms: u64,
    /// The last batch in it, and its time, milliseconds since 1970.
    pub batch: u64,
    /// See `batch`.
    pub batch_time_ms: u64,
    /// Digests of that batch and of the state after it, 16 hexadecimal digits each.
    pub digest: String,
    /// See `digest`.
    pub state_digest: String,
    /// Whoever starts from it follows the changelog from here.
    pub changelog_offset: u64,
    /// The last batch is met from there on; else the changelog was read that far.
    pub batch_follows: bool,
    /// Of the changelog.
    pub topic_id: String,
    /// The store's files.
    pub files: Vec<File>,
}

/// A shard of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardName {
    /// Pipeline.
    pub pipeline: String,
    /// Its generation.
    pub generation: u16,
    /// Stage.
    pub stage: String,
    /// Shard.
    pub shard: u32,
    /// Of so many.
    pub shards: u32,
}

impl ShardName {
    /// The folder of its objects.
    pub fn folder(&self) -> String {
        let ShardName { pipeline, generation, stage, shard, .. } = self;
        format!("{pipeline}/g{generation}/{stage}/{shard}")
    }
}

/// One file of a state store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name in the store.
    pub name: String,
    /// The object that holds it.
    pub object: String,
    /// Bytes.
    pub size: u64,
    /// XXH3-128 of its content, 32 hexadecimal digits.
    pub hash: String,
}

impl Manifest {
    /// The manifest of a copy of a store at this position.
    pub fn new(of: ShardName, epoch: u64, taken_ms: u64, position: &StatePosition, files: Vec<File>) -> Manifest {
        Manifest {
            format: FORMAT,
            of,
            epoch,
            taken_ms,
            batch: position.batch_number,
            batch_time_ms: position.time_ms,
            digest: hex(position.digest),
            state_digest: hex(position.state_digest),
            changelog_offset: position.changelog_offset,
            batch_follows: position.own_batch,
            topic_id: position.topic_id.clone(),
            files,
        }
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// As the pointer names it.
    pub fn entry(&self, manifest: String) -> Entry {
        Entry {
            manifest,
            batch: self.batch,
            digest: self.digest.clone(),
            changelog_offset: self.changelog_offset,
            batch_follows: self.batch_follows,
            topic_id: self.topic_id.clone(),
            bytes: self.bytes(),
            taken_ms: self.taken_ms,
        }
    }

    /// Is this the position that it was taken at?
    pub fn is_of(&self, position: &StatePosition) -> bool {
        (self.batch, &self.digest, &self.state_digest, self.changelog_offset, &self.topic_id)
            == (
                position.batch_number,
                &hex(position.digest),
                &hex(position.state_digest),
                position.changelog_offset,
                &position.topic_id,
            )
    }
}

/// A digest in words.
pub fn hex(digest: u64) -> String {
    format!("{digest:016x}")
}

/// The hash of a content.
pub fn hash(content: &[u8]) -> String {
    in_words(xxh3_128(content))
}

pub(super) fn in_words(hash: u128) -> String {
    format!("{hash:032x}")
}

/// Which of an owner's attempts to take a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The owner's epoch.
    pub epoch: u64,
    /// Counting up.
    pub number: u32,
}

impl Attempt {
    /// The name of an object with a file of this hash.
    pub fn file(self, hash: &str) -> String {
        format!("files/{:016x}-{:08x}-{hash}", self.epoch, self.number)
    }

    /// The name of a manifest with this content.
    pub fn manifest(self, content: &[u8]) -> String {
        format!("manifests/{:016x}-{:08x}-{}.json", self.epoch, self.number, hash(content))
    }
}

/// The epoch of the owner that an object was written by; `None`: it is none of ours.
pub fn epoch_of(name: &str) -> Option<u64> {
    let (folder, name) = name.split_once('/')?;
    let (epoch, _) = name.split_once('-').filter(|_| matches!(folder, "files" | "manifests"))?;
    u64::from_str_radix(epoch, 16).ok()
}

/// Reads a manifest, whose name says what its content is.
///
/// # Errors
/// [`ObjectError::Damaged`], or [`ObjectError::Configuration`] when a newer version wrote it.
pub fn read_manifest(name: &str, content: &[u8]) -> Result<Manifest, ObjectError> {
    let is_named_so = name.strip_suffix(".json").is_some_and(|stem| stem.ends_with(&hash(content)));
    if !is_named_so {
        return Err(damaged(name, "its content is not what its name says"));
    }
    read(name, content, FORMAT)
}

/// Reads an object of a format.
///
/// # Errors
/// [`ObjectError::Damaged`], or [`ObjectError::Configuration`] when a newer version wrote it.
pub fn read<T: DeserializeOwned>(name: &str, content: &[u8], format: u32) -> Result<T, ObjectError> {
    #[derive(Deserialize)]
    struct OfFormat {
        format: u32,
    }
    let of: OfFormat = serde_json::from_slice(content).map_err(|error| damaged(name, &error.to_string()))?;
    if of.format != format {
        return Err(ObjectError::Configuration(format!(
            "{name} is of format {}, and this version reads format {format}: use the version that wrote it, or a newer one",
            of.format
        )));
    }
    serde_json::from_slice(content).map_err(|error| damaged(name, &error.to_string()))
}

/// An object of this format.
pub fn write<T: Serialize>(object: &T) -> Vec<u8> {
    // Numbers, texts, and lists of them: nothing that JSON could not say.
    serde_json::to_vec_pretty(object).unwrap_or_default()
}

pub(crate) fn damaged(name: &str, why: &str) -> ObjectError {
    ObjectError::Damaged { name: name.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_changed_or_is_newer_is_not() {
        let of = ShardName { pipeline: "p".into(), generation: 1, stage: "unify".into(), shard: 3, shards: 8 };
        let position = StatePosition { batch_number: 7, digest: u64::MAX, topic_id: "t".into(), ..Default::default() };
        let file = File { name: "a".into(), object: "files/x".into(), size: 5, hash: hash(b"hello") };
        let manifest = Manifest::new(of, 2, 99, &position, vec![file]);
        assert!(manifest.is_of(&position));
        assert!(!manifest.is_of(&StatePosition { digest: 1, ..position }));
        let content = write(&manifest);
        let name = Attempt { epoch: 2, number: 1 }.manifest(&content);
        assert_eq!(read_manifest(&name, &content).unwrap(), manifest);
        let mut flipped = content.clone();
        flipped[20] ^= 1;
        assert!(matches!(read_manifest(&name, &flipped), Err(ObjectError::Damaged { .. })));
        let newer = String::from_utf8(content).unwrap().replace("\"format\": 1", "\"format\": 2");
        let read = read::<Manifest>(&name, newer.as_bytes(), FORMAT);
        assert!(matches!(&read, Err(ObjectError::Configuration(why)) if why.contains("format 2")), "{read:?}");
    }

    #[test]
    fn names_say_whose_they_are() {
        let attempt = Attempt { epoch: 0xab, number: 3 };
        assert_eq!(epoch_of(&attempt.file(&hash(b""))), Some(0xab));
        assert_eq!(epoch_of(&attempt.manifest(b"")), Some(0xab));
        for other in [POINTER, "files/x", "files/zz-1", "savepoints/01-02"] {
            assert_eq!(epoch_of(other), None, "{other}");
        }
    }
}
