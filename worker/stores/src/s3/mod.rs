//! The object store on S3, and on what speaks its protocol.
//!
//! - **Version** is the ETag. A write that asks what is there carries it (`If-Match`) or `If-None-Match: *`, and the server decides.
//! - **Sent once.** Such a write is never sent again by itself: when its first answer is lost, a second one would be refused because of the first. What became of it is unknown then, and the caller reads.
//!   All others may be sent again: they come to the same.
//! - **Whole.** Each request carries a checksum, by which the server refuses what was broken on its way; an upload in parts is there when it is completed, and given up when anything fails (`upload.rs`).
//!   What a process that is killed has uploaded of one stays, unseen and paid for: a rule of the bucket for incomplete uploads removes it.
//!
//! The blocking API runs on a tokio runtime of its own, so it can be called from any thread.

mod client;
mod config;
mod failure;
mod requests;
pub mod survey;
mod upload;

pub use config::{Credentials, Encryption, S3Config};
pub use failure::Right;

use aws_sdk_s3::Client;
use failure::Failure;
use millstream_shard::objects::{Listed, Object, ObjectError, ObjectStore, Put, When, check_name};
use std::future::Future;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use tokio::runtime::Runtime;

/// Two, for what is sent is hashed, and encrypted by TLS: one core is less than a fast network takes.
const THREADS: usize = 2;

/// What the tasks share.
struct Server {
    client: Client,
    config: S3Config,
}

/// The object store on S3.
pub struct S3Objects {
    server: Arc<Server>,
    runtime: Option<Runtime>,
}

impl S3Objects {
    /// Gets ready; asks nobody yet.
    ///
    /// # Errors
    /// [`ObjectError::Configuration`] for what is wrong with the settings.
    pub fn new(config: S3Config) -> Result<S3Objects, ObjectError> {
        config.check()?;
        let client = client::client(&config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(|error| ObjectError::Unavailable(format!("cannot start threads: {error}")))?;
        Ok(S3Objects { server: Arc::new(Server { client, config }), runtime: Some(runtime) })
    }

    /// Begins `work` on the runtime; its outcome.
    fn begin<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Server>) -> F,
    ) -> Receiver<T> {
        let (sender, receiver) = channel();
        let work = work(Arc::clone(&self.server));
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { drop(sender.send(work.await)) });
        }
        receiver
    }

    /// Runs `work`, about the object `name`, on the runtime and waits for it. Works on any thread, those of another runtime included.
    fn run<T: Send + 'static, F: Future<Output = Result<T, Failure>> + Send + 'static>(
        &self,
        right: Right,
        name: &str,
        work: impl FnOnce(Arc<Server>) -> F,
    ) -> Result<T, ObjectError> {
        self.outcome(right, name, &self.begin(work))
    }

    /// Waits for what was begun.
    fn outcome<T>(&self, right: Right, name: &str, begun: &Receiver<Result<T, Failure>>) -> Result<T, ObjectError> {
        let closed = || Err(Failure::closed());
        begun
            .recv()
            .unwrap_or_else(|_| closed())
            .map_err(|failure| failure.into_error(&self.server.config, right, name))
    }

    fn key(&self, name: &str) -> Result<String, ObjectError> {
        check_name(name)?;
        Ok(self.server.config.key(name))
    }
}

impl Drop for S3Objects {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits for its tasks, which panics on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl ObjectStore for S3Objects {
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError> {
        let key = self.key(name)?;
        self.run(Right::Get, name, |server| async move { server.get(&key).await })
    }

    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        let key = self.key(name)?;
        self.run(Right::Get, name, |server| async move { server.read(&key, at, size).await })
    }

    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        let (key, content, when) = (self.key(name)?, content.to_vec().into(), when.clone());
        self.run(Right::Put, name, |server| async move { server.put(&key, content, &when).await })
    }

    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError> {
        let key = self.key(name)?;
        upload::upload(self, name, key, size, content)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
        let (keys, after) = (self.server.config.key(prefix), after.map(|after| self.server.config.key(after)));
        self.run(Right::List, prefix, |server| async move { server.list(&keys, after).await })
    }

    fn delete(&self, names: &[String]) -> Result<(), ObjectError> {
        names.iter().try_for_each(|name| check_name(name))?;
        for chunk in names.chunks(requests::DELETED_AT_ONCE) {
            let keys = chunk.iter().map(|name| self.server.config.key(name)).collect();
            let what = chunk.first().map(String::as_str).unwrap_or_default();
            self.run(Right::Delete, what, |server| async move { server.delete(keys).await })?;
        }
        Ok(())
    }
}
