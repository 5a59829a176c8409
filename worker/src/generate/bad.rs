//! Records that must be refused, each with the reason that its sender must be told.
//!
//! They carry identifiers and attributes as good records do, so that one that slips through shows up as a person nobody expects.

use super::rng::Rng;
use millstream_model::proto::Source;
use millstream_model::reject::Reason;
use millstream_model::value::format_time;
use serde_json::{Map, Value, json};

const DAY: i64 = 24 * 3_600_000;

/// Who says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// The gateway, in its answer: the record is not in `ingress`.
    Gateway,
    /// A stage: the record was accepted, and is in `rejects`.
    Stage,
}

/// A record that must be refused.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bad {
    /// The line to send.
    pub(super) line: String,
    /// Who refuses it.
    pub(super) by: By,
    /// With this reason.
    pub(super) reason: Reason,
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fault {
    CutOff,
    NoIdentifier,
    TooDeep,
    MessageIdObject,
    UnknownType,
    ForbiddenIdentifier,
    NoEventName,
    EventNameNumber,
    PropertiesText,
    TooOld,
    InFuture,
    MergeWithSelf,
}

const FAULTS: [Fault; 12] = [
    Fault::CutOff,
    Fault::NoIdentifier,
    Fault::TooDeep,
    Fault::MessageIdObject,
    Fault::UnknownType,
    Fault::ForbiddenIdentifier,
    Fault::NoEventName,
    Fault::EventNameNumber,
    Fault::PropertiesText,
    Fault::TooOld,
    Fault::InFuture,
    Fault::MergeWithSelf,
];

impl Fault {
    fn of(rng: &mut Rng, source: Source) -> Fault {
        let index = rng.below(FAULTS.len() as u64) as usize;
        match FAULTS.get(index).copied().unwrap_or(Fault::NoIdentifier) {
            // Cut-off text can only be sent line by line.
            Fault::CutOff if source != Source::Native => Fault::NoIdentifier,
            // Segment's alias always names an anonymous id and a user id.
            Fault::MergeWithSelf if source == Source::Segment => Fault::NoEventName,
            // The data API's lines have no unknown type: an endpoint says what they are.
            Fault::UnknownType if source == Source::DataApi => Fault::TooOld,
            fault => fault,
        }
    }

    fn outcome(self) -> (By, Reason) {
        match self {
            Fault::CutOff => (By::Gateway, Reason::MalformedJson),
            Fault::NoIdentifier => (By::Gateway, Reason::MissingIdentifier),
            Fault::TooDeep => (By::Gateway, Reason::TooDeep),
            Fault::MessageIdObject => (By::Gateway, Reason::WrongType),
            Fault::UnknownType => (By::Stage, Reason::UnknownType),
            Fault::ForbiddenIdentifier => (By::Stage, Reason::ForbiddenIdentifier),
            Fault::NoEventName => (By::Stage, Reason::MissingField),
            Fault::EventNameNumber | Fault::PropertiesText => (By::Stage, Reason::WrongType),
            Fault::TooOld => (By::Stage, Reason::TooOld),
            Fault::InFuture => (By::Stage, Reason::InFuture),
            Fault::MergeWithSelf => (By::Stage, Reason::InvalidMerge),
        }
    }
}

/// A bad record in the shape of a source; `now` in milliseconds since 1970.
pub(super) fn bad(rng: &mut Rng, source: Source, now: i64) -> Bad {
    let fault = Fault::of(rng, source);
    let draft = Draft::new(rng, fault, now);
    let record = match source {
        Source::Segment => segment(&draft),
        Source::DataApi => data_api(&draft),
        Source::Native | Source::Unspecified => native(&draft),
    };
    let mut line = Value::Object(record).to_string();
    if fault == Fault::CutOff {
        line.truncate(line.len() - 3);
    }
    let (by, reason) = fault.outcome();
    Bad { line, by, reason }
}

