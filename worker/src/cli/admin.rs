//! A client of the admin port.

use super::visible::visible;
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
    #[error("{url} answers HTTP {status}: {}", said(message))]
    Refused {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
        /// The answer's text.
        message: String,
    },
    /// It ended in the middle of an answer.
    #[error(
        "the connection to {url} was lost before its answer ended; does the process still run? What came until then is whole"
    )]
    Lost {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        error: std::io::Error,
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

    /// It may have it later.
    pub fn is_not_ready(&self) -> bool {
        matches!(self, AdminError::Refused { status: 503, .. })
    }
}

/// What an error says in words, not too much of it.
fn said(text: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let message = json.pointer("/error/message").and_then(serde_json::Value::as_str);
    visible(&message.unwrap_or(text.trim()).chars().take(500).collect::<String>()).into_owned()
}

/// The message of a line that a process writes into an answer when it cannot go on.
pub(super) fn error_line(line: &str) -> Option<String> {
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    let message = json.get("error")?.get("message")?.as_str()?;
    (json.len() == 1).then(|| message.to_owned())
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
            let length = read.map_err(|error| AdminError::Lost { url: url.clone(), error })?;
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
        let message = answer.text().unwrap_or_default();
        Err(AdminError::Refused { url, status, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// An admin port that gives one answer, then closes the connection.
    pub(super) fn answering(answer: &'static str) -> Admin {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let admin = Admin::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = client.read(&mut request).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        });
        admin
    }

    #[test]
    fn a_lost_connection_is_called_that() {
        let admin = answering("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"n\":1}\n{\"n\"");
        let mut lines = Vec::new();
        let lost = admin.lines::<AdminError>("/v1/tail/events", &[], &mut |line| {
            lines.push(line.to_owned());
            Ok(true)
        });
        let text = lost.unwrap_err().to_string();
        assert!(text.contains("/v1/tail/events was lost"), "{text}");
        assert_eq!(lines, [r#"{"n":1}"#]);
    }

    #[test]
    fn an_error_says_what_the_process_said() {
        let admin = answering(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 40\r\n\r\n{\"error\":{\"message\":\"unify 3: opening\"}}",
        );
        let text = admin.json::<u8>("/v1/usage", &[]).unwrap_err().to_string();
        assert!(text.ends_with("/v1/usage answers HTTP 503: unify 3: opening"), "{text}");
    }

    #[test]
    fn error_lines_are_told_from_events_about_errors() {
        assert_eq!(error_line(r#"{"error":{"message":"no broker"}}"#).as_deref(), Some("no broker"));
        assert_eq!(error_line(r#"{"id":"1","error":{"message":"no broker"}}"#), None);
        assert_eq!(error_line(r#"{"error":"no"}"#), None);
    }
}
