//! Writing mutations so that documents converge (I8).
//!
//! 1. One unordered bulk of guarded writes. A mutation that builds on a revision matches a document that has that revision and not ours yet; where
//!    nothing matches, nothing happens. Any other is an upsert that matches a lower guard; where the stored guard is not lower, the filter does
//!    not match, the upsert collides, and the server answers E11000.
//! 2. Neither proves anything: two upserts of a new document collide too, another unique index could be in the way, and what did not match
//!    may be newer, older, or not there. So the stored guards are read, in one query per collection, of those writes only. Not lower than ours: stale.
//!    Lower than what it builds on, or no document: a gap. Else the write is repeated once **without** upsert, and only then "no match" means
//!    that a newer one is there. E11000 and no document: another index is in the way, for good.
//! 3. What operators cannot express is read, folded here, and written back where the guard is still the one that was read.

use super::Server;
use super::command::{Write, statement};
use super::convert::{GENERATION, ID, REVISION, guard, key, loaded, stored};
use super::reply::{Reply, number, update_replies};
use super::update::{Plan, filter, oversize, plan};
use super::verdict::{ID_INDEX, Verdict, verdict};
use bson::{Document as BsonDocument, doc};
use futures::{StreamExt, TryStreamExt};
use millstream_model::document::{Document, Fit, fit};
use millstream_model::proto::Mutation;
use millstream_shard::documents::Outcome;
use std::collections::{BTreeMap, HashMap};

/// A fold that loses its race this often is left to the caller.
const FOLD_ROUNDS: usize = 5;

/// Folds of one call that are under way at once.
const FOLDS_AT_ONCE: usize = 16;

impl Server {
    /// Writes mutations, one outcome each.
    pub(super) async fn write_all(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        let plans: Vec<Plan> = mutations.iter().map(plan).collect();
        let mut outcomes: Vec<Option<Outcome>> = plans.iter().map(refused).collect();
        let (mut folds, mut doubts) = (Vec::new(), Vec::new());
        let (mut indexes, mut writes) = (Vec::new(), Vec::new());
        for (index, (mutation, plan)) in mutations.iter().zip(&plans).enumerate() {
            match plan {
                Plan::Fold => folds.push(index),
                Plan::Update(_) | Plan::Replace(_) => {
                    indexes.push(index);
                    writes.push(Write { mutation, plan });
                }
                Plan::Refuse(_) => {}
            }
        }
        for (index, reply) in indexes.into_iter().zip(self.send(&writes).await) {
            match reply {
                Reply::Duplicate(_) | Reply::Unmatched | Reply::Unsure => doubts.push((index, reply)),
                Reply::Shape => folds.push(index),
                reply => put(&mut outcomes, index, outcome(reply)),
            }
        }
        self.settle_all(mutations, &plans, doubts, &mut outcomes, &mut folds).await;
        self.fold_all(mutations, folds, &mut outcomes).await;
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Outcome::Retry("no answer".to_owned()))).collect()
    }

    /// Step 2, for all writes that collided or matched nothing.
    async fn settle_all(
        &self,
        mutations: &[Mutation],
        plans: &[Plan],
        doubts: Vec<(usize, Reply)>,
        outcomes: &mut [Option<Outcome>],
        folds: &mut Vec<usize>,
    ) {
        if doubts.is_empty() {
            return;
        }
        let guards = match self.guards(doubts.iter().filter_map(|(index, _)| mutations.get(*index))).await {
            Ok(guards) => guards,
            Err(error) => {
                let retry = Outcome::Retry(error.to_string());
                return doubts.iter().for_each(|(index, _)| put(outcomes, *index, retry.clone()));
            }
        };
        for (index, doubt) in doubts {
            let (Some(mutation), Some(plan)) = (mutations.get(index), plans.get(index)) else { continue };
            let found = guards.get(&(mutation.collection.as_str(), key(&mutation.tenant, &mutation.id))).copied();
            match self.settle(&Write { mutation, plan }, found, doubt).await {
                Some(outcome) => put(outcomes, index, outcome),
                None => folds.push(index),
            }
        }
    }

    /// Step 2, for one write; `None`: it is to be folded.
    async fn settle(&self, write: &Write<'_>, found: Option<(u32, u64)>, doubt: Reply) -> Option<Outcome> {
        match verdict(write.mutation, found, &doubt) {
            Verdict::Applied => Some(Outcome::Applied),
            Verdict::Stale => Some(Outcome::Stale),
            Verdict::Gap => Some(Outcome::Gap),
            Verdict::Repeat => self.repeat(write).await,
            Verdict::Later => Some(Outcome::Retry("the document was there, and is not any more".to_owned())),
            Verdict::Never => Some(outcome(doubt)),
        }
    }

    /// The write once more, without upsert; `None`: it is to be folded.
    async fn repeat(&self, write: &Write<'_>) -> Option<Outcome> {
        let mut statement = statement(write)?;
        statement.insert("upsert", false);
        let reply = match self.update(&write.mutation.collection, vec![statement]).await {
            Ok(answer) => match update_replies(&answer, 1).pop()? {
                Reply::Done if number(&answer, "n") == Some(0) => return Some(Outcome::Stale),
                reply => reply,
            },
            Err(reply) => reply,
        };
        (reply != Reply::Shape).then(|| outcome(reply))
    }

    /// The guards of the documents that mutations are about, where they exist.
    async fn guards<'a>(
        &self,
        mutations: impl Iterator<Item = &'a Mutation>,
    ) -> Result<HashMap<(&'a str, String), (u32, u64)>, mongodb::error::Error> {
        let mut keys: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for mutation in mutations {
            keys.entry(&mutation.collection).or_default().push(key(&mutation.tenant, &mutation.id));
        }
        let mut guards = HashMap::new();
        for (collection, keys) in keys {
            let fields = doc! { GENERATION: 1, REVISION: 1 };
            let documents = self.collection(collection);
            let found = documents.find(doc! { ID: { "$in": keys } }).projection(fields);
            let found: Vec<BsonDocument> = found.max_time(self.config.read_timeout()).await?.try_collect().await?;
            for document in found {
                let id = document.get_str(ID).unwrap_or_default().to_owned();
                guards.insert((collection, id), guard(&document));
            }
        }
        Ok(guards)
    }

    /// Step 3.
    async fn fold_all(&self, mutations: &[Mutation], folds: Vec<usize>, outcomes: &mut [Option<Outcome>]) {
        let mut work = Vec::with_capacity(folds.len());
        for index in folds {
            if let Some(mutation) = mutations.get(index) {
                work.push(async move { (index, self.fold(mutation).await) });
            }
        }
        let done: Vec<(usize, Outcome)> = futures::stream::iter(work).buffer_unordered(FOLDS_AT_ONCE).collect().await;
        for (index, outcome) in done {
            put(outcomes, index, outcome);
        }
    }

    async fn fold(&self, mutation: &Mutation) -> Outcome {
        for _ in 0..FOLD_ROUNDS {
            match self.fold_once(mutation).await {
                Some(outcome) => return outcome,
                None => continue,
            }
        }
        Outcome::Retry("others kept changing the document".to_owned())
    }

    /// `None`: another writer was quicker.
    async fn fold_once(&self, mutation: &Mutation) -> Option<Outcome> {
        let key = key(&mutation.tenant, &mutation.id);
        let found = match self.find(&mutation.collection, &key).await {
            Ok(found) => found,
            Err(error) => return Some(Outcome::Retry(error.to_string())),
        };
        let (before, mut document) = match found {
            Some(stored) => (Some(exactly(&key, &stored)), loaded(stored)),
            None => (None, Document::empty()),
        };
        match fit((document.generation, document.revision), mutation) {
            Fit::Stale => return Some(Outcome::Stale),
            Fit::Gap => return Some(Outcome::Gap),
            Fit::Next => document.apply(mutation),
        };
        let Some(written) = stored(&mutation.tenant, &key, &document) else {
            return Some(Outcome::Refused("revision above 2^63".to_owned()));
        };
        if let Some(why) = oversize(&written) {
            return Some(Outcome::Refused(why));
        }
        let upsert = before.is_none();
        let update = doc! { "q": before.unwrap_or_else(|| filter(mutation)), "u": written, "upsert": upsert };
        match self.update(&mutation.collection, vec![update]).await {
            Ok(answer) => folded(&answer),
            Err(reply) => Some(outcome(reply)),
        }
    }
}

