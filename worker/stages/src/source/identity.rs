//! Identifiers as sources write them: one spelling for one identifier, and values that name nobody.
//!
//! The gateway routes by normalised identifiers and unify resolves by them, so both use these rules, and only these (I3).

use millstream_model::proto::{Identifier, Value, value::Kind};
use millstream_model::reject::{Reason, Refusal};

/// The most characters of an identifier's value.
pub const MAX_VALUE_CHARS: usize = 512;
/// The most characters of an identifier's type.
pub const MAX_TYPE_CHARS: usize = 64;

/// Values that software sends when it does not know the user; taken as identifiers they would merge strangers. Compared without
/// case and without quotes around them.
pub const FORBIDDEN: [&str; 28] = [
    "",
    "unknown",
    "guest",
    "null",
    "nil",
    "0",
    "1",
    "true",
    "false",
    "na",
    "n/a",
    "user_id",
    "userid",
    "id",
    "customer_id",
    "uid",
    "none",
    "undefined",
    "anonymous",
    "not_authenticated",
    "[object object]",
    "nan",
    "-1",
    "-2",
    "2",
    "(null)",
    "<null>",
    "00000000-0000-0000-0000-000000000000",
];

/// The identifier that a member means: strings trimmed, e-mail addresses in lower case, integers as digits. `None` for what cannot
/// identify: null, blank text, other types.
pub fn identifier(kind: &str, value: &Value) -> Option<Identifier> {
    let text = match &value.kind {
        Some(Kind::String(text)) => text.trim().to_owned(),
        Some(Kind::Integer(number)) => number.to_string(),
        _ => return None,
    };
    let text = if kind == "email" { text.to_lowercase() } else { text };
    (!text.is_empty()).then(|| Identifier::new(kind, text))
}

/// Is this one of [`FORBIDDEN`], or nothing but zeros and dashes?
pub fn is_forbidden(value: &str) -> bool {
    let bare = unquoted(value).to_lowercase();
    FORBIDDEN.contains(&bare.as_str()) || bare.chars().all(|character| matches!(character, '0' | '-'))
}

/// The value without the quotes that a sender put around it, however many.
pub fn unquoted(value: &str) -> &str {
    value.trim_matches(|character: char| character.is_whitespace() || matches!(character, '"' | '\'' | '`'))
}

/// What is wrong with an identifier that stands at `field`, apart from being forbidden.
///
/// # Errors
/// The refusal of the record.
pub fn check(field: &str, identifier: &Identifier) -> Result<(), Refusal> {
    if !is_type_name(&identifier.r#type) {
        let message = format!(
            "`{}` cannot be an identifier type; use 1 to {MAX_TYPE_CHARS} lower-case letters, digits and underscores",
            identifier.r#type.escape_debug()
        );
        return Err(Refusal::field(Reason::InvalidValue, field, message));
    }
    if identifier.value.chars().count() > MAX_VALUE_CHARS {
        let message = format!("the identifier is longer than {MAX_VALUE_CHARS} characters; send a shorter one");
        return Err(Refusal::field(Reason::TooLarge, field, message));
    }
    if identifier.value.chars().any(char::is_control) {
        let message = "the identifier contains control characters; remove them";
        return Err(Refusal::field(Reason::InvalidValue, field, message));
    }
    Ok(())
}

/// May an identifier type be called this?
pub fn is_type_name(name: &str) -> bool {
    (1..=MAX_TYPE_CHARS).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spelling_for_one_identifier() {
        let of = |kind, value| identifier(kind, &value).map(|identifier| identifier.to_string());
        assert_eq!(of("email", Value::string(" Zoë@Example.COM\n")).as_deref(), Some("email=zoë@example.com"));
        assert_eq!(of("user_id", Value::string(" Ab ")).as_deref(), Some("user_id=Ab"));
        assert_eq!(of("user_id", Value::integer(42)).as_deref(), Some("user_id=42"));
        for nothing in [Value::string("  "), Value::null(), Value::float(4.5), Value::boolean(true)] {
            assert_eq!(of("user_id", nothing), None);
        }
    }

    #[test]
    fn shared_values_are_forbidden_however_they_are_written() {
        for value in ["null", "NULL", "\"null\"", "'Guest'", " n/A ", "[object Object]", "NaN", "-1", "0000-00", "''"] {
            assert!(is_forbidden(value), "{value}");
        }
        for value in ["42", "nullable", "10", "anonymous-7", "3", "1-0-1"] {
            assert!(!is_forbidden(value), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_stored_is_refused() {
        let reason = |kind: &str, value: &str| check("f", &Identifier::new(kind, value)).unwrap_err().reason;
        assert_eq!(reason("User Id", "a"), Reason::InvalidValue);
        assert_eq!(reason("user_id", "a\0b"), Reason::InvalidValue);
        assert_eq!(reason("user_id", &"x".repeat(513)), Reason::TooLarge);
        assert_eq!(check("f", &Identifier::new("loyalty_2", "x".repeat(512))), Ok(()));
    }
}
