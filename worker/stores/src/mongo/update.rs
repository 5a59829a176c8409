//! A mutation as an update of MongoDB (I8).
//!
//! Most mutations become one guarded update with operators, or a replacement. What operators cannot express exactly (two operations on
//! one path, numbers in sets, which MongoDB compares across types, paths that could be list indexes) is [`Plan::Fold`]: read, fold with
//! [`Document::apply`], write back where the guard is still the one that was read.

use super::convert::{DELETED, GENERATION, ID, RESERVED, REVISION, TENANT, items, key, members, stored, to_bson};
use bson::{Bson, Document as BsonDocument, doc};
use millstream_model::document::{Document, needed_base};
use millstream_model::proto::{List, Mutation, Object, Operation, Value, operation::Op, value::Kind};

/// How a mutation is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// An update with operators.
    Update(BsonDocument),
    /// A whole new document.
    Replace(BsonDocument),
    /// Read, fold, write back.
    Fold,
    /// Never.
    Refuse(String),
}

/// The largest update that is sent. MongoDB takes documents of 16 MiB; the command around it needs room.
const MAX_BYTES: usize = 15 * 1024 * 1024;

/// May a write of it create the document? One that builds on a revision may not: where there is no document, there is a gap.
pub(super) fn may_insert(mutation: &Mutation) -> bool {
    needed_base(mutation).is_none()
}

/// Matches the document that the mutation fits: its guard is lower than the mutation's, and not lower than what that builds on.
///
/// The guard stands in an `$and` of its own, beside the key: some servers that speak MongoDB's protocol look only such a one up by its key, and read the whole collection otherwise. To MongoDB it is the same.
pub(super) fn filter(mutation: &Mutation) -> BsonDocument {
    let number = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
    let (generation, revision) = (i64::from(mutation.generation), number(mutation.revision));
    let id = key(&mutation.tenant, &mutation.id);
    let lower = match needed_base(mutation) {
        Some(base) => vec![doc! { GENERATION: generation, REVISION: { "$gte": number(base), "$lt": revision } }],
        None => vec![
            doc! { GENERATION: { "$lt": generation } },
            doc! { GENERATION: generation, REVISION: { "$lt": revision } },
        ],
    };
    doc! { ID: id, "$and": [{ "$or": lower }] }
}

/// Decides how to write a mutation.
pub(super) fn plan(mutation: &Mutation) -> Plan {
    if let Some(why) = refusal(mutation) {
        return Plan::Refuse(why);
    }
    let plan = match mutation.operations.as_slice() {
        [Operation { op: Some(Op::Replace(_) | Op::Tombstone(_)), .. }] => replacement(mutation),
        operations if operations.iter().all(is_exact) && !overlap(operations) => Plan::Update(update(mutation)),
        _ => Plan::Fold,
    };
    match &plan {
        Plan::Update(written) | Plan::Replace(written) => oversize(written).map_or(plan, Plan::Refuse),
        _ => plan,
    }
}

/// Why a document cannot be written at all, if so.
pub(super) fn oversize(written: &BsonDocument) -> Option<String> {
    match written.to_vec() {
        Ok(bytes) if bytes.len() <= MAX_BYTES => None,
        Ok(bytes) => Some(format!("{} bytes are more than a document may have ({MAX_BYTES})", bytes.len())),
        Err(error) => Some(format!("not BSON: {error}")),
    }
}

fn replacement(mutation: &Mutation) -> Plan {
    let mut document = Document::empty();
    document.apply(mutation);
    (document.generation, document.revision) = (mutation.generation, mutation.revision);
    stored(&mutation.tenant, &key(&mutation.tenant, &mutation.id), &document)
        .map_or_else(|| Plan::Refuse("revision above 2^63".to_owned()), Plan::Replace)
}

/// What the store can never take.
fn refusal(mutation: &Mutation) -> Option<String> {
    if i64::try_from(mutation.revision).is_err() {
        return Some("revision above 2^63".to_owned());
    }
    mutation.operations.iter().find_map(|operation| match &operation.op {
        Some(Op::Replace(fields)) => fields
            .pairs()
            .find_map(|(name, _)| bad_segment(name).or_else(|| reserved(name)))
            .or_else(|| has_nul(fields).then(|| "a name contains NUL".to_owned())),
        Some(Op::Tombstone(_)) | None => None,
        Some(op) => operation.path.split('.').find_map(bad_segment).or_else(|| {
            let first = operation.path.split('.').next().unwrap_or_default();
            reserved(first).or_else(|| value_with_nul(op).then(|| "a name contains NUL".to_owned()))
        }),
    })
}

