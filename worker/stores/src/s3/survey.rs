//! A try of everything that Millstream does with a bucket, on objects of its own that are gone afterwards: for whoever checks a configuration.
//!
//! Rights cannot be asked for on S3, and that a server takes conditions does not say that it keeps them: both show when it is tried.

use super::failure::{Cause, Failure, Right};
use super::{S3Objects, Server};
use bytes::Bytes;
use millstream_shard::objects::{ObjectError, Put, Version, When};
use std::fmt;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What a bucket is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Rights that these credentials lack.
    pub forbidden: Vec<Right>,
    /// What the store does not do, or does wrongly, in words.
    pub unable: Vec<String>,
    /// What could not be tried, because something else is missing.
    pub untried: Vec<Trial>,
    /// How long it took to list, milliseconds.
    pub round_trip_ms: u64,
}

impl Found {
    /// Nothing is missing.
    pub fn is_good(&self) -> bool {
        self.forbidden.is_empty() && self.unable.is_empty() && self.untried.is_empty()
    }
}

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trial {
    /// To read what was written.
    Read,
    /// To write only where nothing is, and only over what was read.
    Condition,
    /// To upload in parts.
    Parts,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trial::Read => "reading what was written",
            Trial::Condition => "conditional writes",
            Trial::Parts => "uploads in parts",
        })
    }
}

impl S3Objects {
    /// Tries everything. It writes objects whose names begin with `survey-`, and deletes them.
    ///
    /// # Errors
    /// [`ObjectError::Unavailable`]; [`ObjectError::Configuration`] for what is wrong with everything: a bucket that is not there, credentials that nobody knows.
    pub fn survey(&self) -> Result<Found, ObjectError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("survey-{}-{:x}", std::process::id(), since.as_nanos());
        let key = self.server.config.key(&name);
        self.run(Right::List, &name, |server| async move {
            let mut survey = Survey { server: &server, key, found: Found::default() };
            let tried = Box::pin(survey.all()).await;
            // Also when it came to an end in the middle.
            let deleted = Box::pin(survey.delete()).await;
            tried.and(deleted).map(|()| survey.found)
        })
    }
}

/// A survey that is under way.
struct Survey<'a> {
    server: &'a Server,
    /// Of its objects, or what their keys begin with.
    key: String,
    found: Found,
}

impl Survey<'_> {
    async fn all(&mut self) -> Result<(), Failure> {
        self.list().await?;
        match self.write().await? {
            Some(version) => {
                self.read().await?;
                self.conditions(version).await?;
                self.parts().await
            }
            None => {
                self.found.untried.extend([Trial::Read, Trial::Condition, Trial::Parts]);
                Ok(())
            }
        }
    }

    /// What was tried, or a note of why it could not be done. What is wrong with everything ends the survey.
    fn note<T>(&mut self, right: Right, tried: Result<T, Failure>) -> Result<Option<T>, Failure> {
        match tried {
            Ok(done) => return Ok(Some(done)),
            Err(failure) if failure.cause == Cause::Forbidden => {
                if !self.found.forbidden.contains(&right) {
                    self.found.forbidden.push(right);
                }
            }
            Err(failure) if matches!(failure.cause, Cause::Unable | Cause::Damaged) => {
                self.found.unable.push(failure.to_string());
            }
            Err(failure) => return Err(failure),
        }
        Ok(None)
    }

    /// Notes what the store did and should not have done.
    fn wrong(&mut self, said: &str) {
        self.found.unable.push(said.to_owned());
    }

    async fn list(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let listed = self.server.list(&self.key, None).await;
        self.found.round_trip_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.note(Right::List, listed).map(drop)
    }

    async fn write(&mut self) -> Result<Option<Version>, Failure> {
        let put = self.put("1", &When::Always).await?;
        Ok(put.and_then(|put| match put {
            Put::Done(version) => Some(version),
            Put::Refused => None,
        }))
    }

    async fn put(&mut self, content: &'static str, when: &When) -> Result<Option<Put>, Failure> {
        let put = self.server.put(&self.key, Bytes::from_static(content.as_bytes()), when).await;
        self.note(Right::Put, put)
    }

    async fn read(&mut self) -> Result<(), Failure> {
        let got = self.server.get(&self.key).await;
        let Some(got) = self.note(Right::Get, got)? else { return Ok(()) };
        if got.is_none_or(|object| object.content != b"1") {
            self.wrong("what was written is not what is read: writes must be seen at once");
        }
        let part = self.server.read(&self.key, 0, 1).await;
        self.note(Right::Get, part).map(drop)
    }

    /// What must be refused is, and what must not is not.
    async fn conditions(&mut self, first: Version) -> Result<(), Failure> {
        match self.put("2", &When::Absent).await? {
            None => return Ok(()),
            Some(Put::Refused) => {}
            Some(Put::Done(_)) => {
                self.wrong("a write that asks that nothing is there (If-None-Match: *) replaces what is there")
            }
        }
        let written = self.write().await?.unwrap_or(first);
        let Some(replaced) = self.put("3", &When::Is(written.clone())).await? else { return Ok(()) };
        if replaced == Put::Refused {
            self.wrong("a write over the version that is there (If-Match) is refused");
        }
        if matches!(self.put("4", &When::Is(written)).await?, Some(Put::Done(_))) {
            self.wrong("a write over a version that is not there any more (If-Match) is taken");
        }
        Ok(())
    }

    /// One upload that is completed, and one that is given up.
    async fn parts(&mut self) -> Result<(), Failure> {
        for is_completed in [true, false] {
            let begun = self.server.begin_upload(self.key.clone()).await;
            let Some(upload) = self.note(Right::Put, begun)? else { return Ok(()) };
            let part = self.server.upload_part(&upload, 1, Bytes::from_static(b"5")).await;
            let part = self.note(Right::Put, part)?;
            if let (true, Some(part)) = (is_completed, part) {
                let completed = self.server.complete_upload(&upload, vec![part]).await;
                self.note(Right::Put, completed)?;
            } else {
                let given_up = self.server.abort_upload(&upload).await;
                self.note(Right::Abort, given_up)?;
            }
        }
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), Failure> {
        let deleted = self.server.delete(vec![self.key.clone()]).await;
        self.note(Right::Delete, deleted).map(drop)
    }
}
