//! Rejects: records that will not be processed, each with its reason and with what it was (I2).

mod message;

pub use message::{About, CLOUD_EVENT_TYPE, Ingress, MAX_ACTION, MAX_ORIGINAL, Reject};

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
    /// Its user's merges go round in a circle: state is damaged.
    Unresolved,
    /// Written to `ingress` by someone else, for the wrong partition or an unknown tenant.
    Misrouted,
    /// The document store refuses the write for good.
    DocumentRefused,
    /// Its tenant was erased, with all that it had sent by then.
    TenantErased,
}

impl Reason {
    /// All of them, for metrics and docs.
    pub const ALL: [Reason; 18] = [
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
        Reason::TenantErased,
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
            Reason::TenantErased => "tenant_erased",
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

    /// Several refusals of parts of one record as one: the first one's reason and field, and what all of them say. `None` when there is none.
    pub fn join(refusals: &[Refusal]) -> Option<Refusal> {
        /// So many are written out; the first ones show what is wrong, and a message stays one that a person reads.
        const NAMED: usize = 10;
        let (first, count) = (refusals.first()?, refusals.len());
        let name = |refusal: &Refusal| match &refusal.field {
            Some(field) if count > 1 => format!("{field}: {}", refusal.message),
            _ => refusal.message.clone(),
        };
        let mut message = refusals.iter().take(NAMED).map(name).collect::<Vec<_>>().join("; ");
        if count > NAMED {
            message.push_str(&format!("; and {} more", count - NAMED));
        }
        Some(Refusal { reason: first.reason, field: first.field.clone(), message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_what_json_says() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
    }

    #[test]
    fn refusals_of_one_record_are_joined_and_the_first_ones_written_out() {
        let refusal = |number: usize| Refusal::field(Reason::TooLarge, format!("set.a{number}"), format!("m{number}"));
        assert_eq!(Refusal::join(&[]), None);
        assert_eq!(Refusal::join(&[refusal(0)]), Some(refusal(0)));
        let many: Vec<Refusal> = (0..12).map(refusal).collect();
        let joined = Refusal::join(&many).unwrap();
        assert_eq!(joined.field.as_deref(), Some("set.a0"));
        assert!(joined.message.starts_with("set.a0: m0; set.a1: m1; "), "{joined}");
        assert!(joined.message.ends_with("set.a9: m9; and 2 more"), "{joined}");
    }
}
