//! One partition by hand: what goes out when, and what is decided by it.

use super::*;
use millstream_model::proto::exchange::Body;
use millstream_model::proto::{Exchange, Operation, Replace, Value, operation::Op};

fn mutation(id: &str, revision: u64) -> Mutation {
    let op = Op::Set(Value::integer(revision as i64));
    Mutation {
        tenant: "acme".into(),
        collection: "users".into(),
        id: id.into(),
        generation: 1,
        revision,
        base: revision - 1,
        operations: vec![Operation { path: "x".into(), op: Some(op) }],
        ..Mutation::default()
    }
}

fn revisions(writes: &[(DocumentKey, Mutation)]) -> Vec<(String, u64)> {
    writes.iter().map(|(key, mutation)| (key.id.clone(), mutation.revision)).collect()
}

#[test]
fn one_write_in_flight_per_entity_and_the_rest_folds() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation("a", 1), mutation("b", 1)]);
    let first = reaction.take(10, 0);
    assert_eq!(revisions(&first), [("a".into(), 1), ("b".into(), 1)]);
    reaction.offer(1, vec![mutation("a", 2), mutation("a", 3)]);
    assert!(reaction.take(10, 0).is_empty(), "a is in flight");
    assert_eq!(reaction.complete(&first[0].0, Written::Done, 0).len(), 1);
    assert_eq!(revisions(&reaction.take(10, 0)), [("a".into(), 3)]);
    assert_eq!(reaction.position(), 0, "b of frame 0 is not decided");
    reaction.complete(&first[1].0, Written::Done, 0);
    assert_eq!(reaction.position(), 1);
    assert_eq!(reaction.complete(&first[0].0, Written::Done, 0).len(), 2);
    assert_eq!((reaction.position(), reaction.backlog()), (2, 0));
}

#[test]
fn what_may_succeed_later_is_tried_again_after_a_pause_and_blocks_nobody() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation("a", 1)]);
    let writes = reaction.take(10, 1000);
    reaction.complete(&writes[0].0, Written::Retry("away".into()), 1000);
    reaction.offer(1, vec![mutation("b", 1), mutation("a", 2)]);
    assert_eq!(revisions(&reaction.take(10, 1049)), [("b".into(), 1)]);
    assert_eq!(revisions(&reaction.take(10, 1050)), [("a".into(), 2)], "folded while it waited");
    reaction.complete(&writes[0].0, Written::Retry("away".into()), 1050);
    assert!(reaction.take(10, 1149).is_empty(), "pauses grow");
    assert_eq!(revisions(&reaction.take(10, 1150)), [("a".into(), 2)]);
    assert_eq!(reaction.position(), 0);
}

#[test]
fn a_refused_fold_is_split_so_that_only_the_bad_one_is_rejected() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation("a", 1), mutation("a", 2), mutation("a", 3)]);
    let writes = reaction.take(10, 0);
    assert_eq!(revisions(&writes), [("a".into(), 3)]);
    let key = &writes[0].0;
    assert!(reaction.complete(key, Written::Refused("too large".into()), 0).is_empty());
    let mut decided = Vec::new();
    for (revision, operations, refused) in [(1, 1, false), (2, 1, true), (2, 0, false), (3, 1, false)] {
        let writes = reaction.take(10, 0);
        assert_eq!((writes[0].1.revision, writes[0].1.operations.len(), writes.len()), (revision, operations, 1));
        let written = if refused { Written::Refused("too large".into()) } else { Written::Done };
        decided.extend(reaction.complete(key, written, 0));
    }
    let kinds: Vec<bool> = decided.iter().map(|one| matches!(one, Decided::Stored(_))).collect();
    assert_eq!(kinds, [true, false, true], "of the second one only its revision was written");
    assert_eq!((reaction.position(), reaction.backlog()), (1, 0));
}

#[test]
fn an_entity_that_is_done_leaves_nothing_behind() {
    let mut reaction = Reaction::starting_at(7);
    assert_eq!(reaction.position(), 7);
    reaction.offer(9, vec![]);
    assert_eq!(reaction.position(), 10);
    reaction.offer(10, vec![mutation("a", 1)]);
    let writes = reaction.take(1, 0);
    reaction.complete(&writes[0].0, Written::Done, 0);
    assert!(reaction.entities.is_empty() && reaction.undecided.is_empty() && reaction.ready.is_empty());
    assert!(reaction.complete(&writes[0].0, Written::Done, 0).is_empty(), "decided once");
}

