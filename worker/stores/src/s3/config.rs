//! Configuration of the object store on S3 and what speaks its protocol.

use aws_sdk_s3::types::ServerSideEncryption;
use millstream_shard::objects::{LONGEST_NAME, ObjectError, check_name};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What a key may have on S3, bytes.
const LONGEST_KEY: usize = 1024;

/// How to reach a bucket and how to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Config {
    /// `http://…` or `https://…` of anything that speaks S3; `None`: AWS itself, by the region.
    pub endpoint: Option<String>,
    /// Region of the bucket. Others than AWS mostly take any, and call theirs `us-east-1`.
    pub region: String,
    /// The bucket. It is never created.
    pub bucket: String,
    /// Where in the bucket all objects are: segments between slashes, at most 123 bytes; empty: at its top. Several installations may share a bucket, each in a folder of its own.
    pub folder: String,
    /// The bucket is in the path of requests, not in the name of the host: what most others than AWS need.
    pub path_style: bool,
    /// PEM file of certificate authorities: who has signed the endpoint's certificate must be one of these, and none that the system trusts besides.
    pub ca_file: Option<PathBuf>,
    /// Who asks.
    pub credentials: Credentials,
    /// How the server encrypts what is written.
    pub encryption: Encryption,
    /// A connection that is not there after this time is given up, milliseconds.
    pub connect_timeout_ms: u64,
    /// A request that has no answer after this time is given up, and sent again where that is safe, milliseconds. A part of 8 MiB has to pass in it.
    pub attempt_timeout_ms: u64,
    /// A call is given up after this time with all that it has tried, milliseconds; an upload in parts is a call for each.
    pub operation_timeout_ms: u64,
    /// How often a request is sent at most. One that asks what is there before it writes is sent once.
    pub attempts: u32,
    /// Parts of one upload that are under way at once; each is in memory.
    pub parts_at_once: usize,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Found where the process runs, and renewed before they expire, in this order: the environment (`AWS_ACCESS_KEY_ID`, …), a web identity (IAM roles for service accounts), the container's (EKS Pod
    /// Identity, ECS), the machine's role.
    Ambient,
    /// These.
    Static {
        /// Not secret.
        access_key_id: String,
        /// Secret.
        secret_access_key: String,
        /// Secret; of credentials that expire.
        session_token: Option<String>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Ambient => f.write_str("Ambient"),
            Credentials::Static { access_key_id, .. } => write!(f, "Static({access_key_id}, (redacted))"),
        }
    }
}

/// How the server encrypts what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket says.
    #[default]
    Bucket,
    /// With keys that the store manages (`AES256`).
    Store,
    /// With a key of its key management (`aws:kms`).
    Kms {
        /// Id, ARN or alias of the key; `None`: the account's own.
        key: Option<String>,
    },
}

impl Encryption {
    /// As a request says it: the algorithm, and its key.
    pub(super) fn asked_for(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match self {
            Encryption::Bucket => (None, None),
            Encryption::Store => (Some(ServerSideEncryption::Aes256), None),
            Encryption::Kms { key } => (Some(ServerSideEncryption::AwsKms), key.clone()),
        }
    }
}

impl S3Config {
    /// The defaults, with this bucket on AWS.
    pub fn new(region: impl Into<String>, bucket: impl Into<String>) -> S3Config {
        S3Config {
            endpoint: None,
            region: region.into(),
            bucket: bucket.into(),
            folder: String::new(),
            path_style: false,
            ca_file: None,
            credentials: Credentials::Ambient,
            encryption: Encryption::Bucket,
            connect_timeout_ms: 3_000,
            attempt_timeout_ms: 30_000,
            operation_timeout_ms: 90_000,
            attempts: 3,
            parts_at_once: 4,
        }
    }

    /// Checks what can be checked without asking the server.
    ///
    /// # Errors
    /// [`ObjectError::Configuration`] that names the field.
    pub fn check(&self) -> Result<(), ObjectError> {
        self.check_place()?;
        let refuse = |message: &str| Err(ObjectError::Configuration(message.to_owned()));
        if matches!(&self.credentials, Credentials::Static { access_key_id: id, secret_access_key: secret, .. }
            if id.is_empty() || secret.is_empty())
        {
            return refuse("access_key_id and secret_access_key must not be empty");
        }
        if self.connect_timeout_ms == 0 || self.attempt_timeout_ms == 0 || self.operation_timeout_ms == 0 {
            return refuse("connect_timeout_ms, attempt_timeout_ms and operation_timeout_ms must be at least 1");
        }
        if self.attempts == 0 || self.parts_at_once == 0 {
            return refuse("attempts and parts_at_once must be at least 1");
        }
        Ok(())
    }

