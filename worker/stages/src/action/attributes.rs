//! Attributes: last writer wins per attribute, and per element of a set, whatever the order of arrival.
//!
//! An attribute is a *base* (a value, or "unset", with the stamp of its record) and *elements*, each added or removed with its own stamp.
//! Only elements that are newer than the base count. What a reader sees ([`seen`]): the base's items without the removed and with the added
//! elements; a base that is not a list is replaced by the list of what was added after it. So `set`, `unset`, `add` and `remove` may be
//! mixed, and the state is the same for every order in which changes, and users that are merged, come together (part of I9). Of two
//! bases with one stamp the one of greater bytes wins; within one record the later.
//!
//! `unset_matching` acts on the attributes that are there when it is applied; it leaves nothing behind for others.

use crate::pattern::{Name, Pattern};
use millstream_model::document::escape;
use millstream_model::proto::change::Op as ChangeOp;
use millstream_model::proto::value::Kind;
use millstream_model::proto::{Change, Element, List, Operation, Register, Stamp, Value, operation::Op};
use prost::Message;

/// Of which record changes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer<'a> {
    pub(super) stamp: Stamp,
    pub(super) record_id: &'a [u8],
}

/// Applies the changes of a record; what readers see differently goes to `operations`.
pub(super) fn apply(
    registers: &mut Vec<Register>,
    changes: Vec<Change>,
    writer: Writer<'_>,
    operations: &mut Vec<Operation>,
) {
    let (patterns, changes): (Vec<Change>, Vec<Change>) =
        changes.into_iter().partition(|change| matches!(change.op, Some(ChangeOp::UnsetMatching(_))));
    for name in matching(registers, &patterns) {
        operations.extend(change(register(registers, name), ChangeOp::Unset(true), writer));
    }
    for Change { name, op } in changes {
        operations.extend(op.and_then(|op| change(register(registers, name), op, writer)));
    }
}

/// The attributes that the patterns of a record name. Its other changes are about others: unify refuses what contradicts itself.
fn matching(registers: &[Register], patterns: &[Change]) -> Vec<String> {
    let prepare = |change: &Change| match &change.op {
        Some(ChangeOp::UnsetMatching(pattern)) => Some(Pattern::new(pattern)),
        _ => None,
    };
    let patterns: Vec<Pattern> = patterns.iter().filter_map(prepare).collect();
    if patterns.is_empty() {
        return Vec::new();
    }
    let hit = |register: &&Register| {
        let name = Name::new(&register.name);
        patterns.iter().any(|pattern| pattern.matches(&name))
    };
    registers.iter().filter(hit).map(|register| register.name.clone()).collect()
}

#[allow(clippy::indexing_slicing)] // the index is where it was found or inserted
fn register(registers: &mut Vec<Register>, name: String) -> &mut Register {
    let index = registers.binary_search_by(|register| register.name.as_str().cmp(&name)).unwrap_or_else(|index| {
        registers.insert(index, Register { name, ..Register::default() });
        index
    });
    &mut registers[index]
}

fn change(register: &mut Register, op: ChangeOp, writer: Writer<'_>) -> Option<Operation> {
    let before = seen(register);
    let path = path(&register.name);
    let op = match op {
        ChangeOp::Set(value) => set(register, Some(value), writer).then(|| replaced(before.as_ref(), seen(register))),
        ChangeOp::Unset(_) => set(register, None, writer).then(|| replaced(before.as_ref(), seen(register))),
        ChangeOp::Add(list) => Some(elements(register, before.as_ref(), list, false, writer)),
        ChangeOp::Remove(list) => Some(elements(register, before.as_ref(), list, true, writer)),
        ChangeOp::UnsetMatching(_) => None,
    };
    Some(Operation { path, op: Some(op.flatten()?) })
}

fn set(register: &mut Register, value: Option<Value>, writer: Writer<'_>) -> bool {
    let newer = match &register.stamp {
        None => true,
        Some(stamp) if *stamp == writer.stamp && register.record_id == writer.record_id => true,
        Some(stamp) => (writer.stamp, bytes(value.as_ref())) > (*stamp, bytes(register.value.as_ref())),
    };
    if newer {
        register.value = value;
        register.stamp = Some(writer.stamp);
        register.record_id = writer.record_id.to_vec();
        drop_older(register);
    }
    newer
}

fn drop_older(register: &mut Register) {
    let base = register.stamp;
    register.elements.retain(|element| element.stamp > base);
}

