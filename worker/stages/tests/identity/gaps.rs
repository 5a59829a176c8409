//! Documents whose mutations get lost: the reaction stage notices, the homes answer, and each document ends as the fold of all of them (I8).

use crate::checks::{as_sets, documents};
use crate::cluster::Cluster;
use crate::history::{History, Rng};
use crate::scenarios::{action, after, run, set};
use millstream_model::document::{Document, Fit, fit, is_whole};
use millstream_model::key::shard_of;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Action, Mutation, Replace};
use millstream_stages::reaction::{Reaction, Written};
use std::collections::{BTreeMap, BTreeSet};

/// Between two requests for one document.
const LONGEST_PAUSE_MS: u64 = 60_000;

/// The reaction stage of each partition and one document store, behind an action stage.
struct Sink {
    shards: u32,
    reactions: Vec<Reaction>,
    store: BTreeMap<String, Document>,
    /// Mutations of the cluster that were read.
    read: usize,
    now_ms: u64,
    gaps: usize,
}

impl Sink {
    fn new(shards: u32) -> Sink {
        let reactions = (0..shards).map(|_| Reaction::starting_at(0)).collect();
        Sink { shards, reactions, store: BTreeMap::new(), read: 0, now_ms: 0, gaps: 0 }
    }

    fn read(&mut self, cluster: &Cluster, many: usize, lost: &BTreeSet<usize>) {
        for (index, mutation) in cluster.mutations.iter().enumerate().skip(self.read).take(many) {
            let partition = shard_of(mutation.group as u16, self.shards) as usize;
            if !lost.contains(&index) {
                self.reactions[partition].offer(index as u64, vec![mutation.clone()]);
            }
        }
        self.read = (self.read + many).min(cluster.mutations.len());
    }

    fn store(&mut self, mutation: &Mutation) -> Written {
        let document = self.store.entry(mutation.id.clone()).or_insert_with(Document::empty);
        match fit((document.generation, document.revision), mutation) {
            Fit::Stale => Written::Done,
            Fit::Gap => {
                self.gaps += 1;
                Written::Gap
            }
            Fit::Next => {
                document.apply(mutation);
                Written::Done
            }
        }
    }

    /// Is a request due again by and by? A home does not answer twice, and its answer may have been lost.
    fn asks_again(&mut self, cluster: &mut Cluster) -> bool {
        self.now_ms += LONGEST_PAUSE_MS;
        self.work(cluster)
    }

    /// Writes what is ready and asks for what is missing; tells whether there was anything.
    fn work(&mut self, cluster: &mut Cluster) -> bool {
        let mut some = false;
        for partition in 0..self.reactions.len() {
            for (key, mutation) in self.reactions[partition].take(3, self.now_ms) {
                some = true;
                let written = self.store(&mutation);
                self.reactions[partition].complete(&key, written, self.now_ms);
            }
            let requests = self.reactions[partition].requests(2, self.now_ms);
            some |= !requests.is_empty();
            self.reactions[partition].asked(requests.iter().map(|(key, _)| key));
            for (_, request) in requests {
                assert_eq!(shard_of(request.group as u16, self.shards), partition as u32, "the home is elsewhere");
                cluster.send_late(request.group as u16, request.body.unwrap());
            }
        }
        self.now_ms += 10;
        some
    }
}

fn folds(mutations: &[Mutation]) -> BTreeMap<&str, Document> {
    let mut folds = BTreeMap::new();
    for mutation in mutations {
        folds.entry(mutation.id.as_str()).or_insert_with(Document::empty).apply(mutation);
    }
    folds
}

/// A loss that nothing follows cannot be noticed: each entity's newest mutation arrives.
fn losses(mutations: &[Mutation], rng: &mut Rng) -> BTreeSet<usize> {
    let newest: BTreeMap<&str, u64> =
        mutations.iter().map(|mutation| (mutation.id.as_str(), mutation.revision)).collect();
    let is_newest = |mutation: &Mutation| newest[mutation.id.as_str()] == mutation.revision;
    (0..mutations.len()).filter(|index| !is_newest(&mutations[*index]) && rng.one_in(4)).collect()
}

