//! Gaps: a document that lacks what a mutation builds on is noticed, and healed from its home (I8).
//!
//! How one comes about: the document store lost a write that it had acknowledged (it was restored from a backup), or somebody wrote the document.
//! The store applies a mutation only where the revision that it builds on is there; else it changes nothing and says so. Then:
//!
//! 1. The entity **waits**: nothing more of it goes out. When a whole document (a replacement or a tombstone) waits behind the mutation
//!    already, that one goes out instead, and all that wait before it are *covered*: decided, because it says all that they say.
//! 2. Else its home in the action stage is **asked** for the whole document, by a message over `exchange.action` ([`Reaction::requests`]).
//! 3. When the log has the request ([`Reaction::asked`]), the answer is certain, even if this process dies: the action stage takes
//!    effect exactly once, and a document's mutations come in one partition in the order of their revisions. So the whole document will come behind
//!    everything that this stage has read, and reads until then: all of that is covered. The position moves on, and nothing is
//!    held in memory; if it waited, a restored database could fill the backlog with what waits for answers that are behind it in the topic.
//! 4. The whole document **heals**: it goes out like any, whatever is stored.
//!
//! A request is repeated with growing pauses while no answer has come. That costs nothing but the message: the home knows whether a whole
//! document newer than what we have read is on its way. Forgetting that one was asked is harmless as well (after a crash, or when
//! there are too many to remember): the next mutation of the document finds the gap again.
//!
//! When the whole document is refused by the store, it is rejected like any mutation, with all the data, and its revision is written: the document
//! stays behind, and later mutations change it again.

use super::entity::{Gap, Part, Work};
use super::{Decided, DocumentKey, Reaction, Written};
use crate::action::{DEVICES, USERS};
use millstream_model::document::is_whole;
use millstream_model::id::{DeviceId, UserId};
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Exchange, Replace};

/// A request is repeated after this time, and then after twice as long each time, up to [`MAX_ASK_MS`].
const FIRST_ASK_MS: u64 = 5_000;
/// Longest time between two requests for one document.
const MAX_ASK_MS: u64 = 60_000;
/// So many documents that were asked for are remembered; about 300 bytes each.
const MAX_REMEMBERED: usize = 10_000;

/// Key group of the home that knows the whole document.
fn home(key: &DocumentKey) -> Option<u16> {
    match key.collection.as_str() {
        USERS => UserId::parse(&key.id).map(|id| id.home()),
        DEVICES => DeviceId::parse(&key.id).map(|id| id.home()),
        _ => None,
    }
}

/// A gap that nobody can heal is a refusal.
pub(super) fn or_refused(key: &DocumentKey, written: Written) -> Written {
    match written {
        Written::Gap if home(key).is_none() => {
            let DocumentKey { collection, id, .. } = key;
            let message =
                format!("the document lacks what this builds on, and no stage can send `{id}` of `{collection}`");
            Written::Refused(message)
        }
        written => written,
    }
}

impl Reaction {
    /// Documents with a gap for whose whole the home is to be asked now, at most `max`, with the message for `exchange.action`. Unless an
    /// answer comes, each is due again after a pause.
    pub fn requests(&mut self, max: usize, now_ms: u64) -> Vec<(DocumentKey, Exchange)> {
        let mut requests = Vec::new();
        while requests.len() < max
            && let Some((due, _)) = self.asking.first()
            && *due <= now_ms
            && let Some((_, key)) = self.asking.pop_first()
        {
            let Some(gap) = self.entities.get_mut(&key).and_then(|entity| entity.gap.as_mut()) else { continue };
            let pause = FIRST_ASK_MS.saturating_mul(1 << gap.requests.min(10));
            gap.requests += 1;
            gap.due_ms = now_ms + pause.min(MAX_ASK_MS);
            self.asking.insert((gap.due_ms, key.clone()));
            requests.extend(request(&key, gap.revision).map(|message| (key, message)));
        }
        requests
    }

    /// Takes that the log has the requests for these documents; gives the mutations that are decided with it.
    pub fn asked<'k>(&mut self, keys: impl IntoIterator<Item = &'k DocumentKey>) -> Vec<Decided> {
        let mut decided = Vec::new();
        for key in keys {
            let Some(entity) = self.entities.get_mut(key) else { continue };
            let Some(gap) = entity.gap.as_mut().filter(|gap| gap.requests > 0) else { continue };
            gap.is_asked = true;
            let covered: Vec<Work> = entity.waiting.drain(..).collect();
            decided.extend(self.cover(covered));
            if self.asking.len() > MAX_REMEMBERED {
                self.forget(key);
            }
        }
        decided
    }

    /// A write found a gap.
    pub(super) fn gap(&mut self, key: &DocumentKey, work: Work, now_ms: u64) -> Vec<Decided> {
        let Some(entity) = self.entities.get_mut(key) else { return Vec::new() };
        (entity.attempts, entity.not_before_ms) = (0, 0);
        entity.put_back(work);
        if let Some(covered) = entity.covered() {
            return self.cover(covered);
        }
        entity.gap = Some(Gap { due_ms: now_ms, revision: entity.newest(), ..Gap::default() });
        self.asking.insert((now_ms, key.clone()));
        Vec::new()
    }

    /// A mutation of a document with a gap.
    pub(super) fn offer_to_gap(&mut self, key: DocumentKey, part: Part) -> Vec<Decided> {
        let Some(entity) = self.entities.get_mut(&key) else { return Vec::new() };
        let Some(gap) = entity.gap.as_mut() else { return Vec::new() };
        gap.revision = gap.revision.max(part.mutation.revision);
        let is_whole = is_whole(&part.mutation);
        if !is_whole && gap.is_asked {
            return vec![Decided::Covered(self.discount(part))];
        }
        let mut covered = Vec::new();
        if is_whole {
            self.asking.remove(&(gap.due_ms, key.clone()));
            entity.gap = None;
            covered.extend(entity.waiting.drain(..));
            self.ready.push_back(key);
        }
        entity.enqueue(part);
        self.cover(covered)
    }

    fn cover(&mut self, works: Vec<Work>) -> Vec<Decided> {
        let parts = works.into_iter().flat_map(|work| work.parts);
        parts.map(|part| Decided::Covered(self.discount(part))).collect()
    }

    /// The next mutation of the document finds the gap anew.
    fn forget(&mut self, key: &DocumentKey) {
        let gap = self.entities.remove(key).and_then(|entity| entity.gap);
        if let Some(gap) = gap {
            self.asking.remove(&(gap.due_ms, key.clone()));
        }
    }
}

fn request(key: &DocumentKey, revision: u64) -> Option<Exchange> {
    let replace = Replace { collection: key.collection.clone(), id: key.id.clone(), revision };
    let (tenant, group) = (key.tenant.clone(), u32::from(home(key)?));
    Some(Exchange { tenant, group, hops: 0, body: Some(Body::Replace(replace)) })
}
