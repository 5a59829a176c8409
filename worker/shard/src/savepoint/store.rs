//! The savepoints of a pipeline, as they lie in the object store.
//!
//! A savepoint is there when its record, `begun.json`, and its manifest are. Its record is written first, by one creator only, and is the first that goes: from then on there is no savepoint, whatever is written late.
//! What is left then is found by its folder.

use super::layout::{self, BEGUN, Begun, FORMAT, MANIFEST, Manifest};
use crate::checkpoint::layout as checkpoints;
use crate::objects::{ObjectError, ObjectStore, Put, When};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What there is of a savepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is being taken, or was given up.
    Begun(Box<Begun>),
    /// It is complete.
    Complete(Box<Manifest>),
    /// What it says of itself cannot be read.
    Damaged(String),
    /// Objects that nothing names: it is being disposed of, or that was broken off.
    Remains,
}

/// The savepoints of a pipeline.
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    pipeline: String,
}

impl Store {
    /// Those of a pipeline.
    pub fn new(objects: Arc<dyn ObjectStore>, pipeline: &str) -> Store {
        Store { objects, pipeline: pipeline.to_owned() }
    }

    /// Where everything lies.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The name in the object store of one of a savepoint's objects.
    pub fn full(&self, savepoint: u64, name: &str) -> String {
        format!("{}/{name}", layout::folder(&self.pipeline, savepoint))
    }

    /// Ids of all of which there is anything.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn ids(&self) -> Result<BTreeSet<u64>, ObjectError> {
        let (all, mut ids) = (layout::all(&self.pipeline), BTreeSet::new());
        let mut after: Option<String> = None;
        loop {
            let page = self.objects.list(&all, after.as_deref())?;
            let Some(last) = page.last() else { return Ok(ids) };
            let id = |name: &str| name.strip_prefix(&all)?.split('/').next()?.parse::<u64>().ok();
            ids.extend(page.iter().filter_map(|listed| id(&listed.name)));
            // Past all that this one has: `0` comes after `/`.
            let next = id(&last.name).map(|id| format!("{}0", layout::folder(&self.pipeline, id)));
            after = Some(next.map_or(last.name.clone(), |next| next.max(last.name.clone())));
        }
    }

    /// The names of all objects of a savepoint, below its folder.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn names(&self, savepoint: u64) -> Result<BTreeSet<String>, ObjectError> {
        let (start, mut names) = (self.full(savepoint, ""), BTreeSet::new());
        let mut after: Option<String> = None;
        loop {
            let page = self.objects.list(&start, after.as_deref())?;
            let Some(last) = page.last() else { return Ok(names) };
            after = Some(last.name.clone());
            names.extend(page.iter().filter_map(|listed| listed.name.strip_prefix(&start)).map(str::to_owned));
        }
    }

    /// What there is of a savepoint; `None`: nothing.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn find(&self, savepoint: u64) -> Result<Option<Found>, ObjectError> {
        let of_it = |error: ObjectError| match error {
            ObjectError::Damaged { .. } | ObjectError::Configuration(_) => Ok(Some(Found::Damaged(error.to_string()))),
            error => Err(error),
        };
        match self.begun(savepoint) {
            Err(error) => of_it(error),
            Ok(None) => Ok((!self.names(savepoint)?.is_empty()).then_some(Found::Remains)),
            Ok(Some(begun)) => match self.manifest(savepoint) {
                Err(error) => of_it(error),
                Ok(None) => Ok(Some(Found::Begun(Box::new(begun)))),
                Ok(Some(manifest)) => Ok(Some(Found::Complete(Box::new(manifest)))),
            },
        }
    }

    /// The record of one that was begun.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn begun(&self, savepoint: u64) -> Result<Option<Begun>, ObjectError> {
        let name = self.full(savepoint, BEGUN);
        let Some(object) = self.objects.get(&name)? else { return Ok(None) };
        checkpoints::read(&name, &object.content, FORMAT).map(Some)
    }

    /// The manifest of one, which counts only while its record is there.
    ///
    /// # Errors
    /// [`ObjectError`].
    pub fn manifest(&self, savepoint: u64) -> Result<Option<Manifest>, ObjectError> {
        let listed = self.objects.list(&self.full(savepoint, MANIFEST), None)?;
        let Some(name) = listed.into_iter().next().map(|listed| listed.name) else { return Ok(None) };
        let Some(object) = self.objects.get(&name)? else { return Ok(None) };
        if name != self.full(savepoint, &layout::manifest(&object.content)) {
            return Err(checkpoints::damaged(&name, "its content is not what its name says"));
        }
        checkpoints::read(&name, &object.content, FORMAT).map(Some)
    }

    /// Writes the record of one that is begun; false: the id is somebody else's.
    ///
    /// # Errors
    /// [`ObjectError`]; nobody knows whether it is there, then.
    pub fn begin(&self, begun: &Begun) -> Result<bool, ObjectError> {
        let name = self.full(begun.savepoint, BEGUN);
        let put = self.objects.put(&name, &checkpoints::write(begun), &When::Absent)?;
        // An answer that was lost: it is our own.
        Ok(put != Put::Refused || self.begun(begun.savepoint)?.as_ref() == Some(begun))
    }

    /// Makes it complete; false: it was disposed of meanwhile.
    ///
    /// # Errors
    /// [`ObjectError`]: nobody knows whether it is there; it is not once its record has gone.
    pub fn complete(&self, begun: &Begun, manifest: &Manifest) -> Result<bool, ObjectError> {
        let content = checkpoints::write(manifest);
        let name = self.full(manifest.savepoint, &layout::manifest(&content));
        let put = || self.objects.put(&name, &content, &When::Always).map(drop);
        // An answer may be lost.
        put().or_else(|_| put())?;
        Ok(self.begun(begun.savepoint)?.as_ref() == Some(begun))
    }

    /// Deletes all of it.
    ///
    /// # Errors
    /// [`ObjectError`]; to be repeated then.
    pub fn delete(&self, savepoint: u64) -> Result<(), ObjectError> {
        let full = |name: &str| self.full(savepoint, name);
        self.objects.delete(&[full(BEGUN)])?;
        let rest = self.names(savepoint)?;
        self.objects.delete(&rest.iter().map(|name| full(name)).collect::<Vec<_>>())
    }
}
