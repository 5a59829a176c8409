//! Identifiers: which name a user, which name a device, and which of them routes a record.

use crate::proto::Identifier;

/// Identifier types that name a device; every other type names a user.
///
/// Earlier types make better primary identifiers: they outlive reinstalls least, but every SDK call carries them.
pub const DEVICE_TYPES: [&str; 9] =
    ["device_id", "idfv", "gaid", "idfa", "android_id", "oaid", "imei", "amazon_aid", "push_id"];

/// The order in which user identifier types route a record and resolve its user: the stickiest first.
const USER_ORDER: [&str; 4] = ["anonymous_id", "user_id", "email", "phone"];

impl Identifier {
    /// An identifier of a type.
    pub fn new(kind: impl Into<String>, value: impl Into<String>) -> Identifier {
        Identifier { r#type: kind.into(), value: value.into() }
    }

    /// Does it name a device (and not a user)?
    pub fn names_device(&self) -> bool {
        DEVICE_TYPES.contains(&self.r#type.as_str())
    }

    /// Can it be a further identifier of a device? Not one of the first type: in any record it is the first.
    pub fn can_be_alias(&self) -> bool {
        self.names_device() && DEVICE_TYPES.first() != Some(&self.r#type.as_str())
    }

    /// What sorts identifiers, the one to route by first.
    pub fn rank(&self) -> (usize, &str, &str) {
        let types: &[&str] = if self.names_device() { &DEVICE_TYPES } else { &USER_ORDER };
        let position = types.iter().position(|kind| *kind == self.r#type).unwrap_or(types.len());
        (position, &self.r#type, &self.value)
    }
}

impl std::fmt::Display for Identifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.r#type, self.value)
    }
}

impl Ord for Identifier {
    fn cmp(&self, other: &Identifier) -> std::cmp::Ordering {
        (&self.r#type, &self.value).cmp(&(&other.r#type, &other.value))
    }
}

impl PartialOrd for Identifier {
    fn partial_cmp(&self, other: &Identifier) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Parses `type=value`, as the command line writes it.
///
/// # Errors
/// What is missing.
pub fn parse(text: &str) -> Result<Identifier, String> {
    match text.split_once('=') {
        Some((kind, value)) if !kind.is_empty() && !value.is_empty() => Ok(Identifier::new(kind, value)),
        _ => Err(format!("`{text}` is not type=value, for example user_id=42")),
    }
}
