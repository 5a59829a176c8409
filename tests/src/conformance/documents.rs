//! The suite of [`DocumentStore`]: the guard, races, all operations against the reference fold (I8).

use super::late::Late;
use super::{Numbers, eventually, unique};
use millstream_model::document::{Document, escape};
use millstream_model::proto::operation::Op;
use millstream_model::proto::{List, Mutation, Object, Operation, Value};
use millstream_model::value;
use millstream_shard::documents::{DocumentStore, Outcome};
use std::sync::{Arc, Barrier, Mutex};

/// A document store under test.
pub trait Subject: Send + Sync {
    /// Opens the store. A case that opens it again has dropped the former one before.
    fn open(&self) -> Arc<dyn DocumentStore>;
}

crate::suite!($ document_conformance, dyn Subject, [
    documents::what_is_not_there_is_none,
    documents::the_guard_takes_newer_mutations_only,
    documents::a_bulk_repeated_changes_nothing,
    documents::outcomes_come_in_the_order_of_the_mutations,
    documents::the_newest_of_racing_writers_wins,
    documents::inserts_at_the_same_time_end_with_the_newest,
    documents::writers_that_fold_differently_converge,
    documents::a_tombstone_keeps_its_guard,
    documents::replace_leaves_nothing_of_before,
    documents::random_operations_equal_the_reference,
    documents::every_type_of_value_comes_back_equal,
    documents::any_name_comes_back_equal,
    documents::sets_keep_each_element_once,
    documents::an_operation_on_a_field_of_another_type_is_refused_or_equals_the_reference,
    documents::a_gap_is_told_and_changes_nothing,
    documents::a_whole_document_heals_a_gap,
    documents::whatever_is_lost_is_healed_at_the_next_mutation,
    documents::without_operations_only_the_guard_moves,
    documents::what_is_never_taken_is_refused_and_stops_nothing_else,
    documents::a_document_that_would_grow_too_large_stays_as_it_is,
    documents::scan_gives_one_tenants_documents_in_order,
    documents::everything_applied_is_there_after_opening_again,
    documents::a_write_that_lands_after_its_time_out_changes_nothing_newer,
    documents::a_write_that_lands_before_its_repeat_is_not_doubled,
    documents::late_writes_race_with_newer_ones,
]);

struct Place {
    store: Arc<dyn DocumentStore>,
    collection: String,
    tenant: String,
}

impl Place {
    fn new(subject: &dyn Subject, what: &str) -> Place {
        let (collection, tenant) = (unique(what), unique("tenant"));
        let store = subject.open();
        store.prepare(&[&collection]).unwrap();
        Place { store, collection, tenant }
    }

    fn mutation(&self, id: &str, revision: u64, operations: Vec<(&str, Op)>) -> Mutation {
        let operation = |(path, op): (&str, Op)| Operation { path: path.to_owned(), op: Some(op) };
        Mutation {
            tenant: self.tenant.clone(),
            collection: self.collection.clone(),
            id: id.to_owned(),
            generation: 1,
            revision,
            base: revision - 1,
            operations: operations.into_iter().map(operation).collect(),
            ..Mutation::default()
        }
    }

    /// Builds on nothing, so it fits whatever is older.
    fn set(&self, id: &str, revision: u64, x: i64) -> Mutation {
        Mutation { base: 0, ..self.mutation(id, revision, vec![("x", Op::Set(Value::integer(x)))]) }
    }

    /// Writes until nothing is to be repeated, as the reaction stage does; the last outcome of each.
    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        write(&*self.store, mutations)
    }

    fn get(&self, id: &str) -> Option<Document> {
        self.store.get(&self.tenant, &self.collection, id).unwrap()
    }

    fn ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        let scanned = self.store.scan(&self.tenant, &self.collection, &mut |id, _| {
            ids.push(id.to_owned());
            true
        });
        scanned.unwrap();
        ids
    }
}

fn write(store: &dyn DocumentStore, mutations: &[Mutation]) -> Vec<Outcome> {
    let mut outcomes: Vec<Option<Outcome>> = vec![None; mutations.len()];
    eventually("every mutation is decided", || {
        let open: Vec<usize> = (0..mutations.len()).filter(|index| outcomes[*index].is_none()).collect();
        let bulk: Vec<Mutation> = open.iter().map(|index| mutations[*index].clone()).collect();
        let written = store.write(&bulk);
        assert_eq!(written.len(), bulk.len(), "one outcome for each mutation");
        for (index, outcome) in open.iter().zip(written) {
            if !matches!(outcome, Outcome::Retry(_)) {
                outcomes[*index] = Some(outcome);
            }
        }
        outcomes.iter().all(Option::is_some).then_some(())
    });
    outcomes.into_iter().flatten().collect()
}

fn fold<'a>(mutations: impl IntoIterator<Item = &'a Mutation>) -> Document {
    let mut document = Document::empty();
    for mutation in mutations {
        document.apply(mutation);
    }
    document
}

fn list(items: &[&str]) -> List {
    List { items: items.iter().map(|item| Value::string(*item)).collect() }
}

fn pair(name: &str, value: Value) -> (String, Value) {
    (name.to_owned(), value)
}

