//! An action as JSON that a person can read and send again: a record in the shape of the native source (docs/src/reference/sources.md).
//!
//! Two things have no member there, and are written all the same, so that nothing is lost: `unset_matching`, and several values of one
//! identifier type, which are a list. The message id is left out on purpose: a record that is sent again with the same one is a duplicate.

use crate::proto::change::Op;
use crate::proto::{Action, Change, Event, Identifier, List, Match, r#match::Kind as MatchKind};
use crate::value::format_time;
use serde::Serialize;
use serde_json::{Map, Value as Json, json};

/// The action, and whether something of it is missing: what would make it longer than `most` bytes is left out, element by element; who it is
/// about is written first.
pub fn readable(action: &Action, most: usize) -> (Json, bool) {
    let mut room = Room { left: most, cut: false };
    let mut shown = Map::new();
    shown.insert("type".into(), json!(kind(action)));
    shown.insert("time".into(), json!(format_time(action.time_ms)));
    if action.update_existing_only {
        shown.insert("update_existing_only".into(), json!(true));
    }
    who(action, &mut shown, &mut room);
    if let Some(event) = &action.event {
        what_happened(event, &mut shown, &mut room);
    }
    changes(&action.user_changes, &mut shown, &mut room);
    let mut device = Map::new();
    changes(&action.device_changes, &mut device, &mut room);
    if kind(action) == "device" {
        shown.append(&mut device);
    } else if !device.is_empty() {
        shown.insert("device".into(), Json::Object(device));
    }
    (Json::Object(shown), room.cut)
}

/// What the native source calls such a record.
fn kind(action: &Action) -> &'static str {
    match action {
        Action { merge: Some(_), .. } => "merge",
        Action { delete: true, .. } => "delete",
        Action { event: Some(_), .. } => "event",
        _ if action.user_identifiers.is_empty() && action.user_changes.is_empty() => "device",
        _ => "user",
    }
}

struct Room {
    left: usize,
    cut: bool,
}

impl Room {
    /// The value as JSON when there is room for it and its name.
    fn take(&mut self, name: &str, value: &impl Serialize) -> Option<Json> {
        // Nothing that an action holds fails to be JSON.
        let value = serde_json::to_value(value).unwrap_or_default();
        let bytes = json!({name: value}).to_string().len() + 1;
        let fits = bytes <= self.left;
        self.left -= if fits { bytes } else { 0 };
        self.cut |= !fits;
        fits.then_some(value)
    }
}