struct Draft {
    fault: Fault,
    message_id: Value,
    /// `None` when the fault is that there is none.
    who: Option<String>,
    name: Value,
    time: String,
    properties: Value,
}

impl Draft {
    fn new(rng: &mut Rng, fault: Fault, now: i64) -> Draft {
        let message_id = rng.uuid();
        let stranger = format!("stranger-{}", rng.uuid());
        let time = match fault {
            Fault::TooOld => now - rng.between(60 * DAY, 20_000 * DAY),
            Fault::InFuture => now + rng.between(3 * DAY, 9_000 * DAY),
            _ => now - rng.between(DAY, 2 * DAY),
        };
        Draft {
            fault,
            message_id: if fault == Fault::MessageIdObject { json!({"id": message_id}) } else { json!(message_id) },
            who: match fault {
                Fault::NoIdentifier => None,
                Fault::ForbiddenIdentifier => Some(rng.pick(&["null", "undefined", "Guest", "[object Object]"]).into()),
                _ => Some(stranger),
            },
            name: if fault == Fault::EventNameNumber { json!(rng.between(10, 99)) } else { json!("Bad Record") },
            time: format_time(time),
            properties: match fault {
                Fault::PropertiesText => json!("price=1"),
                Fault::TooDeep => (0..20).fold(json!({"price": 1}), |inner, _| json!({"inner": inner})),
                _ => json!({"price": 1}),
            },
        }
    }
}

fn native(draft: &Draft) -> Map<String, Value> {
    let who = draft.who.as_ref().map(|who| ("user_id".to_owned(), json!(who)));
    let identifiers: Map<String, Value> = who.into_iter().collect();
    if draft.fault == Fault::MergeWithSelf {
        let same = json!({"type": "user_id", "value": draft.who});
        return object(json!({"type": "merge", "message_id": draft.message_id, "retained": same, "merged": same}));
    }
    let kind = if draft.fault == Fault::UnknownType { "evnet" } else { "event" };
    let mut record = object(json!({"type": kind, "message_id": draft.message_id, "identifiers": identifiers,
        "time": draft.time, "event": draft.name, "properties": draft.properties, "set": {"slipped_through": true}}));
    if draft.fault == Fault::NoEventName {
        record.remove("event");
    }
    record
}

fn segment(draft: &Draft) -> Map<String, Value> {
    let kind = if draft.fault == Fault::UnknownType { "trakc" } else { "track" };
    let mut record = object(json!({"type": kind, "messageId": draft.message_id, "userId": draft.who,
        "timestamp": draft.time, "event": draft.name, "properties": draft.properties}));
    if draft.fault == Fault::NoEventName {
        record.remove("event");
    }
    record
}

fn data_api(draft: &Draft) -> Map<String, Value> {
    if draft.fault == Fault::MergeWithSelf {
        return object(json!({"merged_user": draft.who, "retained_user": draft.who, "message_id": draft.message_id}));
    }
    let mut action = object(json!({"action": draft.name, "attributes": draft.properties, "user_time": draft.time}));
    if draft.fault == Fault::NoEventName {
        action.remove("action");
    }
    object(json!({"type": "event", "customer_id": draft.who, "actions": [action], "message_id": draft.message_id}))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_that_a_source_can_have_is_made() {
        for (source, kinds) in [(Source::Native, 12), (Source::Segment, 10), (Source::DataApi, 10)] {
            let mut rng = Rng::new(5);
            let made: std::collections::HashSet<Fault> = (0..500).map(|_| Fault::of(&mut rng, source)).collect();
            assert_eq!(made.len(), kinds, "{source:?}: {made:?}");
        }
    }

    #[test]
    fn only_cut_off_text_is_no_json() {
        let mut rng = Rng::new(5);
        for _ in 0..500 {
            let bad = bad(&mut rng, Source::Native, 1_700_000_000_000);
            assert_eq!(serde_json::from_str::<Value>(&bad.line).is_err(), bad.reason == Reason::MalformedJson);
        }
    }
}