fn check(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let (history, shards) = (History::random(&mut rng, seed % 2 == 1), 1 + rng.below(4) as u32);
    let mut cluster = Cluster::new(shards, seed);
    (0..history.records.len()).for_each(|index| cluster.send(&history.action(index)));
    cluster.run().unwrap();
    let lost = losses(&cluster.mutations, &mut rng);
    let mut sink = Sink::new(shards);
    let mut rounds = 0;
    while sink.work(&mut cluster) || sink.read < cluster.mutations.len() || sink.asks_again(&mut cluster) {
        rounds += 1;
        assert!(rounds < 10_000, "seed {seed} does not come to rest");
        sink.read(&cluster, rng.below(8), &lost);
        if rng.one_in(3) || sink.read == cluster.mutations.len() {
            cluster.run().unwrap();
        }
    }
    documents(&cluster).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    for (id, expected) in folds(&cluster.mutations) {
        let stored = sink.store.get(id).unwrap_or_else(|| panic!("seed {seed}: {id} was never written"));
        assert_eq!((stored.revision, stored.deleted), (expected.revision, expected.deleted), "seed {seed}: {id}");
        assert_eq!(as_sets(&stored.fields), as_sets(&expected.fields), "seed {seed}: {id}");
    }
    assert!(sink.reactions.iter().all(|reaction| reaction.backlog() == 0), "seed {seed}");
    sink.gaps
}

#[test]
fn whichever_mutations_are_lost_documents_end_as_their_fold() {
    let gaps: usize = (1..=1_000).map(check).sum();
    assert!(gaps > 1_000, "the losses of {gaps} mutations were noticed");
}

fn asked(cluster: &mut Cluster, id: &str, collection: &str, revision: u64) -> Vec<Mutation> {
    let before = cluster.mutations.len();
    let body = Body::Replace(Replace { collection: collection.into(), id: id.into(), revision });
    let group = u16::from_str_radix(id.get(2..6).unwrap(), 16).unwrap();
    cluster.send_late(group, body);
    cluster.run().unwrap();
    cluster.mutations[before..].to_vec()
}

fn delete(mut action: Action) -> Action {
    action.delete = true;
    action
}

/// Ids of the documents of a collection, in the order in which they came to be.
fn ids(cluster: &Cluster, collection: &str) -> Vec<String> {
    let first = cluster.mutations.iter().filter(|mutation| mutation.collection == collection && mutation.base == 0);
    first.map(|mutation| mutation.id.clone()).collect()
}

#[test]
fn a_home_sends_the_whole_document_as_the_next_revision() {
    let mut cluster = after(&[
        set(action(1, &["user_id=1"], &["device_id=d"]), "plan", 1),
        set(action(2, &["user_id=1"], &["device_id=d"]), "plan", 2),
    ]);
    for (collection, revision) in [("users", 2), ("devices", 1)] {
        let id = ids(&cluster, collection).remove(0);
        let sent = asked(&mut cluster, &id, collection, revision);
        assert_eq!(sent.len(), 1, "{collection}");
        let whole = &sent[0];
        assert!(is_whole(whole));
        assert_eq!((whole.id.as_str(), whole.base + 1, whole.record_id.len()), (id.as_str(), whole.revision, 16));
        assert_eq!(asked(&mut cluster, &id, collection, whole.base), [], "it is on its way");
        assert_eq!(asked(&mut cluster, &id, collection, whole.revision).len(), 1, "it was read, and is missing again");
    }
    documents(&cluster).unwrap();
}

#[test]
fn of_a_user_who_is_gone_the_home_sends_the_tombstone() {
    let mut cluster = after(&[
        action(1, &["user_id=1"], &[]),
        action(2, &["user_id=2"], &[]),
        action(3, &["user_id=1", "user_id=2"], &[]),
        action(4, &["user_id=3"], &[]),
    ]);
    run(&mut cluster, &[delete(action(5, &["user_id=3"], &[]))]);
    let ids = ids(&cluster, "users");
    for id in [&ids[1], &ids[2]] {
        let revision = folds(&cluster.mutations)[id.as_str()].revision;
        let sent = asked(&mut cluster, id, "users", revision);
        assert_eq!((sent.len(), sent[0].revision), (1, revision + 1));
        assert!(folds(&cluster.mutations)[id.as_str()].deleted, "{id}");
    }
    documents(&cluster).unwrap();
}

#[test]
fn whoever_is_not_known_is_no_fault() {
    let mut cluster = after(&[action(1, &["user_id=1"], &[])]);
    let unknown = format!("u_0000{}", "0".repeat(32));
    assert_eq!(asked(&mut cluster, &unknown, "users", 5), []);
    assert_eq!(asked(&mut cluster, &unknown, "orders", 5), []);
    assert_eq!(asked(&mut cluster, &unknown.replace("u_", "d_"), "devices", 5), []);
}