/// A missing document is no error, nor is a scan of nothing.
pub fn what_is_not_there_is_none(subject: &dyn Subject) {
    let place = Place::new(subject, "none");
    assert_eq!(place.get("1"), None);
    assert_eq!(place.ids(), [""; 0]);
    assert_eq!(place.write(&[]), []);
    place.store.prepare(&[&place.collection]).unwrap();
}

/// Lower and equal revisions are stale, a higher generation outranks any revision.
pub fn the_guard_takes_newer_mutations_only(subject: &dyn Subject) {
    let place = Place::new(subject, "guard");
    let steps = [(1, 5, true), (1, 4, false), (1, 5, false), (1, 6, true), (2, 1, true), (1, 7, false), (2, 2, true)];
    for (step, (generation, revision, newer)) in steps.into_iter().enumerate() {
        let before = place.get("1");
        let mutation = Mutation { generation, ..place.set("1", revision, step as i64) };
        let outcome = if newer { Outcome::Applied } else { Outcome::Stale };
        assert_eq!(place.write(std::slice::from_ref(&mutation)), [outcome], "step {step}");
        let after = place.get("1").unwrap();
        if newer {
            assert_eq!((after.generation, after.revision), (generation, revision), "step {step}");
            assert_eq!(after.fields.get("x"), Some(&Value::integer(step as i64)));
        } else {
            assert_eq!(Some(after), before, "step {step}");
        }
    }
}

/// As after an unknown outcome of a whole bulk: nothing changes, every mutation is stale.
pub fn a_bulk_repeated_changes_nothing(subject: &dyn Subject) {
    let place = Place::new(subject, "repeat");
    let operations = || {
        vec![
            ("tags", Op::AddToSet(list(&["a", "b"]))),
            ("gone", Op::Unset(true)),
            ("attributes.plan", Op::Set(Value::string("free"))),
        ]
    };
    let mutation = |id| Mutation { base: 0, ..place.mutation(&format!("{id:03}"), 3, operations()) };
    let bulk: Vec<Mutation> = (0..200).map(mutation).collect();
    assert!(place.write(&bulk).iter().all(|outcome| *outcome == Outcome::Applied));
    let half: Vec<Mutation> = (0..200).step_by(2).map(|id| place.set(&format!("{id:03}"), 4, id)).collect();
    assert!(place.write(&half).iter().all(|outcome| *outcome == Outcome::Applied));
    let before: Vec<_> = place.ids().iter().map(|id| place.get(id).unwrap()).collect();
    assert!(place.write(&bulk).iter().all(|outcome| *outcome == Outcome::Stale));
    assert_eq!(place.ids().iter().map(|id| place.get(id).unwrap()).collect::<Vec<_>>(), before);
    assert_eq!(before[1], fold([&bulk[1]]));
    assert_eq!(before[2], fold([&bulk[2], &half[1]]));
}

/// A mix of stale and new ones of several tenants and collections in one bulk.
pub fn outcomes_come_in_the_order_of_the_mutations(subject: &dyn Subject) {
    let place = Place::new(subject, "order");
    let other = unique("other");
    place.store.prepare(&[&other]).unwrap();
    let stored: Vec<Mutation> = (0..50).map(|id| place.set(&id.to_string(), 10, id)).collect();
    place.write(&stored);
    let mut bulk = Vec::new();
    let mut expected = Vec::new();
    for id in 0..50u64 {
        bulk.push(place.set(&id.to_string(), 9 + id % 3, 100));
        expected.push(if id % 3 == 2 { Outcome::Applied } else { Outcome::Stale });
        bulk.push(Mutation { collection: other.clone(), ..place.set(&id.to_string(), 1, 200) });
        expected.push(Outcome::Applied);
        bulk.push(Mutation { tenant: format!("{}-2", place.tenant), ..place.set(&id.to_string(), 1, 300) });
        expected.push(Outcome::Applied);
    }
    assert_eq!(place.write(&bulk), expected);
    assert_eq!(place.get("3").unwrap().fields.get("x"), Some(&Value::integer(3)));
    assert_eq!(place.get("2").unwrap().fields.get("x"), Some(&Value::integer(100)));
}