#[test]
fn a_mutation_whose_revision_cannot_be_written_either_is_rejected_with_the_first_reason() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation("a", 1)]);
    let key = reaction.take(10, 0)[0].0.clone();
    reaction.complete(&key, Written::Refused("too large".into()), 0);
    reaction.take(10, 0);
    let decided = reaction.complete(&key, Written::Refused("no such collection".into()), 0);
    assert_eq!(decided, [Decided::Rejected(mutation("a", 1), "too large".into())]);
    assert_eq!((reaction.position(), reaction.backlog()), (1, 0));
}

#[test]
fn the_backlog_is_counted_in_bytes_until_mutations_are_decided() {
    let mut reaction = Reaction::starting_at(0);
    let (one, other) = (mutation("a", 1), Mutation { record_id: vec![7; 1000], ..mutation("b", 1) });
    let bytes = |mutation: &Mutation| prost::Message::encoded_len(mutation);
    reaction.offer(0, vec![one.clone(), other.clone()]);
    assert_eq!(reaction.backlog_bytes(), bytes(&one) + bytes(&other));
    let writes = reaction.take(10, 0);
    reaction.complete(&writes[1].0, Written::Retry("away".into()), 0);
    assert_eq!(reaction.backlog_bytes(), bytes(&one) + bytes(&other), "what is to be tried again counts");
    reaction.complete(&writes[0].0, Written::Done, 0);
    assert_eq!(reaction.backlog_bytes(), bytes(&other));
    reaction.take(10, 1000);
    reaction.complete(&writes[1].0, Written::Done, 1000);
    assert_eq!((reaction.backlog_bytes(), reaction.backlog()), (0, 0));
}

/// A user's id that names key group 7.
fn user() -> String {
    format!("u_0007{}", "0".repeat(32))
}

fn whole(revision: u64) -> Mutation {
    let fields = millstream_model::value::object([("x".to_owned(), Value::integer(revision as i64))]);
    let operations = vec![Operation { path: String::new(), op: Some(Op::Replace(fields)) }];
    Mutation { operations, ..mutation(&user(), revision) }
}

fn covered(decided: &[Decided]) -> Vec<u64> {
    let revision = |one: &Decided| match one {
        Decided::Covered(mutation) => mutation.revision,
        other => panic!("{other:?}"),
    };
    decided.iter().map(revision).collect()
}

/// Offers and takes revision 5, which finds a gap at 0 ms.
fn with_gap() -> (Reaction, DocumentKey) {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation(&user(), 5)]);
    let key = reaction.take(10, 0)[0].0.clone();
    assert!(reaction.complete(&key, Written::Gap, 0).is_empty());
    (reaction, key)
}

#[test]
fn a_gap_asks_the_home_and_what_came_before_the_answer_is_covered() {
    let (mut reaction, key) = with_gap();
    reaction.offer(1, vec![mutation(&user(), 6)]);
    assert!(reaction.take(10, 0).is_empty(), "it waits");
    let requests = reaction.requests(10, 0);
    let replace = Replace { collection: "users".into(), id: user(), revision: 6 };
    let (tenant, body) = ("acme".into(), Some(Body::Replace(replace)));
    assert_eq!(requests, [(key.clone(), Exchange { tenant, group: 7, hops: 0, body })]);
    assert!(reaction.offer(2, vec![mutation(&user(), 7)]).is_empty(), "the log may not have the request");
    assert_eq!(reaction.position(), 0);
    assert_eq!(covered(&reaction.asked([&key])), [5, 6, 7]);
    assert_eq!(covered(&reaction.offer(3, vec![mutation(&user(), 8)])), [8]);
    assert_eq!((reaction.position(), reaction.backlog(), reaction.backlog_bytes()), (4, 0, 0));
    assert!(reaction.offer(4, vec![whole(9), mutation(&user(), 10)]).is_empty());
    assert_eq!(reaction.position(), 4);
    let writes = reaction.take(10, 0);
    assert_eq!(revisions(&writes), [(user(), 10)], "folded into the whole document");
    assert_eq!(reaction.complete(&key, Written::Done, 0).len(), 2);
    assert!(reaction.entities.is_empty() && reaction.asking.is_empty());
}