fn reserved(name: &str) -> Option<String> {
    RESERVED.contains(&name).then(|| format!("field `{name}` is kept for the guard"))
}

fn bad_segment(segment: &str) -> Option<String> {
    if segment.is_empty() {
        Some("a path has an empty segment".to_owned())
    } else if segment.contains(['$', '\0']) {
        Some(format!("path segment `{segment}` is not escaped"))
    } else {
        None
    }
}

fn value_with_nul(op: &Op) -> bool {
    match op {
        Op::Set(value) => nul_in(value),
        Op::AddToSet(List { items }) | Op::RemoveFromSet(List { items }) => items.iter().any(nul_in),
        _ => false,
    }
}

fn nul_in(value: &Value) -> bool {
    match &value.kind {
        Some(Kind::Object(object)) => has_nul(object),
        Some(Kind::List(list)) => list.items.iter().any(nul_in),
        _ => false,
    }
}

fn has_nul(object: &Object) -> bool {
    object.pairs().any(|(name, value)| name.contains('\0') || nul_in(value))
}

/// Does the operator do exactly what [`Document::apply`] does, unless the server says that the document has another shape?
fn is_exact(operation: &Operation) -> bool {
    let inner_is_no_index =
        operation.path.split('.').skip(1).all(|segment| !segment.bytes().all(|byte| byte.is_ascii_digit()));
    // Where a scalar is in the way, the fold replaces it, while these two do nothing and report nothing. What a one-segment parent
    // such as `attributes` holds is always an object; what is deeper may be anything.
    let shallow = operation.path.split('.').count() <= 2;
    inner_is_no_index
        && match &operation.op {
            Some(Op::Set(_)) => true,
            Some(Op::Unset(_)) => shallow,
            Some(Op::AddToSet(list)) => list.items.iter().all(is_plain),
            Some(Op::RemoveFromSet(list)) => shallow && list.items.iter().all(is_plain),
            _ => false,
        }
}

/// Compares in MongoDB as it does here: numbers of two types do not, nor do objects and lists, in which such numbers may be.
fn is_plain(value: &Value) -> bool {
    !matches!(value.kind, Some(Kind::Integer(_) | Kind::Float(_) | Kind::Object(_) | Kind::List(_)))
}

/// Is a path equal to another or below it? MongoDB refuses such updates.
fn overlap(operations: &[Operation]) -> bool {
    let mut paths: Vec<Vec<&str>> = operations.iter().map(|operation| operation.path.split('.').collect()).collect();
    paths.sort_unstable();
    paths.array_windows::<2>().any(|[left, right]| right.starts_with(left))
}

