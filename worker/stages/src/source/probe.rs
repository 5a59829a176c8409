//! A look at a record without parsing it: the few members that say what it is and whom it is about.
//!
//! Everything else is only checked for syntax. [`Fields`] is how the routing rules look at a record, so that the gateway (with a
//! [`Probe`]) and unify (with the parsed object) come to the same answer.

use super::times;
use millstream_model::proto::{Object, Value};
use millstream_model::reject::{Reason, Refusal};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Members of a record by name.
pub(crate) trait Fields {
    /// A member that is a string or a number.
    fn scalar(&self, name: &str) -> Option<Value>;

    /// The members, strings or numbers, of a member that is an object.
    fn members(&self, name: &str) -> Vec<(String, Value)>;
}

/// The members that [`Probe`] looks at, of all sources; unknown ones are skipped.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, rename = "messageId")]
    segment_message_id: Option<&'a RawValue>,
    #[serde(borrow)]
    message_id: Option<&'a RawValue>,
    #[serde(borrow)]
    request_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "sentAt")]
    sent_at: Option<&'a RawValue>,
    #[serde(borrow, rename = "anonymousId")]
    anonymous_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "userId")]
    user_id: Option<&'a RawValue>,
    #[serde(borrow, rename = "previousId")]
    previous_id: Option<&'a RawValue>,
    #[serde(borrow)]
    customer_id: Option<&'a RawValue>,
    #[serde(borrow)]
    device_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user_identifiers: Option<&'a RawValue>,
    #[serde(borrow)]
    retained_user: Option<&'a RawValue>,
    #[serde(borrow)]
    merged_user: Option<&'a RawValue>,
    #[serde(borrow)]
    identity_type: Option<&'a RawValue>,
    #[serde(borrow)]
    identity_value: Option<&'a RawValue>,
    #[serde(borrow)]
    identifiers: Option<&'a RawValue>,
    #[serde(borrow)]
    retained: Option<&'a RawValue>,
    #[serde(borrow)]
    merged: Option<&'a RawValue>,
}

/// A record that was looked at.
pub(crate) struct Probe<'a> {
    /// The record's own text.
    pub(crate) json: &'a str,
    members: Members<'a>,
}

impl<'a> Probe<'a> {
    /// Looks at a record.
    ///
    /// # Errors
    /// Not JSON, not an object, or one of the members looked at occurs twice.
    pub(crate) fn read(json: &'a str) -> Result<Probe<'a>, Refusal> {
        let json = json.trim_matches([' ', '\t', '\r', '\n']);
        match serde_json::from_str(json) {
            Ok(members) if json.starts_with('{') => Ok(Probe { json, members }),
            Err(error) if json.starts_with('{') || !error.is_data() => Err(malformed(&error)),
            _ => Err(Refusal::new(Reason::WrongType, "a record must be a JSON object `{...}`")),
        }
    }

    /// What the record calls itself.
    pub(crate) fn kind(&self) -> Option<String> {
        scalar(self.members.kind?)?.as_str().map(str::to_owned)
    }

    /// The message id that the sender gave it.
    ///
    /// # Errors
    /// It is too long, or neither a string nor an integer.
    pub(crate) fn message_id(&self, max_chars: usize) -> Result<Option<String>, Refusal> {
        let members = &self.members;
        let named = [
            ("messageId", members.segment_message_id),
            ("message_id", members.message_id),
            ("request_id", members.request_id),
        ];
        let present =
            named.iter().find_map(|(name, raw)| Some((*name, (*raw)?))).filter(|(_, raw)| raw.get() != "null");
        let Some((field, raw)) = present else { return Ok(None) };
        if raw.get().starts_with('"')
            && scalar(raw).is_some_and(|value| value.as_str().is_some_and(|id| id.trim().is_empty()))
        {
            return Ok(None);
        }
        let id = scalar(raw).and_then(|value| super::identity::identifier("message_id", &value));
        let Some(id) = id else {
            let message = "the message id must be a string or an integer";
            return Err(Refusal::field(Reason::WrongType, field, message));
        };
        if id.value.chars().count() > max_chars {
            let message =
                format!("the message id is longer than {max_chars} characters; send a shorter one, for example a UUID");
            return Err(Refusal::field(Reason::TooLarge, field, message));
        }
        Ok(Some(id.value))
    }

    /// The sender's clock when it sent the record, if the record itself says so.
    pub(crate) fn sent_ms(&self) -> Option<i64> {
        times::instant(&scalar(self.members.sent_at?)?)
    }

    fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let members = &self.members;
        match name {
            "anonymousId" => members.anonymous_id,
            "userId" => members.user_id,
            "previousId" => members.previous_id,
            "customer_id" => members.customer_id,
            "device_id" => members.device_id,
            "user_identifiers" => members.user_identifiers,
            "retained_user" => members.retained_user,
            "merged_user" => members.merged_user,
            "identity_type" => members.identity_type,
            "identity_value" => members.identity_value,
            "identifiers" => members.identifiers,
            "retained" => members.retained,
            "merged" => members.merged,
            _ => None,
        }
    }
}

