//! To the byte: what is admitted, and that a bound is one.

use super::*;
use millstream_model::proto::{Action, DeviceState, List, User};
use proptest::prelude::*;

fn change(name: &str, op: Op) -> Change {
    Change { name: name.into(), op: Some(op) }
}

fn text(length: usize) -> Value {
    Value::string("x".repeat(length))
}

fn at(time_ms: u64, changes: Vec<Change>) -> Action {
    let stamp = Some(Stamp { time_ms, ..Stamp::default() });
    Action { stamp, user_changes: changes, record_id: time_ms.to_be_bytes().to_vec(), ..Action::default() }
}

/// The user that this names, and nothing more.
fn fresh() -> User {
    let member = user::membership(named(), Stamp::default(), b"r");
    User { identifiers: vec![member], ..User::default() }
}

fn named() -> Identifier {
    Identifier::new("user_id", "1")
}

fn apply(limits: &ActionLimits, user: &mut User, mut action: Action) -> Vec<Refusal> {
    let refused = limits.admit_user(user, &mut action);
    user::apply(user, &named(), &mut action, !refused.device).unwrap();
    refused.refusals
}

fn full(values: usize) -> (ActionLimits, User) {
    let mut user = fresh();
    let changes = (0..values).map(|index| change(&format!("a{index}"), Op::Set(text(100)))).collect();
    assert_eq!(apply(&ActionLimits::default(), &mut user, at(5, changes)), []);
    (ActionLimits { max_bytes: user.size(), ..ActionLimits::default() }, user)
}

#[test]
fn what_fits_to_the_byte_is_admitted_and_one_more_is_not() {
    let (limits, user) = full(3);
    let value = text(50);
    let grown = user.size() + size::name("b") + size::value(Some(&value));
    for (max_bytes, refused) in [(grown, 0), (grown - 1, 1)] {
        let limits = ActionLimits { max_bytes, ..limits.clone() };
        let mut user = user.clone();
        let refusals = apply(&limits, &mut user, at(6, vec![change("b", Op::Set(value.clone()))]));
        assert_eq!((refusals.len(), user.size() == max_bytes), (refused, refused == 0));
        let message = refusals.first().map(|refusal| refusal.message.as_str()).unwrap_or_default();
        assert!(refused == 0 || message.contains(&format!("take {grown} bytes, at most {max_bytes}")), "{message}");
    }
}

#[test]
fn what_does_not_grow_is_admitted_however_large_the_state_is() {
    let (limits, user) = full(3);
    let limits = ActionLimits { max_bytes: limits.max_bytes / 2, ..limits };
    let refused = |time_ms, op: Op| apply(&limits, &mut user.clone(), at(time_ms, vec![change("a1", op)])).len();
    let list = |length| List { items: vec![text(length)] };
    assert_eq!(refused(6, Op::Set(text(100))), 0, "as large as what it replaces");
    assert_eq!((refused(6, Op::Set(text(101))), refused(6, Op::Unset(true))), (1, 0));
    assert_eq!((refused(4, Op::Set(text(200))), refused(4, Op::Add(list(200)))), (0, 0), "older: no effect");
    assert_eq!((refused(5, Op::Set(text(200))), refused(5, Op::Add(list(200)))), (1, 0), "of the same time");
    assert_eq!(refused(6, Op::Add(list(1))), 1);
}

#[test]
fn what_shrinks_makes_room_for_what_comes_in_the_same_record() {
    let (limits, mut user) = full(2);
    let elements = List { items: vec![text(100), text(101), text(102)] };
    let roomy = ActionLimits { max_bytes: limits.max_bytes + 1_000, ..limits };
    assert_eq!(apply(&roomy, &mut user, at(6, vec![change("set", Op::Add(elements))])), []);
    let limits = ActionLimits { max_bytes: user.size(), ..roomy };
    let (anew, more) = (Op::Set(Value::list(vec![text(100)])), Op::Set(text(200)));
    let one = apply(&limits, &mut user.clone(), at(7, vec![change("b", more.clone())]));
    assert_eq!(one.len(), 1);
    let both = vec![change("set", anew), change("z", more)];
    assert_eq!(apply(&limits, &mut user, at(7, both)), []);
}

/// A state of the version before has no bound; that of a user that became part of another one is not known either.
#[test]
fn a_state_whose_size_is_not_known_is_measured() {
    let (limits, mut user) = full(3);
    user.size_bound = 0;
    assert_eq!(apply(&limits, &mut user, at(6, vec![change("b", Op::Set(text(1)))])).len(), 1);
    user::unite(&mut user, full(2).1, None, Vec::new());
    assert_eq!(user.size_bound, 0);
}

#[test]
fn devices_take_room_too() {
    let (limits, user) = full(1);
    let action =
        |time_ms| Action { device_identifiers: vec![Identifier::new("device_id", "d")], ..at(time_ms, vec![]) };
    for (more, refused) in [(size::DEVICE, 0), (size::DEVICE - 1, 1)] {
        let limits = ActionLimits { max_bytes: limits.max_bytes + more, ..limits.clone() };
        let mut user = user.clone();
        assert_eq!(apply(&limits, &mut user, action(6)).len(), refused, "{more}");
        assert_eq!(user.devices.len(), 1 - refused);
        assert_eq!(apply(&limits, &mut user, action(7)).len(), refused, "one that is there needs no room");
    }
}

#[test]
fn the_identifiers_of_a_device_take_room_but_for_its_own_name() {
    let mut action = at(1, vec![]);
    action.device_identifiers = ["a", "b"].map(|value| Identifier::new("device_id", value)).to_vec();
    let limits = ActionLimits { max_bytes: 1, ..ActionLimits::default() };
    let refused = limits.admit_device(&mut DeviceState::default(), &mut action);
    assert_eq!(refused.identifiers, [Identifier::new("device_id", "b")]);
}

fn op() -> impl Strategy<Value = Op> {
    let value = || (0..200usize).prop_map(text);
    let list = move || proptest::collection::vec(value(), 1..4).prop_map(|items| List { items });
    prop_oneof![
        value().prop_map(Op::Set),
        list().prop_map(|list| Op::Set(Value::list(list.items))),
        Just(Op::Unset(true)),
        list().prop_map(Op::Add),
        list().prop_map(Op::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However records come, and however much of the room is left by what went.
    #[test]
    fn the_size_is_below_its_bound_and_both_are_below_the_limit(
        records in proptest::collection::vec((0..4u64, proptest::collection::btree_map("[a-d]", op(), 1..3)), 1..40),
        max_bytes in 2_600..4_000usize,
    ) {
        let (limits, mut user) = (ActionLimits { max_bytes, ..ActionLimits::default() }, fresh());
        for (number, (time_ms, changes)) in (0u64..).zip(records) {
            let changes = changes.into_iter().map(|(name, op)| change(&name, op)).collect();
            // Another record of the same time may win or lose.
            let action = Action { record_id: number.to_be_bytes().to_vec(), ..at(time_ms, changes) };
            apply(&limits, &mut user, action);
            let size = user.size();
            prop_assert!(size <= user.size_bound as usize, "{} > {}", size, user.size_bound);
            prop_assert!(user.size_bound as usize <= max_bytes, "{} > {}", user.size_bound, max_bytes);
        }
    }
}
