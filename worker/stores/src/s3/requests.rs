//! The requests that the trait's calls come to, but for uploads in parts.

use super::Server;
use super::failure::{Cause, Failure, causes};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Delete, Error as Undeleted, ObjectIdentifier};
use bytes::Bytes;
use millstream_shard::objects::{Listed, Object, Put, Version, When};
use std::time::Duration;

/// Objects that are deleted by one request: as many as S3 takes.
pub(super) const DELETED_AT_ONCE: usize = 1000;

/// A write into which another came is sent again so often: nothing was done, and neither is it known to be late.
const CONFLICTS: u32 = 3;

/// Before it is sent again, for the first time.
const AFTER_CONFLICT: Duration = Duration::from_millis(50);

/// Of objects that could not be deleted, so many are named.
const NAMED: usize = 3;

impl Server {
    pub(super) async fn get(&self, key: &str) -> Result<Option<Object>, Failure> {
        let Some((answer, content)) = self.fetch(key, None).await? else { return Ok(None) };
        Ok(Some(Object { content, version: version(answer.e_tag())? }))
    }

    pub(super) async fn read(&self, key: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, Failure> {
        let at = at.min(LAST);
        // A request for nothing cannot be written.
        let range = range(at, size.max(1));
        let (answer, mut content) = match self.fetch(key, Some(range)).await {
            Err(failure) if failure.status == 416 => return Ok(Some(Vec::new())),
            fetched => match fetched? {
                Some(fetched) => fetched,
                None => return Ok(None),
            },
        };
        if answer.content_range().is_none() {
            // The server knows no ranges, and has sent all of it.
            content.drain(..usize::try_from(at).unwrap_or(usize::MAX).min(content.len()));
        }
        content.truncate(size);
        Ok(Some(content))
    }

    /// An answer with its content. The SDK sends requests again, but not those whose content breaks off.
    async fn fetch(&self, key: &str, range: Option<String>) -> Result<Option<(GetObjectOutput, Vec<u8>)>, Failure> {
        let all = async {
            for _ in 1..self.config.attempts {
                match self.fetch_once(key, range.clone()).await {
                    Err(failure) if failure.is_broken_off() => {}
                    fetched => return fetched,
                }
            }
            self.fetch_once(key, range.clone()).await
        };
        let late = |_| Err(Failure::without_answer(Cause::Unavailable, "the content does not come in time"));
        tokio::time::timeout(self.config.operation_timeout(), all).await.unwrap_or_else(late)
    }

    async fn fetch_once(
        &self,
        key: &str,
        range: Option<String>,
    ) -> Result<Option<(GetObjectOutput, Vec<u8>)>, Failure> {
        let request = self.client.get_object().bucket(&self.config.bucket).key(key).set_range(range);
        let mut answer = match Box::pin(request.send()).await.map_err(Failure::from) {
            Err(failure) if failure.is_missing() => return Ok(None),
            answer => answer?,
        };
        let content = std::mem::replace(&mut answer.body, ByteStream::from_static(b"")).collect().await;
        let content = content.map_err(|error| Failure::content(&causes(&error)))?;
        Ok(Some((answer, content.into_bytes().to_vec())))
    }

    pub(super) async fn put(&self, key: &str, content: Bytes, when: &When) -> Result<Put, Failure> {
        for conflict in 0..CONFLICTS {
            match self.put_once(key, content.clone(), when).await {
                Err(failure) if failure.is_conflict() => tokio::time::sleep(AFTER_CONFLICT * 2_u32.pow(conflict)).await,
                put => return put,
            }
        }
        match self.put_once(key, content, when).await {
            Err(failure) if failure.is_conflict() && *when != When::Always => Ok(Put::Refused),
            put => put,
        }
    }

    async fn put_once(&self, key: &str, content: Bytes, when: &When) -> Result<Put, Failure> {
        let request = self.client.put_object().bucket(&self.config.bucket).key(key).body(content.into());
        let (encryption, encryption_key) = self.config.encryption.asked_for();
        let request = request.set_server_side_encryption(encryption).set_ssekms_key_id(encryption_key);
        let sent = match when {
            When::Always => Box::pin(request.send()).await,
            When::Absent => Box::pin(request.if_none_match("*").customize().config_override(once()).send()).await,
            When::Is(Version(version)) => {
                Box::pin(request.if_match(version).customize().config_override(once()).send()).await
            }
        };
        match sent.map_err(Failure::from) {
            Ok(answer) => Ok(Put::Done(version(answer.e_tag())?)),
            Err(failure) if *when != When::Always && failure.is_refusal() => Ok(Put::Refused),
            Err(failure) => Err(failure),
        }
    }

    /// A page that is empty is the end: what is not ours is passed over, and so are pages that the server leaves empty.
    pub(super) async fn list(&self, prefix: &str, after: Option<String>) -> Result<Vec<Listed>, Failure> {
        let mut next = None;
        loop {
            let answer = self.list_once(prefix, after.clone(), next).await?;
            let listed: Vec<Listed> = answer.contents().iter().filter_map(|object| self.listed(object)).collect();
            next = answer.next_continuation_token().filter(|_| answer.is_truncated() == Some(true)).map(str::to_owned);
            if !listed.is_empty() || next.is_none() {
                return Ok(listed);
            }
        }
    }

    async fn list_once(
        &self,
        prefix: &str,
        after: Option<String>,
        next: Option<String>,
    ) -> Result<ListObjectsV2Output, Failure> {
        let request = self.client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix);
        let request = request.set_start_after(after).set_continuation_token(next);
        Ok(Box::pin(request.send()).await?)
    }

