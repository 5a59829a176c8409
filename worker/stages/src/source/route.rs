//! The routing identifier: by whose key group a record chooses its partition (I3).
//!
//! The stickiest identifier that the record carries, because what repeats in every record of one person keeps that person's records in
//! one partition. A value that names nobody ([`identity::is_forbidden`]) routes only when there is nothing better; unify then rejects it.
//!
//! | source | record | routed by the first of |
//! |---|---|---|
//! | native | merge | retained, merged |
//! | native | any other | anonymous_id, device identifiers, user_id, email, phone, other types by name |
//! | data API | merge | retained_user, merged_user |
//! | data API | delete | identity_value |
//! | data API | any other | customer_id, user_identifiers (anonymous_id, user_id, email, phone, ...), device_id |
//! | Segment | alias | userId, previousId (as anonymous_id) |
//! | Segment | any other | anonymousId, userId |

use super::identity;
use super::probe::Fields;
use millstream_model::proto::{Identifier, Source, Value};
use millstream_model::reject::{Reason, Refusal};

const NATIVE: [&str; 5] = ["event", "user", "device", "merge", "delete"];
const DATA_API: [&str; 5] = ["customer", "event", "device", "merge", "delete"];
const SEGMENT: [&str; 6] = ["identify", "track", "page", "screen", "group", "alias"];

/// The kinds of records that a source knows.
pub(crate) fn kinds(source: Source) -> &'static [&'static str] {
    match source {
        Source::Native => &NATIVE,
        Source::DataApi => &DATA_API,
        Source::Segment => &SEGMENT,
        Source::Unspecified => &[],
    }
}

/// The kind that a record calls itself, or [`super::UNKNOWN_KIND`]: kinds are names of spans and metrics, so their number is bounded.
pub(crate) fn known_kind(source: Source, kind: Option<&str>) -> &'static str {
    let known = kinds(source).iter().find(|known| Some(**known) == kind);
    known.copied().unwrap_or(super::UNKNOWN_KIND)
}

/// The routing identifier of a record.
///
/// # Errors
/// The record has none.
pub(crate) fn route(source: Source, kind: &str, record: &impl Fields) -> Result<Identifier, Refusal> {
    let candidates = candidates(source, kind, record);
    let usable = candidates.iter().find(|candidate| !identity::is_forbidden(&candidate.value));
    usable.or(candidates.first()).cloned().ok_or_else(|| missing(source, kind))
}

fn candidates(source: Source, kind: &str, record: &impl Fields) -> Vec<Identifier> {
    let named = |kind: &str, name: &str| record.scalar(name).and_then(|value| identity::identifier(kind, &value));
    match (source, kind) {
        (Source::Segment, "alias") => {
            named("user_id", "userId").into_iter().chain(named("anonymous_id", "previousId")).collect()
        }
        (Source::Segment, _) => {
            named("anonymous_id", "anonymousId").into_iter().chain(named("user_id", "userId")).collect()
        }
        (Source::DataApi, "merge") => {
            named("user_id", "retained_user").into_iter().chain(named("user_id", "merged_user")).collect()
        }
        (Source::DataApi, "delete") => {
            let kind = record.scalar("identity_type").and_then(|kind| kind.as_str().map(data_api_type));
            kind.and_then(|kind| named(&kind, "identity_value")).into_iter().collect()
        }
        (Source::DataApi, _) => {
            let others = sorted(&record.members("user_identifiers"), data_api_type);
            named("user_id", "customer_id").into_iter().chain(others).chain(named("device_id", "device_id")).collect()
        }
        (Source::Native, "merge") => {
            ["retained", "merged"].iter().filter_map(|name| typed(&record.members(name))).collect()
        }
        (Source::Native | Source::Unspecified, _) => sorted(&record.members("identifiers"), str::to_owned),
    }
}

/// What the data API's identity types are called here.
pub(crate) fn data_api_type(name: &str) -> String {
    match name.trim() {
        "customer_id" | "uid" | "user_id" => "user_id",
        "mobile" | "mobile_number" | "phone_number" => "phone",
        "email_id" | "email" => "email",
        other => other,
    }
    .to_owned()
}

/// An identifier written as `{type, value}`.
fn typed(members: &[(String, Value)]) -> Option<Identifier> {
    let member = |wanted: &str| members.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    identity::identifier(member("type")?.as_str()?.trim(), member("value")?)
}

/// A map of identifiers, the one to route by first: anonymous ids, then devices, then the rest by rank.
fn sorted(members: &[(String, Value)], rename: impl Fn(&str) -> String) -> Vec<Identifier> {
    let identifiers = members.iter().filter_map(|(name, value)| identity::identifier(&rename(name), value));
    let mut identifiers: Vec<Identifier> =
        identifiers.filter(|identifier| identity::is_type_name(&identifier.r#type)).collect();
    identifiers.sort_by(|left, right| order(left).cmp(&order(right)));
    identifiers
}

fn order(identifier: &Identifier) -> (u8, (usize, &str, &str)) {
    let class = match identifier.r#type.as_str() {
        "anonymous_id" => 0,
        _ if identifier.names_device() => 1,
        _ => 2,
    };
    (class, identifier.rank())
}

fn missing(source: Source, kind: &str) -> Refusal {
    let (field, message) = match (source, kind) {
        (Source::Segment, "alias") => ("userId", "an alias needs `userId` and `previousId`"),
        (Source::Segment, _) => ("userId", "send `userId` or `anonymousId`, a string that is not blank"),
        (Source::DataApi, "merge") => ("retained_user", "send `retained_user` and `merged_user`, both customer ids"),
        (Source::DataApi, "delete") => ("identity_value", "send `identity_type` and `identity_value`"),
        (Source::DataApi, _) => ("customer_id", "send `customer_id`, a string that is not blank"),
        (_, "merge") => ("retained", "send `retained` and `merged`, each with `type` and `value`"),
        _ => ("identifiers", "send `identifiers` with at least one, for example {\"user_id\": \"42\"}"),
    };
    Refusal::field(Reason::MissingIdentifier, field, format!("the record names nobody: {message}"))
}