/// The identifiers; of a merge those besides its two.
fn who(action: &Action, shown: &mut Map<String, Json>, room: &mut Room) {
    let pair = |identifier: &Identifier| json!({"type": identifier.r#type, "value": identifier.value});
    let merge = action.merge.clone().unwrap_or_default();
    for (name, side) in [("retained", &merge.retained), ("merged", &merge.merged)] {
        let side = side.as_ref().and_then(|identifier| room.take(name, &pair(identifier)));
        shown.extend(side.map(|side| (name.to_owned(), side)));
    }
    let mut identifiers = Map::new();
    let all = action.user_identifiers.iter().chain(&action.device_identifiers);
    for identifier in all.filter(|one| ![&merge.retained, &merge.merged].contains(&&Some((*one).clone()))) {
        let Some(value) = room.take(&identifier.r#type, &identifier.value) else { continue };
        match identifiers.get_mut(&identifier.r#type) {
            None => drop(identifiers.insert(identifier.r#type.clone(), value)),
            Some(Json::Array(values)) => values.push(value),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    if !identifiers.is_empty() {
        shown.insert("identifiers".into(), Json::Object(identifiers));
    }
}

fn what_happened(event: &Event, shown: &mut Map<String, Json>, room: &mut Room) {
    shown.extend(room.take("event", &event.name).map(|name| ("event".to_owned(), name)));
    let properties = event.properties.iter();
    let properties = properties.filter_map(|it| Some((it.name.clone(), room.take(&it.name, it.value.as_ref()?)?)));
    let properties: Map<String, Json> = properties.collect();
    if !properties.is_empty() {
        shown.insert("properties".into(), Json::Object(properties));
    }
}

/// `set`, `unset`, `add`, `remove`, `unset_matching`.
fn changes(changes: &[Change], shown: &mut Map<String, Json>, room: &mut Room) {
    for Change { name, op } in changes {
        let (verb, value) = match op {
            Some(Op::Set(value)) => ("set", room.take(name, value)),
            Some(Op::Add(list)) => ("add", room.take(name, &items(list))),
            Some(Op::Remove(list)) => ("remove", room.take(name, &items(list))),
            Some(Op::Unset(_)) => {
                put_last(shown, "unset", room.take("", name));
                continue;
            }
            Some(Op::UnsetMatching(pattern)) => {
                put_last(shown, "unset_matching", room.take("", &matching(pattern)));
                continue;
            }
            None => continue,
        };
        let object = shown.entry(verb).or_insert_with(|| json!({})).as_object_mut();
        if let (Some(object), Some(value)) = (object, value) {
            object.insert(name.clone(), value);
        }
    }
}

fn put_last(shown: &mut Map<String, Json>, verb: &str, value: Option<Json>) {
    let list = shown.entry(verb).or_insert_with(|| json!([])).as_array_mut();
    if let (Some(list), Some(value)) = (list, value) {
        list.push(value);
    }
}

fn items(list: &List) -> &[crate::proto::Value] {
    &list.items
}

fn matching(pattern: &Match) -> Json {
    let kind = match pattern.kind() {
        MatchKind::Unspecified => "unspecified",
        MatchKind::Prefix => "prefix",
        MatchKind::Suffix => "suffix",
        MatchKind::Contains => "contains",
        MatchKind::Equals => "equals",
    };
    json!({"kind": kind, "pattern": pattern.pattern, "case_sensitive": pattern.case_sensitive})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Member, Merge, Value};

    fn id(text: &str) -> Identifier {
        crate::identifier::parse(text).unwrap()
    }

    fn change(name: &str, op: Op) -> Change {
        Change { name: name.into(), op: Some(op) }
    }

    fn list(items: &[&str]) -> List {
        List { items: items.iter().map(|item| Value::string(*item)).collect() }
    }

    #[test]
    fn everything_in_an_action_is_shown() {
        let pattern = Match { kind: MatchKind::Prefix.into(), pattern: "plan_".into(), case_sensitive: true };
        let properties = vec![Member { name: "total".into(), value: Some(Value::float(1.5)) }];
        let action = Action {
            user_identifiers: vec![id("user_id=42"), id("email=a@b"), id("email=c@d")],
            device_identifiers: vec![id("device_id=d1")],
            time_ms: 1_700_000_000_123,
            user_changes: vec![
                change("", Op::UnsetMatching(pattern)),
                change("since", Op::Set(Value::timestamp(0))),
                change("old", Op::Unset(true)),
                change("tags", Op::Add(list(&["a", "b"]))),
                change("tags", Op::Remove(list(&["c"]))),
            ],
            device_changes: vec![change("os", Op::Set(Value::string("16")))],
            event: Some(Event { name: "Paid".into(), properties }),
            update_existing_only: true,
            ..Action::default()
        };
        let expected = json!({
            "type": "event", "time": "2023-11-14T22:13:20.123Z", "update_existing_only": true,
            "identifiers": {"user_id": "42", "email": ["a@b", "c@d"], "device_id": "d1"},
            "event": "Paid", "properties": {"total": 1.5},
            "set": {"since": "1970-01-01T00:00:00Z"}, "unset": ["old"], "add": {"tags": ["a", "b"]}, "remove": {"tags": ["c"]},
            "unset_matching": [{"kind": "prefix", "pattern": "plan_", "case_sensitive": true}],
            "device": {"set": {"os": "16"}},
        });
        assert_eq!(readable(&action, 10_000), (expected, false));
    }

    #[test]
    fn each_kind_has_the_native_name_and_members() {
        let about = Action { user_identifiers: vec![id("user_id=1"), id("email=a@b")], ..Action::default() };
        let merge = Merge { retained: Some(id("user_id=1")), merged: Some(id("email=a@b")) };
        let merge = Action { merge: Some(merge), ..about.clone() };
        let time = "1970-01-01T00:00:00Z";
        let pair = |kind: &str, value: &str| json!({"type": kind, "value": value});
        let expected =
            json!({"type": "merge", "time": time, "retained": pair("user_id", "1"), "merged": pair("email", "a@b")});
        assert_eq!(readable(&merge, 1_000).0, expected);
        let identifiers = json!({"user_id": "1", "email": "a@b"});
        let delete = Action { delete: true, ..about.clone() };
        assert_eq!(readable(&delete, 1_000).0, json!({"type": "delete", "time": time, "identifiers": identifiers}));
        assert_eq!(readable(&about, 1_000).0, json!({"type": "user", "time": time, "identifiers": identifiers}));
        let device_changes = vec![change("os", Op::Unset(true))];
        let device = Action { device_identifiers: vec![id("idfv=d")], device_changes, ..Action::default() };
        let expected = json!({"type": "device", "time": time, "identifiers": {"idfv": "d"}, "unset": ["os"]});
        assert_eq!(readable(&device, 1_000).0, expected);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_that_is_said() {
        let changes = ["a", "b", "c"].map(|name| change(name, Op::Set(Value::string("x".repeat(100)))));
        let action =
            Action { user_identifiers: vec![id("user_id=1")], user_changes: changes.to_vec(), ..Action::default() };
        let (json, cut) = readable(&action, 250);
        assert!(cut);
        assert_eq!(json["set"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(json["identifiers"], json!({"user_id": "1"}));
        assert!(!readable(&action, 400).1);
    }
}
