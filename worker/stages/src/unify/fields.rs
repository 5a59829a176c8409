//! Typed access to the members of a record, with refusals that name the field and the type found.

use millstream_model::proto::{Object, Value, value::Kind};
use millstream_model::reject::{Reason, Refusal};

/// The dotted path of a member.
pub(super) fn path(parent: &str, member: &str) -> String {
    if parent.is_empty() { member.to_owned() } else { format!("{parent}.{member}") }
}

fn wrong(parent: &str, member: &str, expected: &str, value: &Value) -> Refusal {
    let field = path(parent, member);
    let message = format!("`{field}` must be {expected}, it is of type {}", value.type_name());
    Refusal::field(Reason::WrongType, field, message)
}

fn present<'a>(object: &'a Object, member: &str) -> Option<&'a Value> {
    object.get(member).filter(|value| !value.is_null())
}

/// A member that is a string; blank strings and null count as absent.
pub(super) fn string<'a>(object: &'a Object, parent: &str, member: &str) -> Result<Option<&'a str>, Refusal> {
    let Some(value) = present(object, member) else { return Ok(None) };
    let text = value.as_str().ok_or_else(|| wrong(parent, member, "a string", value))?.trim();
    Ok((!text.is_empty()).then_some(text))
}

/// A member that must be a string which is not blank.
pub(super) fn required_string<'a>(object: &'a Object, parent: &str, member: &str) -> Result<&'a str, Refusal> {
    string(object, parent, member)?.ok_or_else(|| missing(parent, member, "a string that is not blank"))
}

/// The refusal of a record that lacks a member.
pub(super) fn missing(parent: &str, member: &str, expected: &str) -> Refusal {
    let field = path(parent, member);
    let message = format!("`{field}` is missing; send {expected}");
    Refusal::field(Reason::MissingField, field, message)
}

/// A member that is an object.
pub(super) fn object<'a>(object: &'a Object, parent: &str, member: &str) -> Result<Option<&'a Object>, Refusal> {
    let Some(value) = present(object, member) else { return Ok(None) };
    value.as_object().map(Some).ok_or_else(|| wrong(parent, member, "an object", value))
}

/// Takes out a member that is an object; an absent one is empty.
pub(super) fn take_object(object: &mut Object, parent: &str, member: &str) -> Result<Object, Refusal> {
    match object.take(member) {
        Some(Value { kind: Some(Kind::Object(inner)) }) => Ok(inner),
        Some(value) if !value.is_null() => Err(wrong(parent, member, "an object", &value)),
        _ => Ok(Object::default()),
    }
}

/// Takes out a member that is a list; an absent one is empty.
pub(super) fn take_list(object: &mut Object, parent: &str, member: &str) -> Result<Vec<Value>, Refusal> {
    match object.take(member) {
        Some(Value { kind: Some(Kind::List(list)) }) => Ok(list.items),
        Some(value) if !value.is_null() => Err(wrong(parent, member, "a list", &value)),
        _ => Ok(Vec::new()),
    }
}

/// A member that is a boolean; absent is `default`.
pub(super) fn boolean(object: &Object, parent: &str, member: &str, default: bool) -> Result<bool, Refusal> {
    match present(object, member) {
        None => Ok(default),
        Some(Value { kind: Some(Kind::Boolean(value)) }) => Ok(*value),
        Some(value) => Err(wrong(parent, member, "true or false", value)),
    }
}

/// An item of a list that must be an object.
pub(super) fn item(parent: &str, index: usize, value: Value) -> Result<Object, Refusal> {
    match value.kind {
        Some(Kind::Object(object)) => Ok(object),
        _ => Err(wrong("", &format!("{parent}[{index}]"), "an object", &value)),
    }
}
