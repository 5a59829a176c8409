//! Uploads of any size: in one request while they are small, else in parts.
//!
//! 1. An upload is begun, with CRC-32 of each part as its checksum: the SDK sends one with each part, and some servers take that only when it was said before.
//! 2. Parts are read by the caller's thread and sent by others, a few at once, in order of their numbers.
//! 3. When all are there and the source has ended, the upload is completed: now the object is there, with all of it.
//!
//! When anything fails, the upload is given up after its last part was answered, so that no part comes behind that and stays.

use super::failure::{Failure, Right};
use super::{S3Objects, Server};
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use millstream_shard::objects::{ObjectError, When};
use std::collections::VecDeque;
use std::fmt::Display;
use std::io::Read;
use std::sync::mpsc::Receiver;

/// A part has so many bytes, as long as these are enough parts.
const PART: u64 = 8 << 20;

/// Parts that an upload may have.
const MOST_PARTS: u64 = 10_000;

/// Writes all of a stream.
pub(super) fn upload(
    objects: &S3Objects,
    name: &str,
    key: String,
    size: u64,
    content: &mut dyn Read,
) -> Result<(), ObjectError> {
    let mut source = Source { name, size, taken: 0, content };
    if size <= PART {
        let content = source.take(size)?;
        source.ends()?;
        objects.run(Right::Put, name, |server| async move { server.put(&key, content, &When::Always).await })?;
        return Ok(());
    }
    let upload = objects.run(Right::Put, name, |server| async move { server.begin_upload(key).await })?;
    let mut parts = Parts { objects, name, upload, under_way: VecDeque::new(), sent: Vec::new() };
    let uploaded = parts.send_all(&mut source).and_then(|()| parts.complete());
    if uploaded.is_err() {
        parts.give_up();
    }
    uploaded
}

/// What is uploaded.
struct Source<'a> {
    name: &'a str,
    size: u64,
    taken: u64,
    content: &'a mut dyn Read,
}

impl Source<'_> {
    fn failed(&self, why: &dyn Display) -> ObjectError {
        ObjectError::Source { name: self.name.to_owned(), why: why.to_string() }
    }

    /// The next so many bytes.
    fn take(&mut self, size: u64) -> Result<Bytes, ObjectError> {
        let mut part = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        Read::take(&mut *self.content, size).read_to_end(&mut part).map_err(|error| self.failed(&error))?;
        let read = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.taken += read;
        if read < size {
            return Err(self.failed(&format!("it has {} bytes, and not {}", self.taken, self.size)));
        }
        Ok(part.into())
    }

    /// That was all of it.
    fn ends(&mut self) -> Result<(), ObjectError> {
        match Read::take(&mut *self.content, 1).read_to_end(&mut Vec::new()) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.failed(&format!("it has more than {} bytes", self.size))),
            Err(error) => Err(self.failed(&error)),
        }
    }
}

/// An upload that was begun.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    key: String,
    id: String,
}

/// The parts of an upload.
struct Parts<'a> {
    objects: &'a S3Objects,
    name: &'a str,
    upload: Begun,
    /// In order of their numbers.
    under_way: VecDeque<Receiver<Result<CompletedPart, Failure>>>,
    sent: Vec<CompletedPart>,
}