/// E11000 while the stored revision is lower, and its relatives: threads with revisions in any order on the same documents.
pub fn the_newest_of_racing_writers_wins(subject: &dyn Subject) {
    let place = Place::new(subject, "race");
    let start = Barrier::new(6);
    let applied: Vec<(u64, Vec<Outcome>)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..6u64)
            .map(|writer| {
                scope.spawn({
                    let (place, start) = (&place, &start);
                    move || {
                        let mut revisions: Vec<u64> = (0..20).map(|step| step * 6 + writer + 1).collect();
                        Numbers::new(writer).shuffle(&mut revisions);
                        start.wait();
                        let outcome = |revision: u64| {
                            let bulk = [
                                place.set("a", revision, revision as i64),
                                place.set("b", revision, -(revision as i64)),
                            ];
                            (revision, place.write(&bulk))
                        };
                        revisions.into_iter().map(outcome).collect::<Vec<_>>()
                    }
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    for (id, sign) in [("a", 1), ("b", -1)] {
        let document = place.get(id).unwrap();
        assert_eq!((document.revision, document.fields.get("x")), (120, Some(&Value::integer(120 * sign))), "{id}");
    }
    let newest = applied.iter().find(|(revision, _)| *revision == 120).unwrap();
    assert_eq!(newest.1, [Outcome::Applied, Outcome::Applied], "nothing is newer than the newest");
}

/// Many documents that do not exist yet, each written by all threads at once.
pub fn inserts_at_the_same_time_end_with_the_newest(subject: &dyn Subject) {
    let place = Place::new(subject, "insert");
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let (place, start) = (&place, &start);
            scope.spawn(move || {
                for id in 0..50u64 {
                    let revision = (writer + id) % 4 + 1;
                    let mutation = place.set(&id.to_string(), revision, revision as i64);
                    start.wait();
                    let outcome = place.write(&[mutation]);
                    assert!(
                        outcome == [Outcome::Applied] || (outcome == [Outcome::Stale] && revision < 4),
                        "{outcome:?}"
                    );
                }
            });
        }
    });
    for id in 0..50 {
        let document = place.get(&id.to_string()).unwrap();
        assert_eq!((document.revision, document.fields.get("x")), (4, Some(&Value::integer(4))), "document {id}");
    }
}

/// A history of one document: each path is of one kind, no mutation has a path twice.
fn history(place: &Place, id: &str, length: u64, seed: u64) -> Vec<Mutation> {
    let mut numbers = Numbers::new(seed);
    let names = ["a", "b", "c", "d", "e"];
    (1..=length)
        .map(|revision| {
            if numbers.below(25) == 0 {
                return place.mutation(id, revision, vec![("", Op::Tombstone(true))]);
            }
            if numbers.below(25) == 0 {
                let fields =
                    value::object([pair("plain", Value::integer(revision as i64)), pair("tags", Value::list(vec![]))]);
                return place.mutation(id, revision, vec![("", Op::Replace(fields))]);
            }
            let mut paths = ["plain", "attributes.one", "attributes.two.deep", "tags", "attributes.tags"];
            numbers.shuffle(&mut paths);
            let mut operations = Vec::new();
            for path in &paths[..1 + numbers.below(4) as usize] {
                let mut some = names;
                numbers.shuffle(&mut some);
                let items = list(&some[..1 + numbers.below(3) as usize]);
                let op = match (path.ends_with("tags"), numbers.below(3)) {
                    (true, 0) => Op::RemoveFromSet(items),
                    (true, _) => Op::AddToSet(items),
                    (false, 0) => Op::Unset(true),
                    (false, _) => Op::Set(Value::string(format!("{path} {revision}"))),
                };
                operations.push((*path, op));
            }
            place.mutation(id, revision, operations)
        })
        .collect()
}

/// The reference, less the empty parents that set and unset leave: a fold of both does not make them, and nobody reads them.
fn without_empty(fields: Object) -> Object {
    value::object(fields.into_pairs().filter_map(|(name, value)| {
        let Some(object) = value.as_object() else { return Some((name, value)) };
        let inner = without_empty(object.clone());
        (!inner.members.is_empty()).then(|| (name, Value::object(inner.into_pairs())))
    }))
}

fn fold_by(mutations: &[Mutation], most: usize) -> Vec<Mutation> {
    let mut all: Vec<(Mutation, usize)> = Vec::new();
    for mutation in mutations {
        match all.last_mut() {
            Some((last, count))
                if *count < most
                    && let Some(both) = millstream_stages::reaction::fold(last, mutation) =>
            {
                (*last, *count) = (both, *count + 1);
            }
            _ => all.push((mutation.clone(), 1)),
        }
    }
    all.into_iter().map(|(mutation, _)| mutation).collect()
}

/// Two workers believe to own the partition and read the same mutations; each folds what happens to wait behind the update in flight.
pub fn writers_that_fold_differently_converge(subject: &dyn Subject) {
    let place = Place::new(subject, "fold");
    let histories: Vec<Vec<Mutation>> =
        (0..8).map(|document| history(&place, &document.to_string(), 40, 100 + document)).collect();
    let start = Barrier::new(3);
    std::thread::scope(|scope| {
        for most in [1, 3, 7] {
            let (place, histories, start) = (&place, &histories, &start);
            scope.spawn(move || {
                let mut queues: Vec<_> = histories.iter().map(|all| fold_by(all, most).into_iter()).collect();
                start.wait();
                loop {
                    let bulk: Vec<Mutation> = queues.iter_mut().filter_map(Iterator::next).collect();
                    if bulk.is_empty() {
                        break;
                    }
                    for outcome in place.write(&bulk) {
                        assert!(matches!(outcome, Outcome::Applied | Outcome::Stale), "{outcome:?}");
                    }
                }
            });
        }
    });
    for (document, all) in histories.iter().enumerate() {
        let (stored, expected) = (place.get(&document.to_string()).unwrap(), fold(all));
        assert_eq!((stored.revision, stored.deleted), (expected.revision, expected.deleted), "document {document}");
        assert_eq!(without_empty(stored.fields), without_empty(expected.fields), "document {document}");
    }
}