fn bytes(value: Option<&Value>) -> Vec<u8> {
    value.map(Message::encode_to_vec).unwrap_or_default()
}

fn elements(register: &mut Register, before: Option<&Value>, list: List, removed: bool, by: Writer<'_>) -> Option<Op> {
    for value in list.items {
        let record_id = by.record_id.to_vec();
        let stamp = Some(by.stamp);
        unite_element(&mut register.elements, Element { value: Some(value), stamp, removed, record_id });
    }
    drop_older(register);
    let after = seen(register);
    match (before, &after) {
        (Some(Value { kind: Some(Kind::List(old)) }), Some(Value { kind: Some(Kind::List(new)) })) => {
            let added = missing(&new.items, &old.items);
            let gone = missing(&old.items, &new.items);
            match (added.is_empty(), gone.is_empty()) {
                (true, true) => None,
                (false, true) if added.iter().all(is_plain) => Some(Op::AddToSet(List { items: added })),
                (true, false) if gone.iter().all(is_plain) => Some(Op::RemoveFromSet(List { items: gone })),
                _ => after.map(Op::Set),
            }
        }
        _ => replaced(before, after),
    }
}

/// Is it a value that every document store compares as we do? 1 and 1.0 are two values here and one there.
fn is_plain(value: &Value) -> bool {
    matches!(value.kind, Some(Kind::String(_) | Kind::Boolean(_) | Kind::Timestamp(_)))
}

fn missing(items: &[Value], from: &[Value]) -> Vec<Value> {
    items.iter().filter(|item| !from.contains(item)).cloned().collect()
}

fn replaced(before: Option<&Value>, after: Option<Value>) -> Option<Op> {
    if before == after.as_ref() {
        return None;
    }
    Some(after.map_or(Op::Unset(true), Op::Set))
}

fn unite_element(elements: &mut Vec<Element>, new: Element) {
    let is_newer = |new: &Element, old: &Element| {
        (new.stamp, !new.removed, &new.record_id) > (old.stamp, !old.removed, &old.record_id)
    };
    match elements.iter_mut().find(|element| element.value == new.value) {
        Some(old) if is_newer(&new, old) => *old = new,
        Some(_) => {}
        None => elements.push(new),
    }
}

/// What a reader sees of an attribute; `None`: it is not there.
pub(super) fn seen(register: &Register) -> Option<Value> {
    if register.elements.is_empty() {
        return register.value.clone();
    }
    let mut elements: Vec<&Element> = register.elements.iter().collect();
    elements.sort_by(|left, right| {
        left.stamp.cmp(&right.stamp).then_with(|| bytes(left.value.as_ref()).cmp(&bytes(right.value.as_ref())))
    });
    let base = register.value.as_ref().and_then(Value::as_list);
    let is_removed = |item: &Value| elements.iter().any(|it| it.removed && it.value.as_ref() == Some(item));
    let mut items: Vec<Value> = base.unwrap_or_default().iter().filter(|item| !is_removed(item)).cloned().collect();
    for value in elements.iter().filter(|element| !element.removed).filter_map(|element| element.value.as_ref()) {
        if !items.contains(value) {
            items.push(value.clone());
        }
    }
    if items.is_empty() && base.is_none() { register.value.clone() } else { Some(Value::list(items)) }
}

/// The attributes of two users that become one.
pub(super) fn unite(ours: &mut Vec<Register>, theirs: Vec<Register>) {
    for other in theirs {
        let ours = register(ours, other.name.clone());
        let order = |register: &Register| (register.stamp, bytes(register.value.as_ref()));
        if order(&other) > order(ours) {
            ours.value = other.value;
            ours.stamp = other.stamp;
            ours.record_id = other.record_id;
        }
        for element in other.elements {
            unite_element(&mut ours.elements, element);
        }
        drop_older(ours);
    }
}

/// Takes out what is not newer than a deletion.
pub(super) fn purge(registers: &mut Vec<Register>, deletion: Stamp) {
    for register in registers.iter_mut() {
        register.elements.retain(|element| element.stamp > Some(deletion));
        if register.stamp <= Some(deletion) {
            register.value = None;
            register.stamp = None;
            register.record_id.clear();
        }
    }
    registers.retain(|register| register.stamp.is_some() || !register.elements.is_empty());
}