/// Matches a document while its guard is the one that was read; also one that another program wrote, without a guard.
fn exactly(key: &str, stored: &BsonDocument) -> BsonDocument {
    let mut filter = doc! { ID: key };
    for name in [GENERATION, REVISION] {
        match stored.get(name) {
            Some(value) => filter.insert(name, value.clone()),
            None => filter.insert(name, doc! { "$exists": false }),
        };
    }
    filter
}

fn folded(answer: &BsonDocument) -> Option<Outcome> {
    match update_replies(answer, 1).pop() {
        Some(Reply::Done) if number(answer, "n") == Some(0) => None,
        Some(Reply::Duplicate(message)) if message.contains(ID_INDEX) => None,
        Some(reply) => Some(outcome(reply)),
        None => Some(Outcome::Retry("no answer".to_owned())),
    }
}

fn refused(plan: &Plan) -> Option<Outcome> {
    match plan {
        Plan::Refuse(why) => Some(Outcome::Refused(why.clone())),
        _ => None,
    }
}

fn put(outcomes: &mut [Option<Outcome>], index: usize, outcome: Outcome) {
    if let Some(place) = outcomes.get_mut(index) {
        *place = Some(outcome);
    }
}

fn outcome(reply: Reply) -> Outcome {
    match reply {
        Reply::Done => Outcome::Applied,
        Reply::Duplicate(message) | Reply::Refused(message) => Outcome::Refused(message),
        Reply::Shape => Outcome::Refused("the document has a field of another type in the way".to_owned()),
        Reply::Retry(message) => Outcome::Retry(message),
        Reply::Unmatched | Reply::Unsure => Outcome::Retry("not known to have matched".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_that_matched_nothing_is_done_again() {
        let lost = doc! { "ok": 1.0, "n": 0 };
        let collided = doc! { "ok": 1.0, "n": 0, "writeErrors": [
            { "index": 0, "code": 11000, "errmsg": "E11000: index: _id_ dup key" },
        ]};
        assert_eq!((folded(&lost), folded(&collided)), (None, None));
        assert_eq!(folded(&doc! { "ok": 1.0, "n": 1 }), Some(Outcome::Applied));
    }
}