/// What is older than the deletion stays without effect, what is newer starts from nothing.
pub fn a_tombstone_keeps_its_guard(subject: &dyn Subject) {
    let place = Place::new(subject, "tombstone");
    place.write(&[place.mutation("1", 1, vec![("x", Op::Set(Value::integer(1))), ("old", Op::Set(Value::null()))])]);
    assert_eq!(place.write(&[place.mutation("1", 5, vec![("", Op::Tombstone(true))])]), [Outcome::Applied]);
    let gone = Document { generation: 1, revision: 5, deleted: true, fields: Object::default() };
    assert_eq!(place.get("1"), Some(gone.clone()));
    assert_eq!(place.write(&[place.set("1", 4, 4)]), [Outcome::Stale]);
    assert_eq!(place.get("1"), Some(gone.clone()));
    assert_eq!(place.write(&[place.set("1", 6, 6)]), [Outcome::Applied]);
    let fields = value::object([pair("x", Value::integer(6))]);
    assert_eq!(place.get("1"), Some(Document { generation: 1, revision: 6, deleted: false, fields }));
    // A tombstone of something that never was is stored as well: an older write may still be on its way.
    assert_eq!(place.write(&[place.mutation("2", 5, vec![("", Op::Tombstone(true))])]), [Outcome::Applied]);
    assert_eq!(place.write(&[place.set("2", 3, 3)]), [Outcome::Stale]);
    assert_eq!(place.get("2"), Some(gone));
    assert_eq!(place.ids(), ["1", "2"]);
}

/// The whole document is the new one, after data and after a tombstone.
pub fn replace_leaves_nothing_of_before(subject: &dyn Subject) {
    let place = Place::new(subject, "replace");
    let fields =
        |x| value::object([pair("x", Value::integer(x)), pair("deep", Value::object([pair("y", Value::null())]))]);
    place.write(&[place.mutation(
        "1",
        1,
        vec![("old", Op::Set(Value::integer(1))), ("deep.old", Op::Set(Value::null()))],
    )]);
    for (revision, x) in [(2, 2), (4, 4)] {
        assert_eq!(
            place.write(&[place.mutation("1", revision, vec![("", Op::Replace(fields(x)))])]),
            [Outcome::Applied]
        );
        let expected = Document { generation: 1, revision, deleted: false, fields: fields(x) };
        assert_eq!(place.get("1"), Some(expected));
        place.write(&[place.mutation("1", revision + 1, vec![("", Op::Tombstone(true))])]);
    }
    place.write(&[place.mutation("1", 9, vec![("", Op::Replace(Object::default()))])]);
    let empty = Document { generation: 1, revision: 9, deleted: false, fields: Object::default() };
    assert_eq!(place.get("1"), Some(empty));
}

/// After every single mutation the document equals the reference.
pub fn random_operations_equal_the_reference(subject: &dyn Subject) {
    let place = Place::new(subject, "random");
    let histories: Vec<Vec<Mutation>> =
        (0..30).map(|document| history(&place, &format!("{document:02}"), 20, 7 + document)).collect();
    for step in 0..20 {
        let bulk: Vec<Mutation> = histories.iter().map(|all| all[step].clone()).collect();
        assert!(place.write(&bulk).iter().all(|outcome| *outcome == Outcome::Applied));
        let mut documents = Vec::new();
        let scanned = place.store.scan(&place.tenant, &place.collection, &mut |_, document| {
            documents.push(document);
            true
        });
        scanned.unwrap();
        for (document, all) in documents.iter().zip(&histories) {
            assert_eq!(*document, fold(&all[..=step]), "after {:?}", all[step].operations);
        }
        assert_eq!(documents.len(), histories.len());
    }
}

fn odd_values() -> Vec<Value> {
    let text = "zoë \u{1f600} \0 \u{feff} \"\\ \n $x.y";
    let mut values = vec![Value::null(), Value::boolean(true), Value::boolean(false)];
    values.extend([0, 1, -1, i64::from(i32::MAX) + 1, i64::MAX, i64::MIN].map(Value::integer));
    values.extend([0.0, 1.0, -1.5, 1e300, 5e-324, 18_446_744_073_709_551_615.0].map(Value::float));
    values.extend([0, -1, 1_700_000_000_123, -62_135_596_800_000, 253_402_300_799_999].map(Value::timestamp));
    values.extend(["", "$x", "1", "2023-11-14T22:13:20Z", text].map(Value::string));
    values.extend([Value::list(vec![]), Value::object([]), Value::list(vec![Value::null(), Value::list(vec![])])]);
    let nested = Value::object([pair("list", Value::list(values.clone())), pair("empty", Value::object([]))]);
    let deep = (0..8).fold(Value::integer(1), |inner, _| Value::object([pair("inner", Value::list(vec![inner]))]));
    values.extend([nested, deep]);
    values
}

