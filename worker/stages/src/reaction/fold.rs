//! Folding: two mutations of one document, one after the other, as one.
//!
//! The fold of two must do to every document what both would do in turn (I8). Where the operations of the store cannot express that
//! (elements first removed and then others added to one set), the mutations are not folded and go out one after the other. Nor are two
//! between which one is missing: the fold would hide the gap from the store, which compares only what the first one builds on.

use millstream_model::document::{Document, needed_base};
use millstream_model::proto::{List, Mutation, Operation, Value, operation::Op};

/// `first` then `second` as one mutation; `None` when they must stay two.
pub fn fold(first: &Mutation, second: &Mutation) -> Option<Mutation> {
    if !follows(first, second) {
        return None;
    }
    let operations = fold_operations(&first.operations, &second.operations)?;
    Some(Mutation { operations, base: first.base, ..second.clone() })
}

/// Is the second one newer, and what it builds on there once the first one is?
fn follows(first: &Mutation, second: &Mutation) -> bool {
    let after = (first.generation, first.revision);
    after < (second.generation, second.revision)
        && needed_base(second).is_none_or(|base| after >= (second.generation, base))
}

fn fold_operations(first: &[Operation], second: &[Operation]) -> Option<Vec<Operation>> {
    if let [Operation { op: Some(Op::Replace(_) | Op::Tombstone(_)), .. }] = second {
        return Some(second.to_vec());
    }
    if let [Operation { op: Some(Op::Replace(_) | Op::Tombstone(_)), .. }] = first {
        let mut document = Document::empty();
        let both = first.iter().chain(second).cloned().collect();
        document.apply(&Mutation { revision: 1, operations: both, ..Mutation::default() });
        return Some(vec![Operation { path: String::new(), op: Some(Op::Replace(document.fields)) }]);
    }
    let mut folded = first.to_vec();
    for operation in second {
        if folded.iter().any(|other| nested(&other.path, &operation.path)) {
            return None;
        }
        match folded.iter_mut().find(|other| other.path == operation.path) {
            None => folded.push(operation.clone()),
            Some(other) => other.op = Some(fold_path(other.op.as_ref()?, operation.op.as_ref()?)?),
        }
    }
    Some(folded)
}

/// Is one path inside the other?
fn nested(left: &str, right: &str) -> bool {
    let inside = |outer: &str, inner: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    inside(left, right) || inside(right, left)
}

fn fold_path(first: &Op, second: &Op) -> Option<Op> {
    match (first, second) {
        (_, Op::Set(_) | Op::Unset(_)) => Some(second.clone()),
        (Op::Set(value), Op::AddToSet(more)) => Some(Op::Set(Value::list(united(value.as_list()?, &more.items)))),
        (Op::Set(value), Op::RemoveFromSet(less)) => Some(Op::Set(Value::list(
            value.as_list()?.iter().filter(|item| !less.items.contains(item)).cloned().collect(),
        ))),
        (Op::Unset(_), Op::AddToSet(more)) => Some(Op::Set(Value::list(united(&[], &more.items)))),
        (Op::Unset(_), Op::RemoveFromSet(_)) => Some(first.clone()),
        (Op::AddToSet(some), Op::AddToSet(more)) => {
            Some(Op::AddToSet(List { items: united(&some.items, &more.items) }))
        }
        (Op::RemoveFromSet(some), Op::RemoveFromSet(more)) => {
            Some(Op::RemoveFromSet(List { items: united(&some.items, &more.items) }))
        }
        _ => None,
    }
}

fn united(some: &[Value], more: &[Value]) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::with_capacity(some.len() + more.len());
    for item in some.iter().chain(more) {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::value;
    use proptest::prelude::*;

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let items = || proptest::collection::vec(0..4i64, 0..3);
        let list = |items: Vec<i64>| List { items: items.into_iter().map(Value::integer).collect() };
        let op = prop_oneof![
            (0..5i64).prop_map(|number| Op::Set(Value::integer(number))),
            items().prop_map(move |items| Op::Set(Value::list(united(&[], &list(items).items)))),
            Just(Op::Unset(true)),
            items().prop_map(move |items| Op::AddToSet(list(items))),
            items().prop_map(move |items| Op::RemoveFromSet(list(items))),
        ];
        let paths = prop_oneof![Just("a"), Just("b.c"), Just("b.d"), Just("e")];
        let several = proptest::collection::btree_map(paths, op, 1..4).prop_map(|operations| {
            let operation = |(path, op): (&str, Op)| Operation { path: path.into(), op: Some(op) };
            operations.into_iter().map(operation).collect::<Vec<_>>()
        });
        let replace = (0..5i64).prop_map(|number| {
            let fields = value::object([("a".to_owned(), Value::integer(number))]);
            vec![Operation { path: String::new(), op: Some(Op::Replace(fields)) }]
        });
        let tombstone = Just(vec![Operation { path: String::new(), op: Some(Op::Tombstone(true)) }]);
        prop_oneof![6 => several, 1 => replace, 1 => tombstone]
    }

    fn mutation(revision: u64, operations: Vec<Operation>) -> Mutation {
        Mutation { generation: 1, revision, base: revision - 1, operations, ..Mutation::default() }
    }

    /// Setting and unsetting `b.c` leaves an empty `b` where there was none; a fold of both does not. Nobody reads that.
    fn without_empty(mut document: Document) -> Document {
        let empty = |value: &Value| value.as_object().is_some_and(|object| object.members.is_empty());
        document.fields.members.retain(|member| !member.value.as_ref().is_some_and(empty));
        document
    }

    proptest! {
        #[test]
        fn a_fold_does_what_both_do(before in operations(), first in operations(), second in operations()) {
            let (first, second) = (mutation(2, first), mutation(3, second));
            let mut one_by_one = Document::empty();
            one_by_one.apply(&mutation(1, before));
            let mut at_once = one_by_one.clone();
            one_by_one.apply(&first);
            one_by_one.apply(&second);
            if let Some(folded) = fold(&first, &second) {
                prop_assert_eq!((folded.base, folded.revision), (1, 3));
                at_once.apply(&folded);
                prop_assert_eq!(without_empty(at_once), without_empty(one_by_one));
            }
        }
    }

    #[test]
    fn a_fold_hides_no_gap() {
        let set = |revision| mutation(revision, vec![Operation { path: "a".into(), op: Some(Op::Set(Value::null())) }]);
        let gone = vec![Operation { path: String::new(), op: Some(Op::Tombstone(true)) }];
        assert!(fold(&set(2), &set(3)).is_some());
        assert_eq!(fold(&set(2), &set(4)), None, "3 is missing");
        assert_eq!(fold(&set(2), &set(2)), None, "the same once more");
        assert_eq!(fold(&set(2), &Mutation { generation: 2, ..set(3) }), None, "2 is of another generation");
        assert!(fold(&set(2), &mutation(9, gone)).is_some(), "whatever was before");
    }

    #[test]
    fn removed_and_then_added_stays_two() {
        let list = |number| List { items: vec![Value::integer(number)] };
        let op = |op| vec![Operation { path: "tags".into(), op: Some(op) }];
        let first = mutation(1, op(Op::RemoveFromSet(list(1))));
        let second = mutation(2, op(Op::AddToSet(list(2))));
        assert_eq!(fold(&first, &second), None);
    }
}
