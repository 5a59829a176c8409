//! An object store to which no more than so many bytes a second are uploaded, by all shards of a process together.

use millstream_shard::objects::{Listed, Object, ObjectError, ObjectStore, Put, When};
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are read at a time: what one read may be ahead of its turn.
const CHUNK: usize = 64 << 10;

/// An object store with a bound on what is uploaded.
pub(super) struct Throttled {
    inner: Arc<dyn ObjectStore>,
    bytes_per_second: u64,
    /// When the next byte may go.
    free_at: Mutex<Instant>,
}

impl Throttled {
    /// At most so many bytes a second.
    pub(super) fn new(inner: Arc<dyn ObjectStore>, bytes_per_second: u64) -> Throttled {
        Throttled { inner, bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// How long whoever has read so much has to wait.
    fn take(&self, bytes: usize, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        // What nobody used is not kept.
        *free_at = (*free_at).max(now) + cost;
        free_at.duration_since(now)
    }
}

struct Slowed<'a> {
    throttled: &'a Throttled,
    content: &'a mut dyn Read,
}

impl Read for Slowed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = into.len().min(CHUNK);
        let read = self.content.read(into.get_mut(..most).unwrap_or_default())?;
        std::thread::sleep(self.throttled.take(read, Instant::now()));
        Ok(read)
    }
}

impl ObjectStore for Throttled {
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError> {
        self.inner.get(name)
    }

    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        self.inner.read(name, at, size)
    }

    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        self.inner.put(name, content, when)
    }

    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError> {
        self.inner.upload(name, size, &mut Slowed { throttled: self, content })
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
        self.inner.list(prefix, after)
    }

    fn delete(&self, names: &[String]) -> Result<(), ObjectError> {
        self.inner.delete(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_stores::embedded::objects::FolderObjects;

    #[test]
    fn all_uploads_together_keep_the_bound_and_what_is_not_used_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let throttled = Throttled::new(Arc::new(FolderObjects::open(folder.path()).unwrap()), 1_000);
        let begin = Instant::now();
        let after = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        assert_eq!(throttled.take(500, after(10.0)), Duration::from_millis(500));
        assert_eq!(throttled.take(500, after(10.0)), Duration::from_secs(1), "another one waits behind the first");
        assert_eq!(throttled.take(1_000, after(10.5)), Duration::from_millis(1_500));
        assert_eq!(throttled.take(100, after(60.0)), Duration::from_millis(100), "a pause is no credit");
    }

    #[test]
    fn what_is_uploaded_arrives() {
        let folder = tempfile::tempdir().unwrap();
        let throttled = Throttled::new(Arc::new(FolderObjects::open(folder.path()).unwrap()), 1 << 30);
        let content = vec![7; 3 * CHUNK + 1];
        throttled.upload("a", content.len() as u64, &mut content.as_slice()).unwrap();
        assert!(throttled.get("a").unwrap().unwrap().content == content);
    }
}