/// Integer and float stay apart, times are times, null is a value, empty containers stay.
pub fn every_type_of_value_comes_back_equal(subject: &dyn Subject) {
    let place = Place::new(subject, "values");
    let values = odd_values();
    let mut bulk: Vec<Mutation> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let name = format!("{index:02}");
        bulk.push(place.mutation(
            &format!("set {name}"),
            1,
            vec![
                ("top", Op::Set(value.clone())),
                ("deep.er", Op::Set(value.clone())),
                ("set", Op::AddToSet(List { items: vec![value.clone()] })),
            ],
        ));
        let fields = value::object([pair("top", value.clone()), pair("list", Value::list(vec![value.clone()]))]);
        bulk.push(place.mutation(&format!("replace {name}"), 1, vec![("", Op::Replace(fields))]));
    }
    assert!(place.write(&bulk).iter().all(|outcome| *outcome == Outcome::Applied));
    for mutation in &bulk {
        assert_eq!(place.get(&mutation.id).unwrap(), fold([mutation]), "{:?}", mutation.operations);
    }
}

/// Users choose names: as escaped path segments, and inside of values as they are.
pub fn any_name_comes_back_equal(subject: &dyn Subject) {
    let place = Place::new(subject, "names");
    let names =
        ["a.b", "$set", "100%", "%2E", "x.$.%", ".", "$", "zoë", "with space", "_id", "_v", "0", "__proto__", "length"];
    for (index, name) in names.iter().enumerate() {
        let id = format!("{index:02}");
        let path = format!("attributes.{}", escape(name));
        let inner = Value::object([pair(name, Value::object([pair(name, Value::string(*name))]))]);
        let mutations = [
            place.mutation(&id, 1, vec![(&path, Op::Set(Value::string(*name))), ("value", Op::Set(inner.clone()))]),
            place.mutation(&id, 2, vec![("set", Op::AddToSet(List { items: vec![inner.clone()] }))]),
            place.mutation(&id, 3, vec![(&path, Op::Unset(true)), ("kept", Op::Set(Value::null()))]),
        ];
        for step in 0..mutations.len() {
            assert_eq!(place.write(&mutations[step..=step]), [Outcome::Applied], "{name}, step {step}");
            assert_eq!(place.get(&id).unwrap(), fold(&mutations[..=step]), "{name}, step {step}");
        }
        let fields = value::object([pair("value", inner), pair(&escape(name), Value::integer(1))]);
        if !["_id", "_v"].contains(name) {
            let replace = place.mutation(&id, 4, vec![("", Op::Replace(fields))]);
            assert_eq!(place.write(std::slice::from_ref(&replace)), [Outcome::Applied], "replace with {name}");
            assert_eq!(place.get(&id).unwrap(), fold([&replace]), "replace with {name}");
        }
    }
}

/// In the order of their coming; what is there already is not added again, removal of what is not there is harmless.
pub fn sets_keep_each_element_once(subject: &dyn Subject) {
    let place = Place::new(subject, "sets");
    let numbers = |items: &[i64]| List { items: items.iter().copied().map(Value::integer).collect() };
    let steps = [
        Op::RemoveFromSet(list(&["nothing"])),
        Op::AddToSet(list(&["b", "a", "b"])),
        Op::AddToSet(list(&["a", "c"])),
        Op::RemoveFromSet(list(&["b", "x"])),
        Op::AddToSet(list(&["b"])),
        Op::AddToSet(numbers(&[1, 2, 1])),
        Op::AddToSet(List {
            items: vec![Value::object([pair("k", Value::integer(1))]), Value::list(vec![Value::integer(1)])],
        }),
        Op::AddToSet(List { items: vec![Value::object([pair("k", Value::integer(1))]), Value::null()] }),
        Op::RemoveFromSet(List { items: vec![Value::null(), Value::integer(2)] }),
        Op::RemoveFromSet(list(&["a", "b", "c"])),
        Op::AddToSet(list(&[])),
    ];
    let mutations: Vec<Mutation> = (1..)
        .zip(steps)
        .map(|(revision, op)| place.mutation("1", revision, vec![("tags", op.clone()), ("attributes.tags", op)]))
        .collect();
    for step in 0..mutations.len() {
        assert_eq!(place.write(&mutations[step..=step]), [Outcome::Applied], "step {step}");
        assert_eq!(place.get("1").unwrap(), fold(&mutations[..=step]), "{:?}", mutations[step].operations);
    }
}

/// An attribute may change its type. A store that cannot do what the reference does must refuse: never half, never for ever "again".
pub fn an_operation_on_a_field_of_another_type_is_refused_or_equals_the_reference(subject: &dyn Subject) {
    let place = Place::new(subject, "type");
    let before =
        || vec![("scalar", Op::Set(Value::integer(1))), ("list", Op::Set(Value::list(vec![Value::integer(1)])))];
    let operations = [
        ("scalar", Op::AddToSet(list(&["a"]))),
        ("scalar", Op::RemoveFromSet(list(&["a"]))),
        ("scalar.inner", Op::Set(Value::integer(2))),
        ("list.inner", Op::Set(Value::integer(2))),
        ("scalar.inner", Op::AddToSet(list(&["a"]))),
    ];
    for (index, operation) in operations.into_iter().enumerate() {
        let id = index.to_string();
        let first = place.mutation(&id, 1, before());
        let second = place.mutation(&id, 2, vec![operation, ("other", Op::Set(Value::integer(3)))]);
        assert_eq!(place.write(std::slice::from_ref(&first)), [Outcome::Applied]);
        let outcome = place.write(std::slice::from_ref(&second)).remove(0);
        let expected = match &outcome {
            Outcome::Applied => fold([&first, &second]),
            Outcome::Refused(_) => fold([&first]),
            other => panic!("{other:?}: {:?}", second.operations),
        };
        assert_eq!(place.get(&id).unwrap(), expected, "{outcome:?}: {:?}", second.operations);
    }
}