/// The document path of an attribute.
pub(super) fn path(name: &str) -> String {
    format!("attributes.{}", escape(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::Match;
    use millstream_model::proto::r#match::Kind as MatchKind;
    use proptest::prelude::*;

    fn op() -> impl Strategy<Value = ChangeOp> {
        let list = |items: Vec<&'static str>| List { items: items.into_iter().map(Value::string).collect() };
        let items = || proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..3);
        prop_oneof![
            (0..3i64).prop_map(|number| ChangeOp::Set(Value::integer(number))),
            items().prop_map(move |items| ChangeOp::Set(Value::of(Kind::List(list(items))))),
            Just(ChangeOp::Unset(true)),
            items().prop_map(move |items| ChangeOp::Add(list(items))),
            items().prop_map(move |items| ChangeOp::Remove(list(items))),
        ]
    }

    fn run(changes: &[(u64, ChangeOp)]) -> Vec<Register> {
        let mut registers = Vec::new();
        for (time_ms, op) in changes {
            let stamp = Stamp { time_ms: *time_ms, ..Stamp::default() };
            let record_id = time_ms.to_be_bytes();
            let change = Change { name: "x".into(), op: Some(op.clone()) };
            apply(&mut registers, vec![change], Writer { stamp, record_id: &record_id }, &mut Vec::new());
        }
        registers
    }

    fn set_seen(registers: &[Register]) -> Option<Value> {
        registers.first().and_then(seen)
    }

    proptest! {
        #[test]
        fn order_of_arrival_does_not_matter(
            (changes, shuffled, cut) in proptest::collection::vec(op(), 1..8).prop_flat_map(|ops| {
                let changes: Vec<(u64, ChangeOp)> = (1..).zip(ops).collect();
                (Just(changes.clone()), Just(changes).prop_shuffle(), 0..8usize)
            })
        ) {
            let expected = set_seen(&run(&changes));
            prop_assert_eq!(&set_seen(&run(&shuffled)), &expected);
            let (left, right) = shuffled.split_at(cut.min(shuffled.len()));
            let mut united = run(left);
            unite(&mut united, run(right));
            prop_assert_eq!(set_seen(&united), expected);
        }
    }

    #[test]
    fn an_older_change_is_none() {
        let later = ChangeOp::Set(Value::integer(2));
        let mut registers = run(&[(5, later)]);
        let mut operations = Vec::new();
        let change = Change { name: "x".into(), op: Some(ChangeOp::Set(Value::integer(1))) };
        let stamp = Stamp { time_ms: 4, ..Stamp::default() };
        apply(&mut registers, vec![change], Writer { stamp, record_id: b"r" }, &mut operations);
        assert_eq!((operations, set_seen(&registers)), (vec![], Some(Value::integer(2))));
    }

    #[test]
    fn a_set_grows_and_shrinks_by_its_difference() {
        let list = |items: &[&str]| List { items: items.iter().map(|item| Value::string(*item)).collect() };
        let mut registers = run(&[(1, ChangeOp::Add(list(&["a"])))]);
        let mut next = |time_ms, op| {
            let mut operations = Vec::new();
            let stamp = Stamp { time_ms, ..Stamp::default() };
            let change = Change { name: "x".into(), op: Some(op) };
            apply(&mut registers, vec![change], Writer { stamp, record_id: b"r" }, &mut operations);
            operations.pop().and_then(|operation| operation.op)
        };
        assert_eq!(next(2, ChangeOp::Add(list(&["a", "b"]))), Some(Op::AddToSet(list(&["b"]))));
        assert_eq!(next(3, ChangeOp::Remove(list(&["a", "z"]))), Some(Op::RemoveFromSet(list(&["a"]))));
        assert_eq!(next(4, ChangeOp::Remove(list(&["b"]))), Some(Op::Unset(true)));
    }

    #[test]
    fn patterns_unset_what_is_there() {
        let mut registers = Vec::new();
        let change = |name: &str, op| Change { name: name.into(), op: Some(op) };
        let pattern = Match { kind: MatchKind::Prefix.into(), pattern: "PLAN_".into(), case_sensitive: false };
        let changes =
            vec![change("plan_a", ChangeOp::Set(Value::integer(1))), change("other", ChangeOp::Set(Value::integer(1)))];
        apply(&mut registers, changes, Writer { stamp: Stamp::default(), record_id: b"r" }, &mut Vec::new());
        let mut operations = Vec::new();
        let writer = Writer { stamp: Stamp { time_ms: 1, ..Stamp::default() }, record_id: b"s" };
        apply(&mut registers, vec![change("", ChangeOp::UnsetMatching(pattern))], writer, &mut operations);
        assert_eq!(operations, [Operation { path: "attributes.plan_a".into(), op: Some(Op::Unset(true)) }]);
    }
}