fn update(mutation: &Mutation) -> BsonDocument {
    let mut set = doc! {
        TENANT: &mutation.tenant,
        GENERATION: i64::from(mutation.generation),
        REVISION: i64::try_from(mutation.revision).unwrap_or(i64::MAX),
    };
    let (mut unset, mut add, mut remove) = (BsonDocument::new(), BsonDocument::new(), BsonDocument::new());
    let mut insert = BsonDocument::new();
    if mutation.operations.is_empty() {
        // Only the guard moves; where there is no document, there is nothing to show.
        insert.insert(DELETED, true);
    } else {
        // A tombstone has no fields: without its mark it is the empty document that the fold starts from.
        unset.insert(DELETED, "");
    }
    for Operation { path, op } in &mutation.operations {
        match op {
            Some(Op::Set(value)) => drop(set.insert(path, to_bson(value))),
            Some(Op::Unset(_)) => drop(unset.insert(path, "")),
            Some(Op::AddToSet(list)) => drop(add.insert(path, doc! { "$each": items(list) })),
            Some(Op::RemoveFromSet(list)) => drop(remove.insert(path, items(list))),
            Some(Op::Replace(fields)) => set.extend(members(fields)),
            Some(Op::Tombstone(_)) | None => {}
        }
    }
    let operators =
        [("$set", set), ("$unset", unset), ("$addToSet", add), ("$pullAll", remove), ("$setOnInsert", insert)];
    operators
        .into_iter()
        .filter(|(_, operands)| !operands.is_empty())
        .map(|(operator, operands)| (operator.to_owned(), Bson::Document(operands)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutation(operations: Vec<(&str, Op)>) -> Mutation {
        let operations =
            operations.into_iter().map(|(path, op)| Operation { path: path.into(), op: Some(op) }).collect();
        Mutation {
            tenant: "t".into(),
            collection: "users".into(),
            id: "1".into(),
            generation: 2,
            revision: 5,
            operations,
            ..Mutation::default()
        }
    }

    fn strings(items: &[&str]) -> List {
        List { items: items.iter().map(|item| Value::string(*item)).collect() }
    }

    #[test]
    fn plain_operations_become_operators() {
        let plan = plan(&mutation(vec![
            ("attributes.plan", Op::Set(Value::integer(1))),
            ("attributes.old", Op::Unset(true)),
            ("tags", Op::AddToSet(strings(&["a"]))),
            ("gone", Op::RemoveFromSet(strings(&["b"]))),
        ]));
        let expected = doc! {
            "$set": { TENANT: "t", GENERATION: 2_i64, REVISION: 5_i64, "attributes.plan": 1_i64 },
            "$unset": { DELETED: "", "attributes.old": "" },
            "$addToSet": { "tags": { "$each": ["a"] } },
            "$pullAll": { "gone": ["b"] },
        };
        assert_eq!(plan, Plan::Update(expected));
    }

    #[test]
    fn what_operators_cannot_express_is_folded() {
        let number = List { items: vec![Value::integer(1)] };
        for operations in [
            vec![("tags", Op::AddToSet(strings(&["a"]))), ("tags", Op::RemoveFromSet(strings(&["b"])))],
            vec![("a", Op::Set(Value::null())), ("a.b", Op::Set(Value::null()))],
            vec![("a.b", Op::Set(Value::null())), ("a-b", Op::Unset(true)), ("a", Op::Unset(true))],
            vec![("a.0", Op::Set(Value::null()))],
            vec![("a", Op::AddToSet(number))],
            vec![("", Op::Tombstone(true)), ("a", Op::Unset(true))],
        ] {
            let mutation = mutation(operations);
            if mutation.operations.iter().any(|operation| operation.path.is_empty()) {
                assert_eq!(plan(&mutation), Plan::Fold);
            } else {
                assert_eq!(plan(&mutation), Plan::Fold, "{mutation:?}");
            }
        }
    }

    #[test]
    fn what_the_store_can_never_take_is_refused() {
        for (path, op, word) in [
            ("_rev", Op::Set(Value::null()), "guard"),
            ("a..b", Op::Set(Value::null()), "empty"),
            ("a.$b", Op::Unset(true), "escaped"),
            ("a", Op::Set(Value::object([("x\0".to_owned(), Value::null())])), "NUL"),
            ("a", Op::Set(Value::string("x".repeat(MAX_BYTES))), "bytes"),
            ("", Op::Replace(millstream_model::value::object([("_id".to_owned(), Value::null())])), "guard"),
        ] {
            match plan(&mutation(vec![(path, op)])) {
                Plan::Refuse(why) => assert!(why.contains(word), "{why}"),
                other => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_builds_on_a_revision_matches_it_and_creates_nothing() {
        let set = Mutation { base: 3, ..mutation(vec![("a", Op::Set(Value::null()))]) };
        let expected = |guards: Vec<BsonDocument>| doc! { ID: "t/1", "$and": [{ "$or": guards }] };
        let from_base = vec![doc! { GENERATION: 2_i64, REVISION: { "$gte": 3_i64, "$lt": 5_i64 } }];
        assert_eq!((filter(&set), may_insert(&set)), (expected(from_base), false));
        let lower = [doc! { GENERATION: { "$lt": 2_i64 } }, doc! { GENERATION: 2_i64, REVISION: { "$lt": 5_i64 } }];
        let expected = expected(lower.to_vec());
        let whole = Mutation { base: 3, ..mutation(vec![("", Op::Tombstone(true))]) };
        for mutation in [Mutation { base: 0, ..set }, whole] {
            assert_eq!((filter(&mutation), may_insert(&mutation)), (expected.clone(), true));
        }
    }

    #[test]
    fn without_operations_only_the_guard_moves() {
        let expected = doc! {
            "$set": { TENANT: "t", GENERATION: 2_i64, REVISION: 5_i64 },
            "$setOnInsert": { DELETED: true },
        };
        assert_eq!(plan(&mutation(vec![])), Plan::Update(expected));
    }

    #[test]
    fn a_tombstone_keeps_the_guard_only() {
        let expected = doc! { ID: "t/1", TENANT: "t", GENERATION: 2_i64, REVISION: 5_i64, DELETED: true };
        assert_eq!(plan(&mutation(vec![("", Op::Tombstone(true))])), Plan::Replace(expected));
    }
}
