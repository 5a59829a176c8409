//! The object store in memory, and what goes wrong with it: calls that fail, writes whose answer is lost or that land later, lists of a moment ago, bytes that change on the way.
//!
//! It is consistent otherwise, as S3 is: what was acknowledged is seen by every read afterwards.

use crate::counts::{Fault, Protocol};
use crate::world::{ProcessId, World};
use millstream_shard::objects::{Listed, Object, ObjectError, ObjectStore, Put, Version, When, check_name};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Objects of a page.
const PAGE: usize = 5;
/// A write that lands later does so within this time, microseconds.
const LATER_US: u64 = 4_000_000;
/// So many reads after one that was changed on the way are not: who reads again gets the truth.
const TRUE_READS: u32 = 12;

#[derive(Default)]
struct Bucket {
    objects: BTreeMap<String, (Arc<[u8]>, u64)>,
    writes: u64,
    /// What was there a few writes ago.
    former: BTreeMap<String, (Arc<[u8]>, u64)>,
    true_reads: u32,
}

impl Bucket {
    fn put(&mut self, name: &str, content: &[u8], when: &When) -> Put {
        let now = self.objects.get(name).map(|(_, version)| Version(version.to_string()));
        let is_so = match when {
            When::Always => true,
            When::Absent => now.is_none(),
            When::Is(version) => now.as_ref() == Some(version),
        };
        if !is_so {
            return Put::Refused;
        }
        self.writes += 1;
        if self.writes.is_multiple_of(8) {
            self.former = self.objects.clone();
        }
        self.objects.insert(name.to_owned(), (content.into(), self.writes));
        Put::Done(Version(self.writes.to_string()))
    }
}

/// The object store; what [`SimObjects::of`] gives is the same one.
#[derive(Clone)]
pub struct SimObjects {
    world: World,
    bucket: Arc<Mutex<Bucket>>,
    process: Option<ProcessId>,
}

impl SimObjects {
    /// An empty one.
    pub fn new(world: World) -> SimObjects {
        SimObjects { world, bucket: Arc::default(), process: None }
    }

    /// The same for a process: with it, its calls end.
    pub fn of(&self, process: ProcessId) -> SimObjects {
        SimObjects { process: Some(process), ..self.clone() }
    }

    /// Everything that is there.
    pub fn all(&self) -> BTreeMap<String, Arc<[u8]>> {
        self.lock().objects.iter().map(|(name, (content, _))| (name.clone(), content.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_dead(&self) -> bool {
        self.process.is_some_and(|process| self.world.is_dead(process))
    }

    fn happens(&self, fault: Fault) -> bool {
        !self.is_dead() && self.world.happens(fault)
    }

    fn call(&self, what: &'static str, name: &str) -> Result<(), ObjectError> {
        check_name(name)?;
        self.world.step_of(what, 4);
        if self.is_dead() || self.happens(Fault::ObjectsUnavailable) {
            return Err(unavailable("it does not answer"));
        }
        Ok(())
    }

    /// A write, of which the writer may never hear.
    fn write(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        if self.happens(Fault::PutUnknownLater) {
            let (bucket, name, content, when) = (self.bucket.clone(), name.to_owned(), content.to_vec(), when.clone());
            let delay_us = self.world.draw(|rng| rng.below(LATER_US));
            self.world.after(delay_us, move |world| {
                let put = bucket.lock().unwrap_or_else(PoisonError::into_inner).put(&name, &content, &when);
                world.trace(|| format!("late put of {name}: {put:?}"));
            });
            return Err(unavailable("no answer"));
        }
        let put = self.lock().put(name, content, when);
        self.world.trace(|| format!("put of {name}: {put:?}"));
        self.world.step_after("objects: put", 2);
        if self.happens(Fault::PutUnknownHappened) {
            return Err(unavailable("no answer"));
        }
        Ok(put)
    }

    /// What a reader gets of it.
    fn on_the_way(&self, name: &str, content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        let is_due = std::mem::replace(&mut self.lock().true_reads, 0);
        self.lock().true_reads = is_due.saturating_sub(1);
        if is_due == 0 && name.contains("/files/") && !content.is_empty() && self.happens(Fault::BitFlipped) {
            let at = self.world.draw(|rng| rng.below(content.len() as u64)) as usize;
            content[at] ^= 1;
            self.lock().true_reads = TRUE_READS;
        }
        content
    }
}

fn unavailable(why: &str) -> ObjectError {
    ObjectError::Unavailable(why.to_owned())
}

impl ObjectStore for SimObjects {
    fn get(&self, name: &str) -> Result<Option<Object>, ObjectError> {
        self.call("objects: get", name)?;
        let found = self.lock().objects.get(name).cloned();
        Ok(found.map(|(content, version)| Object { content: content.to_vec(), version: Version(version.to_string()) }))
    }

    fn read(&self, name: &str, at: u64, size: usize) -> Result<Option<Vec<u8>>, ObjectError> {
        self.call("objects: read", name)?;
        let found = self.lock().objects.get(name).cloned();
        let Some((content, _)) = found else { return Ok(None) };
        let from = (at as usize).min(content.len());
        Ok(Some(self.on_the_way(name, &content[from..content.len().min(from.saturating_add(size))])))
    }

    fn put(&self, name: &str, content: &[u8], when: &When) -> Result<Put, ObjectError> {
        self.call("objects: put", name)?;
        let put = self.write(name, content, when)?;
        if put == Put::Refused {
            self.world.count(Protocol::PutRefused);
        }
        Ok(put)
    }

    fn upload(&self, name: &str, size: u64, content: &mut dyn Read) -> Result<(), ObjectError> {
        self.call("objects: upload", name)?;
        let source = |why: String| ObjectError::Source { name: name.to_owned(), why };
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(|error| source(error.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(source(format!("{} bytes, and not {size}", bytes.len())));
        }
        // Others go on meanwhile, and it may be too late then.
        self.world.step_of("objects: upload goes on", 10);
        self.write(name, &bytes, &When::Always).map(drop)
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> Result<Vec<Listed>, ObjectError> {
        self.call("objects: list", prefix.trim_end_matches('/'))?;
        let is_stale = self.happens(Fault::ListStale);
        let bucket = self.lock();
        let objects = if is_stale { &bucket.former } else { &bucket.objects };
        let names = objects
            .iter()
            .filter(|(name, _)| name.starts_with(prefix) && after.is_none_or(|after| name.as_str() > after));
        let listed = names.take(PAGE).map(|(name, (content, _))| Listed {
            name: name.clone(),
            size: content.len() as u64,
            modified_ms: self.world.true_ms(),
        });
        Ok(listed.collect())
    }

    fn delete(&self, names: &[String]) -> Result<(), ObjectError> {
        for name in names {
            self.call("objects: delete", name)?;
            if self.happens(Fault::DeleteLater) {
                let (bucket, name) = (self.bucket.clone(), name.clone());
                let delay_us = self.world.draw(|rng| rng.below(LATER_US));
                self.world.after(delay_us, move |_| {
                    bucket.lock().unwrap_or_else(PoisonError::into_inner).objects.remove(&name);
                });
                return Err(unavailable("no answer"));
            }
            if self.lock().objects.remove(name).is_some() {
                self.world.count(Protocol::ObjectDeleted);
            }
            self.world.trace(|| format!("deleted {name}"));
            self.world.step_after("objects: deleted", 1);
        }
        Ok(())
    }
}