/// Changes that operators express, and one that is read, folded and written back.
fn changes() -> [Op; 2] {
    [Op::Set(Value::integer(9)), Op::AddToSet(List { items: vec![Value::integer(9)] })]
}

/// Missing, or below what the mutation builds on, in one bulk with others that fit or are stale.
pub fn a_gap_is_told_and_changes_nothing(subject: &dyn Subject) {
    let place = Place::new(subject, "gap");
    for (round, change) in changes().into_iter().enumerate() {
        let id = |name: &str| format!("{name}{round}");
        let gone = place.mutation(&id("deleted"), 3, vec![("", Op::Tombstone(true))]);
        let next = Mutation { generation: 2, ..place.set(&id("next generation"), 1, 1) };
        let mut before = vec![gone, place.set(&id("former generation"), 9, 1), next];
        before.extend(
            [("lower", 3), ("base", 4), ("between", 5), ("newer", 7)]
                .map(|(name, revision)| place.set(&id(name), revision, 1)),
        );
        assert!(place.write(&before).iter().all(|outcome| *outcome == Outcome::Applied));
        let mutation = |name: &str, generation| {
            let mutation = place.mutation(&id(name), 6, vec![("changed", change.clone())]);
            Mutation { base: 4, generation, ..mutation }
        };
        let (gap, stale, applied) = (Outcome::Gap, Outcome::Stale, Outcome::Applied);
        let cases = [
            (mutation("missing", 1), gap.clone()),
            (mutation("base", 1), applied.clone()),
            (mutation("lower", 1), gap.clone()),
            (mutation("newer", 1), stale.clone()),
            (mutation("former generation", 2), gap.clone()),
            (mutation("between", 1), applied),
            (mutation("deleted", 1), gap),
            (mutation("next generation", 1), stale),
        ];
        let (bulk, expected): (Vec<Mutation>, Vec<Outcome>) = cases.into_iter().unzip();
        assert_eq!(place.write(&bulk), expected);
        assert_eq!(place.get(&id("missing")), None);
        for (mutation, outcome) in bulk.iter().zip(&expected).skip(1) {
            let stored = before.iter().find(|stored| stored.id == mutation.id).unwrap();
            let both = if *outcome == Outcome::Applied { fold([stored, mutation]) } else { fold([stored]) };
            assert_eq!(place.get(&mutation.id), Some(both), "{}", mutation.id);
        }
        assert_eq!(place.write(&[mutation("base", 1)]), [Outcome::Stale], "once more");
        assert_eq!(place.write(&[mutation("missing", 1)]), [Outcome::Gap], "for as long as nobody heals it");
    }
}

/// A replacement or a tombstone needs nothing; what builds on it is no gap any more.
pub fn a_whole_document_heals_a_gap(subject: &dyn Subject) {
    let place = Place::new(subject, "heal");
    let fields = || value::object([pair("x", Value::integer(7))]);
    let set = |id: &str, revision| place.mutation(id, revision, vec![("y", Op::Set(Value::integer(1)))]);
    place.write(&[place.set("replaced", 1, 1), place.set("deleted", 1, 1)]);
    let ids = ["replaced", "deleted", "missing"];
    assert!(place.write(&ids.map(|id| set(id, 6))).iter().all(|outcome| *outcome == Outcome::Gap));
    let whole = |id: &str| {
        let op = if id == "deleted" { Op::Tombstone(true) } else { Op::Replace(fields()) };
        place.mutation(id, 7, vec![("", op)])
    };
    let healed = ids.map(whole);
    assert!(place.write(&healed).iter().all(|outcome| *outcome == Outcome::Applied));
    assert!(place.write(&ids.map(|id| set(id, 6))).iter().all(|outcome| *outcome == Outcome::Stale));
    let next = ids.map(|id| set(id, 8));
    assert!(place.write(&next).iter().all(|outcome| *outcome == Outcome::Applied));
    for (whole, next) in healed.iter().zip(&next) {
        assert_eq!(place.get(&whole.id).unwrap(), fold([whole, next]), "{}", whole.id);
    }
}

/// Any of the mutations does not arrive; the next one is a gap, and what its home then sends makes the document equal to the reference.
pub fn whatever_is_lost_is_healed_at_the_next_mutation(subject: &dyn Subject) {
    let place = Place::new(subject, "losses");
    let mut numbers = Numbers::new(77);
    let histories: Vec<Vec<Mutation>> =
        (0..20).map(|document| history(&place, &format!("{document:02}"), 30, 500 + document)).collect();
    for step in 0..30 {
        let arrives = |_: &&Vec<Mutation>| step == 29 || numbers.below(4) > 0;
        let arrived: Vec<&Vec<Mutation>> = histories.iter().filter(arrives).collect();
        let bulk: Vec<Mutation> = arrived.iter().map(|all| all[step].clone()).collect();
        for (all, outcome) in arrived.iter().zip(place.write(&bulk)) {
            let (id, expected) = (&all[step].id, fold(&all[..=step]));
            if outcome == Outcome::Gap {
                let fields = expected.fields.clone();
                let op = if expected.deleted { Op::Tombstone(true) } else { Op::Replace(fields) };
                let whole = place.mutation(id, all[step].revision, vec![("", op)]);
                assert_eq!(place.write(&[whole]), [Outcome::Applied]);
            }
            assert_eq!(place.get(id).unwrap(), expected, "{id} after step {step}");
        }
    }
}