#[test]
fn a_whole_document_that_waits_already_makes_a_request_needless() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation(&user(), 5)]);
    let key = reaction.take(10, 0)[0].0.clone();
    reaction.offer(1, vec![mutation(&user(), 7), whole(8), mutation(&user(), 10)]);
    assert!(reaction.complete(&key, Written::Gap, 0).is_empty());
    assert!(reaction.requests(10, 1_000_000).is_empty());
    assert_eq!(revisions(&reaction.take(10, 0)), [(user(), 8)], "10 builds on 9, which is missing");
    // Refused as one, each of them is written alone; what finds the gap again does not wait for an answer that is behind it already.
    assert!(reaction.complete(&key, Written::Refused("too large".into()), 0).is_empty());
    assert_eq!(revisions(&reaction.take(10, 0)), [(user(), 5)]);
    assert_eq!(covered(&reaction.complete(&key, Written::Gap, 0)), [5, 7]);
    assert_eq!(revisions(&reaction.take(10, 0)), [(user(), 8)]);
    reaction.complete(&key, Written::Refused("too large".into()), 0);
    assert_eq!(reaction.take(10, 0)[0].1.operations, [], "only the revision of the whole document");
    assert!(
        matches!(&reaction.complete(&key, Written::Done, 0)[..], [Decided::Rejected(mutation, _)] if mutation.revision == 8)
    );
    assert_eq!(revisions(&reaction.take(10, 0)), [(user(), 10)]);
}

#[test]
fn a_whole_document_that_comes_before_the_log_has_the_request_heals_as_well() {
    let (mut reaction, key) = with_gap();
    reaction.requests(10, 0);
    assert_eq!(covered(&reaction.offer(1, vec![whole(8)])), [5]);
    assert!(reaction.asked([&key]).is_empty());
    assert_eq!(revisions(&reaction.take(10, 0)), [(user(), 8)]);
}

#[test]
fn a_request_is_repeated_with_growing_pauses_until_the_answer_comes() {
    let (mut reaction, key) = with_gap();
    let mut at = Vec::new();
    for now_ms in (0..300_000).step_by(1000) {
        if !reaction.requests(10, now_ms).is_empty() {
            at.push(now_ms / 1000);
            reaction.asked([&key]);
        }
    }
    assert_eq!(at, [0, 5, 15, 35, 75, 135, 195, 255]);
    reaction.offer(1, vec![whole(8)]);
    assert!(reaction.requests(10, u64::MAX).is_empty());
}

#[test]
fn a_gap_that_nobody_can_heal_is_a_reject_and_its_revision_is_written() {
    let mut reaction = Reaction::starting_at(0);
    reaction.offer(0, vec![mutation("of-somebody-else", 5)]);
    let key = reaction.take(10, 0)[0].0.clone();
    assert!(reaction.complete(&key, Written::Gap, 0).is_empty());
    let writes = reaction.take(10, 0);
    assert_eq!((writes[0].1.revision, writes[0].1.base, writes[0].1.operations.len()), (5, 0, 0));
    let decided = reaction.complete(&key, Written::Done, 0);
    assert!(matches!(&decided[..], [Decided::Rejected(_, why)] if why.contains("of-somebody-else")), "{decided:?}");
}

#[test]
fn too_many_documents_with_a_gap_are_forgotten_not_kept() {
    let mut reaction = Reaction::starting_at(0);
    let id = |number: u32| format!("u_0007{number:032x}");
    reaction.offer(0, (0..20_000).map(|number| mutation(&id(number), 5)).collect());
    for (key, _) in reaction.take(usize::MAX, 0) {
        reaction.complete(&key, Written::Gap, 0);
    }
    while let requests = reaction.requests(1000, 0)
        && !requests.is_empty()
    {
        reaction.asked(requests.iter().map(|(key, _)| key));
    }
    assert_eq!((reaction.entities.len(), reaction.asking.len(), reaction.backlog()), (10_000, 10_000, 0));
    reaction.offer(1, (0..20_000).map(|number| mutation(&id(number), 6)).collect());
    assert_eq!(reaction.take(usize::MAX, 0).len(), 10_000, "whatever was forgotten is tried, and will ask again");
}