    fn check_place(&self) -> Result<(), ObjectError> {
        let refuse = |message: String| Err(ObjectError::Configuration(message));
        let is_url = |url: &str| {
            let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            host.is_some_and(|host| !host.is_empty() && !host.starts_with('/') && !host.contains(['@', '?', '#', ' ']))
        };
        if self.endpoint.as_deref().is_some_and(|url| !is_url(url)) {
            return refuse("endpoint must be a URL: https://host, or http://host:port".to_owned());
        }
        if self.region.is_empty() {
            return refuse("region must not be empty: us-east-1 where the store knows none".to_owned());
        }
        if self.bucket.is_empty() || self.bucket.contains(char::is_whitespace) {
            return refuse("bucket must be a bucket's name".to_owned());
        }
        let longest = LONGEST_KEY - LONGEST_NAME - 1;
        if !self.folder.is_empty() && (check_name(&self.folder).is_err() || self.folder.len() > longest) {
            return refuse(format!(
                "folder must be empty, or segments of letters, digits, `.`, `-`, `_` and `=` between slashes, with none at its ends, {longest} bytes at most"
            ));
        }
        Ok(())
    }

    /// The key of an object, or what the keys of those begin with whose names begin so.
    pub(super) fn key(&self, name: &str) -> String {
        if self.folder.is_empty() { name.to_owned() } else { format!("{}/{name}", self.folder) }
    }

    /// The name of what has this key; `None`: it is not one of ours.
    pub(super) fn name<'a>(&self, key: &'a str) -> Option<&'a str> {
        let name = match self.folder.as_str() {
            "" => key,
            folder => key.strip_prefix(folder)?.strip_prefix('/')?,
        };
        check_name(name).is_ok().then_some(name)
    }

    /// Where objects are, for messages.
    pub(super) fn place(&self) -> String {
        let place =
            if self.folder.is_empty() { self.bucket.clone() } else { format!("{}/{}", self.bucket, self.folder) };
        match &self.endpoint {
            Some(endpoint) => format!("{place} at {endpoint}"),
            None => format!("{place} in {}", self.region),
        }
    }

    pub(super) fn operation_timeout(&self) -> Duration {
        Duration::from_millis(self.operation_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_field() {
        let good = || S3Config::new("eu-central-1", "bucket");
        assert!(good().check().is_ok());
        let full = S3Config {
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            folder: "a/b-1".to_owned(),
            credentials: credentials("id", "secret"),
            ..good()
        };
        assert!(full.check().is_ok());
        for (field, config) in [
            ("endpoint", S3Config { endpoint: Some("host:9000".to_owned()), ..good() }),
            ("endpoint", S3Config { endpoint: Some("https://".to_owned()), ..good() }),
            ("endpoint", S3Config { endpoint: Some("https://user@host".to_owned()), ..good() }),
            ("region", S3Config::new("", "bucket")),
            ("bucket", S3Config::new("us-east-1", "")),
            ("folder", S3Config { folder: "/a".to_owned(), ..good() }),
            ("folder", S3Config { folder: "a/".to_owned(), ..good() }),
            ("folder", S3Config { folder: "x".repeat(124), ..good() }),
            ("secret_access_key", S3Config { credentials: credentials("id", ""), ..good() }),
            ("attempt_timeout_ms", S3Config { attempt_timeout_ms: 0, ..good() }),
            ("attempts", S3Config { attempts: 0, ..good() }),
            ("parts_at_once", S3Config { parts_at_once: 0, ..good() }),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    fn credentials(id: &str, secret: &str) -> Credentials {
        Credentials::Static {
            access_key_id: id.to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: Some(secret.to_owned()),
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let config = S3Config { credentials: credentials("id", "hunter2"), ..S3Config::new("r", "b") };
        let printed = format!("{config:?}");
        assert!(printed.contains("id") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn a_key_is_a_name_in_the_folder() {
        let top = S3Config::new("us-east-1", "b");
        let in_folder = S3Config { folder: "a/b".to_owned(), ..top.clone() };
        assert_eq!((top.key("x/y"), in_folder.key("x/y")), ("x/y".to_owned(), "a/b/x/y".to_owned()));
        assert_eq!((top.name("x/y"), in_folder.name("a/b/x/y")), (Some("x/y"), Some("x/y")));
        for key in ["a/b/", "a/b", "a/bc/x", "c", "a/b/x y"] {
            assert_eq!(in_folder.name(key), None, "{key}");
        }
    }
}