impl Fields for Probe<'_> {
    fn scalar(&self, name: &str) -> Option<Value> {
        scalar(self.raw(name)?)
    }

    fn members(&self, name: &str) -> Vec<(String, Value)> {
        let Some(raw) = self.raw(name).filter(|raw| raw.get().starts_with('{')) else { return Vec::new() };
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(raw.get()).unwrap_or_default();
        members.into_iter().filter_map(|(name, raw)| Some((name, scalar(raw)?))).collect()
    }
}

impl Fields for Object {
    fn scalar(&self, name: &str) -> Option<Value> {
        self.get(name).filter(|value| is_scalar(value)).cloned()
    }

    fn members(&self, name: &str) -> Vec<(String, Value)> {
        let object = self.get(name).and_then(Value::as_object);
        let pairs = object.into_iter().flat_map(Object::pairs).filter(|(_, value)| is_scalar(value));
        pairs.map(|(name, value)| (name.to_owned(), value.clone())).collect()
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value.type_name(), "string" | "integer" | "float")
}

/// The value of a string or number; anything else, and text that is no Unicode (lone surrogates), is `None`.
pub(crate) fn scalar(raw: &RawValue) -> Option<Value> {
    let starts_scalar = raw.get().starts_with(|first: char| first == '"' || first == '-' || first.is_ascii_digit());
    if starts_scalar { serde_json::from_str(raw.get()).ok() } else { None }
}

/// Levels of objects and lists in JSON text.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// The refusal of what is not JSON; line and column are in the error's text.
pub(crate) fn malformed(error: &serde_json::Error) -> Refusal {
    Refusal::new(Reason::MalformedJson, format!("not valid JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_are_no_nesting() {
        assert_eq!(depth(r#"{"a":"[[[","b\\":[{"c":"\"[[["}]}"#), 3);
        assert_eq!(depth(r#"{"a\\\"[":"}}","b":[]}"#), 2);
        assert_eq!(depth("5"), 0);
    }

    #[test]
    fn a_probe_and_the_parsed_object_show_the_same_members() {
        let json = r#"{"userId":42,"customer_id":-0,"identifiers":{"a":"x","b":1.5,"c":null,"d":{"e":1}},"device_id":true,"\u0061nonymousId":"a"}"#;
        let (probe, parsed) = (Probe::read(json).unwrap(), serde_json::from_str::<Value>(json).unwrap());
        let object = parsed.as_object().unwrap();
        for name in ["userId", "customer_id", "identifiers", "device_id", "anonymousId", "absent"] {
            assert_eq!(probe.scalar(name), object.scalar(name), "{name}");
            assert_eq!(probe.members(name), object.members(name), "{name}");
        }
        assert_eq!(probe.members("identifiers").len(), 2);
        assert_eq!(probe.scalar("anonymousId"), Some(Value::string("a")));
    }
}