    fn listed(&self, object: &aws_sdk_s3::types::Object) -> Option<Listed> {
        let name = self.config.name(object.key()?)?.to_owned();
        let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
        let modified = object.last_modified().and_then(|time| time.to_millis().ok());
        Some(Listed { name, size, modified_ms: modified.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0) })
    }

    pub(super) async fn delete(&self, keys: Vec<String>) -> Result<(), Failure> {
        let mut objects = Vec::with_capacity(keys.len());
        for key in keys {
            objects.push(ObjectIdentifier::builder().key(key).build().map_err(|error| unbuilt(&error))?);
        }
        let delete = Delete::builder().set_objects(Some(objects)).quiet(true).build();
        let delete = delete.map_err(|error| unbuilt(&error))?;
        let request = self.client.delete_objects().bucket(&self.config.bucket).delete(delete);
        undeleted(Box::pin(request.send()).await?.errors())
    }
}

/// The last byte that servers can count to.
const LAST: u64 = i64::MAX as u64;

fn range(at: u64, size: usize) -> String {
    match at.checked_add(u64::try_from(size).unwrap_or(u64::MAX)).filter(|end| *end <= LAST) {
        Some(end) => format!("bytes={at}-{}", end - 1),
        None => format!("bytes={at}-"),
    }
}

/// Sent once.
fn once() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::config::Builder::new().retry_config(RetryConfig::disabled())
}

fn version(tag: Option<&str>) -> Result<Version, Failure> {
    let missing = || Failure::without_answer(Cause::Unable, "the store gives objects no ETag");
    tag.map(|tag| Version(tag.to_owned())).ok_or_else(missing)
}

fn unbuilt(error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::without_answer(Cause::Wrong, causes(error))
}

/// Some of a request's objects are still there: as one failure, which is the worst of them.
fn undeleted(errors: &[Undeleted]) -> Result<(), Failure> {
    let failures = errors.iter().filter(|error| error.code() != Some("NoSuchKey")).map(|error| {
        let said = format!("{}: {}", error.key().unwrap_or_default(), error.message().unwrap_or_default());
        // Within an answer there are no statuses; what is not known to be anybody's fault may pass.
        Failure::answer(
            if error.code() == Some("AccessDenied") { 403 } else { 500 },
            error.code().unwrap_or_default(),
            &said,
        )
    });
    let failures: Vec<Failure> = failures.collect();
    let worst = failures.iter().find(|failure| failure.cause != Cause::Unavailable).or_else(|| failures.first());
    let Some(worst) = worst else { return Ok(()) };
    let named: Vec<String> = failures.iter().take(NAMED).map(ToString::to_string).collect();
    let said = format!("{} objects are not deleted: {}", failures.len(), named.join("; "));
    Err(Failure { said, ..worst.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_with_its_last_byte() {
        assert_eq!(range(0, 10), "bytes=0-9");
        assert_eq!(range(7, 1), "bytes=7-7");
        assert_eq!((range(7, usize::MAX), range(LAST, 2)), ("bytes=7-".to_owned(), format!("bytes={LAST}-")));
    }

    #[test]
    fn of_objects_that_are_not_deleted_the_worst_reason_counts() {
        let error = |code: &str| Undeleted::builder().key(code.to_lowercase()).code(code).message("said").build();
        assert!(undeleted(&[]).is_ok());
        assert!(undeleted(&[error("NoSuchKey")]).is_ok());
        let passing = undeleted(&[error("InternalError"), error("SlowDown")]).unwrap_err();
        assert_eq!(passing.cause, Cause::Unavailable);
        let forbidden = undeleted(&[error("InternalError"), error("AccessDenied")]).unwrap_err();
        assert_eq!(forbidden.cause, Cause::Forbidden);
        let said = forbidden.to_string();
        assert!(said.contains("2 objects are not deleted") && said.contains("accessdenied: said"), "{said}");
    }
}
