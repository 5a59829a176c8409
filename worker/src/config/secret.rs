//! Values that are never printed, and what identifies a tenant's API key.

use super::text::from_text;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// What is printed in place of a secret.
const REDACTED: &str = "(redacted)";

/// Text that is neither logged nor printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Secret, String> {
        match text {
            "" => Err("must not be empty".to_owned()),
            // A print-out that is used as a configuration would make this a key that everybody knows.
            REDACTED => Err(format!("`{REDACTED}` only stands for a secret in a print-out; write the secret itself")),
            _ => Ok(Secret(text.to_owned())),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

from_text!(Secret, "text that is not empty");

/// SHA-256 of an API key: all that a process keeps of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// The hash of a key.
    pub fn of(key: &str) -> KeyHash {
        KeyHash(Sha256::digest(key.as_bytes()).into())
    }
}

impl FromStr for KeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyHash, String> {
        let bytes = millstream_model::id::unhex(text.trim()).and_then(|bytes| bytes.try_into().ok());
        bytes.map(KeyHash).ok_or_else(|| {
            "is not the SHA-256 of a key: write 64 hexadecimal digits (printf %s KEY | sha256sum)".to_owned()
        })
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", millstream_model::id::hex(&self.0))
    }
}

impl Serialize for KeyHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&millstream_model::id::hex(&self.0))
    }
}

from_text!(KeyHash, "the SHA-256 of a key, 64 hexadecimal digits");

/// A URI without its user, password and parameters, which may hold secrets: for print-outs and logs.
pub fn without_credentials(uri: &str) -> String {
    let (scheme, rest) = uri.split_once("://").unwrap_or(("", uri));
    let without_parameters = |text: &str| text.split('?').next().unwrap_or_default().to_owned();
    // First the credentials: a `?` in a password that should have been escaped ends nothing.
    let host = match rest.rsplit_once('@') {
        Some((_, host)) => format!("(redacted)@{}", without_parameters(host)),
        None => without_parameters(rest),
    };
    if scheme.is_empty() { host } else { format!("{scheme}://{host}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_loses_its_credentials_only() {
        assert_eq!(without_credentials("mongodb://u:p%40x@h1,h2/db?authSource=a"), "mongodb://(redacted)@h1,h2/db");
        assert_eq!(without_credentials("mongodb://localhost:27017"), "mongodb://localhost:27017");
        assert_eq!(without_credentials("mongodb://u:hun?ter@h/db?x=y"), "mongodb://(redacted)@h/db");
    }

    #[test]
    fn a_hash_is_hexadecimal() {
        let hash = KeyHash::of("abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text.parse(), Ok(hash));
        assert!("ba78".parse::<KeyHash>().is_err());
        assert_eq!(format!("{hash:?}"), format!("sha256:{text}"));
    }
}
