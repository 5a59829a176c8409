//! Rejects: records that will not be processed, each with its reason and its original bytes (I2).

use serde::{Deserialize, Serialize};

/// Why a record was rejected. The code is public: it is in `rejects`, in answers, in metrics and in the docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not JSON, or JSON that Millstream refuses to read (a member twice, too deep).
    MalformedJson,
    /// The record's type is none that its source knows.
    UnknownType,
    /// A required field is missing or empty.
    MissingField,
    /// A field has the wrong type.
    WrongType,
    /// A field's value is not allowed.
    InvalidValue,
    /// No identifier that names a user or a device.
    MissingIdentifier,
    /// An identifier value that everybody shares by mistake (null, unknown, 0, ...).
    ForbiddenIdentifier,
    /// A name, value, list, object or the whole record is larger than its limit.
    TooLarge,
    /// Objects or lists nested deeper than allowed.
    TooDeep,
    /// Happened too long ago.
    TooOld,
    /// Happened in the future.
    InFuture,
    /// The record is older than the deletion of its user.
    UserDeleted,
    /// The record was only for an existing user, and there is none.
    UserUnknown,
    /// A merge of a user with itself, or of something that is not a user.
    InvalidMerge,
    /// Could not be resolved within the bounded number of hops.
    Unresolved,
    /// Written to `ingress` by someone else, for the wrong partition or an unknown tenant.
    Misrouted,
    /// The document store refuses the write for good.
    DocumentRefused,
}

impl Reason {
    /// All of them, for metrics and docs.
    pub const ALL: [Reason; 17] = [
        Reason::MalformedJson,
        Reason::UnknownType,
        Reason::MissingField,
        Reason::WrongType,
        Reason::InvalidValue,
        Reason::MissingIdentifier,
        Reason::ForbiddenIdentifier,
        Reason::TooLarge,
        Reason::TooDeep,
        Reason::TooOld,
        Reason::InFuture,
        Reason::UserDeleted,
        Reason::UserUnknown,
        Reason::InvalidMerge,
        Reason::Unresolved,
        Reason::Misrouted,
        Reason::DocumentRefused,
    ];

    /// Its public code.
    pub fn code(self) -> &'static str {
        match self {
            Reason::MalformedJson => "malformed_json",
            Reason::UnknownType => "unknown_type",
            Reason::MissingField => "missing_field",
            Reason::WrongType => "wrong_type",
            Reason::InvalidValue => "invalid_value",
            Reason::MissingIdentifier => "missing_identifier",
            Reason::ForbiddenIdentifier => "forbidden_identifier",
            Reason::TooLarge => "too_large",
            Reason::TooDeep => "too_deep",
            Reason::TooOld => "too_old",
            Reason::InFuture => "in_future",
            Reason::UserDeleted => "user_deleted",
            Reason::UserUnknown => "user_unknown",
            Reason::InvalidMerge => "invalid_merge",
            Reason::Unresolved => "unresolved",
            Reason::Misrouted => "misrouted",
            Reason::DocumentRefused => "document_refused",
        }
    }
}

/// What is wrong with a record: a reason, the field (dotted path) and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", reason.code())]
pub struct Refusal {
    /// The reason code.
    pub reason: Reason,
    /// Dotted path of the field, when one is to blame.
    pub field: Option<String>,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A refusal of the whole record.
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, field: None, message: message.into() }
    }

    /// A refusal because of one field.
    pub fn field(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { reason, field: Some(field.into()), message: message.into() }
    }
}

/// The most original bytes that a reject carries: written as hexadecimal or as escaped JSON they must still fit into a message of 1 MB.
pub const MAX_ORIGINAL: usize = 300_000;

/// A reject as the topic `rejects` carries it, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Deterministic: the same record has the same id however often it is processed (hexadecimal).
    pub id: String,
    /// Whose record it was.
    pub tenant: String,
    /// native, data_api, segment.
    pub source: String,
    /// What the source calls the record: identify, event, ...
    pub kind: String,
    /// The stage that rejected it: unify, action, reaction.
    pub stage: String,
    /// Why.
    pub reason: Reason,
    /// Dotted path of the field to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
    /// The record's message id.
    pub message_id: String,
    /// When the record entered the log, RFC 3339.
    pub time: String,
    /// The record's own bytes are longer than a message of the log takes comfortably; these are the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The record's own bytes, when they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// The record's own bytes in hexadecimal, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_hex: Option<String>,
}

impl Reject {
    /// Keeps the original bytes in the field that can hold them; of more than [`MAX_ORIGINAL`] the first.
    pub fn with_original(mut self, bytes: &[u8]) -> Reject {
        self.truncated = bytes.len() > MAX_ORIGINAL;
        let mut end = bytes.len().min(MAX_ORIGINAL);
        // Text is not cut within a character.
        while self.truncated && end > 0 && bytes.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
            end -= 1;
        }
        let bytes = bytes.get(..end).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => self.original = Some(text.to_owned()),
            Err(_) => self.original_hex = Some(crate::id::hex(bytes)),
        }
        self
    }
}

/// CloudEvents type of rejects.
pub const CLOUD_EVENT_TYPE: &str = "dev.millstream.reject.v1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_is_kept_as_far_as_it_fits() {
        let json = r#"{"id":"","tenant":"","source":"","kind":"","stage":"","reason":"too_old","message":"","message_id":"","time":""}"#;
        let reject = |bytes: &[u8]| serde_json::from_str::<Reject>(json).unwrap().with_original(bytes);
        assert_eq!(reject(b"{}").original.as_deref(), Some("{}"));
        assert!(!reject(b"{}").truncated);
        assert_eq!(reject(&[0xff]).original_hex.as_deref(), Some("ff"));
        let long = reject("ä".repeat(MAX_ORIGINAL).as_bytes());
        assert!(long.truncated);
        assert_eq!(long.original.map(|text| text.len()), Some(MAX_ORIGINAL));
        let odd = reject(format!("x{}", "ä".repeat(MAX_ORIGINAL)).as_bytes());
        assert_eq!(odd.original.map(|text| text.len()), Some(MAX_ORIGINAL - 1));
    }

    #[test]
    fn codes_are_what_json_says() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
    }
}