impl Parts<'_> {
    fn send_all(&mut self, source: &mut Source<'_>) -> Result<(), ObjectError> {
        let part = part_size(source.size);
        // Parts that are larger are fewer at once: they are in memory.
        let at_once = at_once(self.objects.server.config.parts_at_once, part);
        let mut number = 0;
        while source.taken < source.size {
            let content = source.take(part.min(source.size - source.taken))?;
            while self.under_way.len() >= at_once {
                self.wait_for_oldest()?;
            }
            number += 1;
            self.send(number, content);
        }
        source.ends()?;
        while !self.under_way.is_empty() {
            self.wait_for_oldest()?;
        }
        Ok(())
    }

    fn send(&mut self, number: i32, content: Bytes) {
        let upload = self.upload.clone();
        let begun = self.objects.begin(|server| async move { server.upload_part(&upload, number, content).await });
        self.under_way.push_back(begun);
    }

    fn wait_for_oldest(&mut self) -> Result<(), ObjectError> {
        let Some(oldest) = self.under_way.pop_front() else { return Ok(()) };
        self.sent.push(self.objects.outcome(Right::Put, self.name, &oldest)?);
        Ok(())
    }

    fn complete(&mut self) -> Result<(), ObjectError> {
        let (upload, parts) = (self.upload.clone(), std::mem::take(&mut self.sent));
        self.objects.run(Right::Put, self.name, |server| async move { server.complete_upload(&upload, parts).await })
    }

    /// Nothing is left of it, if the server can be told.
    fn give_up(self) {
        for part in &self.under_way {
            drop(part.recv());
        }
        let upload = self.upload;
        let given_up =
            self.objects.run(Right::Abort, self.name, |server| async move { server.abort_upload(&upload).await });
        if let Err(error) = given_up {
            tracing::warn!(%error, "parts of an upload that has failed stay in the object store, until a rule of the bucket removes them");
        }
    }
}

/// Bytes in a part: as few MiB as are enough.
fn part_size(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

fn at_once(configured: usize, part: u64) -> usize {
    let larger = usize::try_from(part / PART).unwrap_or(usize::MAX);
    (configured / larger.max(1)).max(1)
}

impl Server {
    /// Begins an upload in parts.
    pub(super) async fn begin_upload(&self, key: String) -> Result<Begun, Failure> {
        let request = self.client.create_multipart_upload().bucket(&self.config.bucket).key(&key);
        let request = request.checksum_algorithm(ChecksumAlgorithm::Crc32).checksum_type(ChecksumType::Composite);
        let (encryption, encryption_key) = self.config.encryption.asked_for();
        let request = request.set_server_side_encryption(encryption).set_ssekms_key_id(encryption_key);
        let id = Box::pin(request.send()).await?.upload_id.unwrap_or_default();
        Ok(Begun { key, id })
    }

    /// Sends a part; the first has number 1.
    pub(super) async fn upload_part(
        &self,
        upload: &Begun,
        number: i32,
        content: Bytes,
    ) -> Result<CompletedPart, Failure> {
        let request = self.client.upload_part().bucket(&self.config.bucket).key(&upload.key).upload_id(&upload.id);
        let request = request.part_number(number).checksum_algorithm(ChecksumAlgorithm::Crc32).body(content.into());
        let answer = Box::pin(request.send()).await?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag);
        Ok(part.set_checksum_crc32(answer.checksum_crc32).build())
    }

    /// Makes an object of all parts.
    pub(super) async fn complete_upload(&self, upload: &Begun, parts: Vec<CompletedPart>) -> Result<(), Failure> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let request = self.client.complete_multipart_upload().bucket(&self.config.bucket).key(&upload.key);
        Box::pin(request.upload_id(&upload.id).multipart_upload(parts).send()).await?;
        Ok(())
    }

    /// Gives an upload up, with its parts. One that is not there any more is no error.
    pub(super) async fn abort_upload(&self, upload: &Begun) -> Result<(), Failure> {
        let request = self.client.abort_multipart_upload().bucket(&self.config.bucket).key(&upload.key);
        match Box::pin(request.upload_id(&upload.id).send()).await.map_err(Failure::from) {
            Err(failure) if failure.code != "NoSuchUpload" => Err(failure),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_grow_so_that_they_are_not_too_many() {
        for size in [PART + 1, 64 << 20, PART * MOST_PARTS, PART * MOST_PARTS + 1, 1 << 40, 5 << 40] {
            let part = part_size(size);
            assert!(
                size.div_ceil(part) <= MOST_PARTS && part >= PART && part.is_multiple_of(1 << 20),
                "{size}: {part}"
            );
        }
        assert_eq!((part_size(PART + 1), part_size(PART * MOST_PARTS)), (PART, PART));
        assert_eq!(part_size(PART * MOST_PARTS + 1), PART + (1 << 20));
    }

    #[test]
    fn larger_parts_are_fewer_at_once() {
        assert_eq!([PART, 2 * PART, 3 * PART, 100 * PART].map(|part| at_once(4, part)), [4, 2, 1, 1]);
    }
}