/// What the reaction stage writes in place of a refused mutation: the next one finds what it builds on.
pub fn without_operations_only_the_guard_moves(subject: &dyn Subject) {
    let place = Place::new(subject, "skip");
    place.write(&[place.set("data", 1, 1), place.mutation("deleted", 1, vec![("", Op::Tombstone(true))])]);
    let skip = |id: &str| Mutation { base: 0, ..place.mutation(id, 5, vec![]) };
    let ids = ["data", "deleted", "missing"];
    assert!(place.write(&ids.map(skip)).iter().all(|outcome| *outcome == Outcome::Applied));
    assert_eq!(place.get("data").unwrap(), fold([&place.set("data", 1, 1), &skip("data")]));
    for id in ["deleted", "missing"] {
        let gone = Document { generation: 1, revision: 5, deleted: true, fields: Object::default() };
        assert_eq!(place.get(id), Some(gone), "{id}");
    }
    let next = |id: &str| place.mutation(id, 6, vec![("y", Op::Set(Value::integer(6)))]);
    assert!(place.write(&ids.map(next)).iter().all(|outcome| *outcome == Outcome::Applied));
    assert_eq!(place.get("missing").unwrap().fields, value::object([pair("y", Value::integer(6))]));
    assert_eq!(place.get("data").unwrap().fields.members.len(), 2);
    assert!(place.write(&ids.map(skip)).iter().all(|outcome| *outcome == Outcome::Stale));
}

/// Larger than any document may be: refused with a reason; its neighbours in the bulk are applied.
pub fn what_is_never_taken_is_refused_and_stops_nothing_else(subject: &dyn Subject) {
    let place = Place::new(subject, "refused");
    let huge = place.mutation("2", 1, vec![("x", Op::Set(Value::string("x".repeat(17_000_000))))]);
    let bulk = [place.set("1", 1, 1), huge, place.set("3", 1, 3)];
    let outcomes = place.write(&bulk);
    assert_eq!((&outcomes[0], &outcomes[2]), (&Outcome::Applied, &Outcome::Applied));
    assert!(matches!(&outcomes[1], Outcome::Refused(reason) if !reason.is_empty()), "{:?}", outcomes[1]);
    assert_eq!(place.ids(), ["1", "3"]);
    assert_eq!(place.write(&[place.set("2", 1, 2)]), [Outcome::Applied], "its guard was not stored");
}

/// Each mutation fits, the document would not: the former content and its guard stay.
pub fn a_document_that_would_grow_too_large_stays_as_it_is(subject: &dyn Subject) {
    let place = Place::new(subject, "grow");
    let half = || Op::Set(Value::string("x".repeat(9_000_000)));
    let first = place.mutation("1", 1, vec![("a", half())]);
    assert_eq!(place.write(std::slice::from_ref(&first)), [Outcome::Applied]);
    let outcomes = place.write(&[place.mutation("1", 2, vec![("b", half())])]);
    assert!(matches!(&outcomes[..], [Outcome::Refused(_)]), "{outcomes:?}");
    assert!(place.get("1").unwrap() == fold([&first]), "it changed");
    assert_eq!(place.write(&[place.mutation("1", 2, vec![])]), [Outcome::Applied], "the reaction stage goes on so");
    assert_eq!(place.write(&[place.mutation("1", 3, vec![("a", Op::Unset(true))])]), [Outcome::Applied]);
}

/// By the bytes of the id; other tenants, also those with similar names, do not appear; tombstones do.
pub fn scan_gives_one_tenants_documents_in_order(subject: &dyn Subject) {
    let place = Place::new(subject, "scan");
    let mut ids: Vec<String> = (0..300).map(|id| format!("{id:x}")).collect();
    ids.extend(["", "a b", "A", "zoë", "z", "\u{1f600}", "a:b", "a/b", "~", "$x", "x.y"].map(str::to_owned));
    let sorted: Vec<String> =
        std::collections::BTreeSet::from_iter(ids.clone()).into_iter().filter(|id| !id.is_empty()).collect();
    let mut shuffled = sorted.clone();
    Numbers::new(3).shuffle(&mut shuffled);
    let bulk: Vec<Mutation> = shuffled.iter().map(|id| place.set(id, 1, 1)).collect();
    place.write(&bulk);
    let longer = format!("{}-", place.tenant);
    let mut shorter = place.tenant.clone();
    shorter.pop();
    for tenant in [longer, shorter] {
        place.write(&[Mutation { tenant, ..place.set("other", 1, 1) }]);
    }
    place.write(&[place.mutation("z", 2, vec![("", Op::Tombstone(true))])]);
    let mut seen = Vec::new();
    place
        .store
        .scan(&place.tenant, &place.collection, &mut |id, document| {
            assert_eq!(
                (document.deleted, document.fields.members.len()),
                if id == "z" { (true, 0) } else { (false, 1) }
            );
            seen.push(id.to_owned());
            true
        })
        .unwrap();
    assert_eq!(seen, sorted);
    let mut first = None;
    place.store.scan(&place.tenant, &place.collection, &mut |id, _| first.replace(id.to_owned()).is_some()).unwrap();
    assert_eq!(first.as_ref(), sorted.first(), "who needs no more gets no more");
}

