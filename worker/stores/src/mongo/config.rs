//! Configuration of the document store on MongoDB.

use millstream_shard::documents::DocumentError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// How to reach MongoDB and how to use it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MongoConfig {
    /// Connection string: `mongodb://…` or `mongodb+srv://…`.
    pub uri: String,
    /// Database that holds the collections.
    pub database: String,
    /// A write that is not acknowledged by a majority after this time is written again, milliseconds.
    #[serde(default = "default_timeout")]
    pub write_timeout_ms: u64,
    /// A read is given up after this time, milliseconds.
    #[serde(default = "default_timeout")]
    pub read_timeout_ms: u64,
    /// Largest number of writes in one command.
    #[serde(default = "default_batch")]
    pub max_batch: usize,
    /// Write with the `bulkWrite` command where the server knows it (8.0 and later), else with one `update` command for each collection.
    /// `false`: always the latter, for compatible servers that claim more than they can.
    #[serde(default = "default_bulk")]
    pub bulk_write: bool,
    /// Further options of the connection string (`maxPoolSize`, `tls`, `appName`, …).
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

fn default_timeout() -> u64 {
    10_000
}

fn default_bulk() -> bool {
    true
}

fn default_batch() -> usize {
    1000
}

impl MongoConfig {
    /// The defaults, with this server and database.
    pub fn new(uri: impl Into<String>, database: impl Into<String>) -> MongoConfig {
        MongoConfig {
            uri: uri.into(),
            database: database.into(),
            write_timeout_ms: default_timeout(),
            read_timeout_ms: default_timeout(),
            max_batch: default_batch(),
            bulk_write: default_bulk(),
            options: BTreeMap::new(),
        }
    }

    /// Checks what can be checked without asking the server.
    ///
    /// # Errors
    /// [`DocumentError::Configuration`] that names the field.
    pub fn check(&self) -> Result<(), DocumentError> {
        let refuse = |message: &str| Err(DocumentError::Configuration(message.to_owned()));
        if self.database.is_empty() || self.database.contains(['/', '\\', '.', '"', '$', ' ', '\0']) {
            return refuse("database must be a MongoDB database name: not empty, none of / \\ . \" $ or space");
        }
        if self.max_batch == 0 {
            return refuse("max_batch must be at least 1");
        }
        if self.write_timeout_ms == 0 || self.read_timeout_ms == 0 {
            return refuse("write_timeout_ms and read_timeout_ms must be at least 1");
        }
        Ok(())
    }

    /// The connection string with the options in it.
    pub(super) fn connection_string(&self) -> String {
        let mut uri = self.uri.clone();
        for (name, value) in &self.options {
            let separator = if uri.contains('?') {
                "&"
            } else if uri.split("://").nth(1).is_some_and(|rest| rest.contains('/')) {
                "?"
            } else {
                "/?"
            };
            uri.push_str(&format!("{separator}{name}={value}"));
        }
        uri
    }

    pub(super) fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    pub(super) fn read_timeout(&self) -> Duration {
        Duration::from_millis(self.read_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_join_the_connection_string() {
        for (uri, whole) in [
            ("mongodb://h:1", "mongodb://h:1/?maxPoolSize=5"),
            ("mongodb://h:1/", "mongodb://h:1/?maxPoolSize=5"),
            ("mongodb://h:1/?tls=true", "mongodb://h:1/?tls=true&maxPoolSize=5"),
        ] {
            let mut config = MongoConfig::new(uri, "db");
            config.options.insert("maxPoolSize".into(), "5".into());
            assert_eq!(config.connection_string(), whole);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(MongoConfig::new("mongodb://h", "a b").check().is_err());
        assert!(MongoConfig { max_batch: 0, ..MongoConfig::new("mongodb://h", "db") }.check().is_err());
        assert!(MongoConfig::new("mongodb://h", "millstream").check().is_ok());
        let error = serde_json::from_str::<MongoConfig>(r#"{"uri":"a","database":"b","timeout":1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `timeout`"), "{error}");
    }
}
