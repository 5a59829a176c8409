//! A client of the admin port.

use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader};
use std::time::Duration;

/// What went wrong with the admin port.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens, or the connection broke: is the process running, and is the address right?
    #[error("cannot reach the admin port {url}; is the pipeline running, and is --admin right?")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        error: reqwest::Error,
    },
    /// It answered with an error; the text says what to do.
    #[error("{url} answers HTTP {status} {message}")]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The answer's text.
        message: String,
    },
    /// It answered something that this version does not understand.
    #[error("{url} answers what this version does not understand: {message}")]
    Strange {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        message: String,
    },
}

impl AdminError {
    /// The process does not have what was asked for; another one may.
    pub fn is_not_found(&self) -> bool {
        matches!(self, AdminError::Refused { status: 404, .. })
    }
}

/// The admin port of one process.
#[derive(Debug, Clone)]
pub struct Admin {
    base: String,
    client: reqwest::blocking::Client,
}

impl Admin {
    /// The admin port at a base URL.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(base: &str) -> Result<Admin, AdminError> {
        let builder = reqwest::blocking::Client::builder().connect_timeout(Duration::from_secs(5)).timeout(None);
        let base = base.trim_end_matches('/').to_owned();
        match builder.build() {
            Ok(client) => Ok(Admin { base, client }),
            Err(error) => Err(AdminError::Unreachable { url: base, error }),
        }
    }

    /// Is the process ready?
    pub fn is_ready(&self) -> bool {
        self.get("/readyz", &[]).is_ok()
    }

    /// A JSON answer.
    ///
    /// # Errors
    /// [`AdminError`]
    pub fn json<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<T, AdminError> {
        let answer = self.get(path, query)?;
        let url = answer.url().to_string();
        let text = answer.text().map_err(|error| AdminError::Unreachable { url: url.clone(), error })?;
        serde_json::from_str(&text).map_err(|error| AdminError::Strange { url, message: error.to_string() })
    }

    /// Hands each line of an NDJSON answer to `take`, until it says stop (`false`) or the answer ends.
    ///
    /// # Errors
    /// [`AdminError`], or what `take` returned.
    pub fn lines<E: From<AdminError>>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        take: &mut dyn FnMut(&str) -> Result<bool, E>,
    ) -> Result<(), E> {
        let answer = self.get(path, query)?;
        let url = answer.url().to_string();
        let mut reader = BufReader::new(answer);
        let mut line = String::new();
        loop {
            line.clear();
            let read = reader.read_line(&mut line);
            let length = read.map_err(|error| AdminError::Strange { url: url.clone(), message: error.to_string() })?;
            if length == 0 || !line.trim().is_empty() && !take(line.trim_end())? {
                return Ok(());
            }
        }
    }

    /// A text answer.
    ///
    /// # Errors
    /// [`AdminError`]
    pub fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<reqwest::blocking::Response, AdminError> {
        let url = format!("{}{path}", self.base);
        let answer = self.client.get(&url).query(query).send();
        let answer = answer.map_err(|error| AdminError::Unreachable { url, error: error.without_url() })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (url, status) = (answer.url().to_string(), answer.status().as_u16());
        let message = answer.text().unwrap_or_default().chars().take(500).collect();
        Err(AdminError::Refused { url, status, message })
    }
}