/// What was reported as applied survives.
pub fn everything_applied_is_there_after_opening_again(subject: &dyn Subject) {
    let mut place = Place::new(subject, "reopen");
    let all = history(&place, "1", 10, 42);
    for mutation in &all {
        assert_eq!(place.write(std::slice::from_ref(mutation)), [Outcome::Applied]);
    }
    let Place { store, .. } = place;
    drop(store);
    place = Place { store: subject.open(), collection: all[0].collection.clone(), tenant: all[0].tenant.clone() };
    assert_eq!(place.get("1").unwrap(), fold(&all));
    assert_eq!(place.write(&all[9..]), [Outcome::Stale]);
}

/// Time-out, repeat, newer writes, a deletion: then the first write takes effect after all.
pub fn a_write_that_lands_after_its_time_out_changes_nothing_newer(subject: &dyn Subject) {
    let place = Place::new(subject, "late");
    let late = Late::new(place.store.clone());
    let operations = || vec![("tags", Op::AddToSet(list(&["a"]))), ("x", Op::Set(Value::integer(2)))];
    let add = |id: &str| Mutation { base: 0, ..place.mutation(id, 2, operations()) };
    let bulk = [add("kept"), add("deleted"), add("new")];
    late.delay();
    assert!(late.write(&bulk).iter().all(|outcome| matches!(outcome, Outcome::Retry(_))));
    assert_eq!(place.ids(), [""; 0]);
    let delayed = late.recover();
    assert_eq!(write(&late, &bulk), [Outcome::Applied, Outcome::Applied, Outcome::Applied]);
    let remove = place.mutation("kept", 3, vec![("tags", Op::RemoveFromSet(list(&["a"])))]);
    let delete = place.mutation("deleted", 3, vec![("", Op::Tombstone(true))]);
    assert_eq!(write(&late, &[remove.clone(), delete.clone()]), [Outcome::Applied, Outcome::Applied]);
    assert_eq!(late.land(&delayed[0]), [Outcome::Stale, Outcome::Stale, Outcome::Stale]);
    assert_eq!(place.get("kept").unwrap(), fold([&bulk[0], &remove]));
    assert_eq!(place.get("deleted").unwrap(), fold([&delete]));
    assert_eq!(place.get("new").unwrap(), fold([&bulk[2]]));
}

/// The repeat finds that it is there already.
pub fn a_write_that_lands_before_its_repeat_is_not_doubled(subject: &dyn Subject) {
    let place = Place::new(subject, "landed");
    let late = Late::new(place.store.clone());
    let bulk: Vec<Mutation> = (0..20).map(|id| place.set(&format!("{id:02}"), 1, id)).collect();
    late.delay();
    late.write(&bulk);
    let delayed = late.recover();
    assert!(late.land(&delayed[0][..10]).iter().all(|outcome| *outcome == Outcome::Applied));
    let outcomes = write(&late, &bulk);
    assert!(outcomes[..10].iter().all(|outcome| *outcome == Outcome::Stale));
    assert!(outcomes[10..].iter().all(|outcome| *outcome == Outcome::Applied));
    assert!(bulk.iter().all(|mutation| place.get(&mutation.id).unwrap() == fold([mutation])));
}

/// Writes that timed out take effect while newer ones are written: the documents end as the fold of all.
pub fn late_writes_race_with_newer_ones(subject: &dyn Subject) {
    let place = Place::new(subject, "latest");
    let late = Late::new(place.store.clone());
    let histories: Vec<Vec<Mutation>> =
        (0..4).map(|document| history(&place, &document.to_string(), 30, 900 + document)).collect();
    let landing = Mutex::new(Vec::<Vec<Mutation>>::new());
    std::thread::scope(|scope| {
        let start = Arc::new(Barrier::new(2));
        let (late, landing, waiting) = (&late, &landing, start.clone());
        scope.spawn(move || {
            for _ in 0..30 {
                waiting.wait();
                let delayed = std::mem::take(&mut *landing.lock().unwrap());
                for write in delayed {
                    late.land(&write);
                }
            }
        });
        for step in 0..30 {
            let bulk: Vec<Mutation> = histories.iter().map(|all| all[step].clone()).collect();
            late.delay();
            late.write(&bulk);
            landing.lock().unwrap().extend(late.recover());
            start.wait();
            write(late, &bulk);
        }
    });
    for (document, all) in histories.iter().enumerate() {
        assert_eq!(place.get(&document.to_string()).unwrap(), fold(all), "document {document}");
    }
}
