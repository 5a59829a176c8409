//! What a check comes to.

use crate::cli::visible::visible;
use serde::Serialize;
use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It works, with less safety or speed than it could have.
    Warning,
    /// Workers will not start, will stop, or may lose what was acknowledged.
    Problem,
}

/// What a check comes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// How bad it is.
    pub(super) level: Level,
    /// What was looked at.
    pub(super) subject: String,
    /// What was found.
    pub(super) found: String,
    /// What to change; only what is well has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) change: Option<String>,
}

impl Finding {
    pub(super) fn ok(subject: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { level: Level::Ok, subject: subject.into(), found: found.into(), change: None }
    }

    pub(super) fn warning(subject: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, change: Some(change.into()), ..Finding::ok(subject, found) }
    }

    pub(super) fn problem(subject: impl Into<String>, found: impl Into<String>, change: impl Into<String>) -> Finding {
        Finding { level: Level::Problem, change: Some(change.into()), ..Finding::ok(subject, found) }
    }
}

impl fmt::Display for Finding {
    /// One line, whatever servers have said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        write!(f, "{level:8} {}: {}", visible(&self.subject), visible(&self.found))?;
        match &self.change {
            Some(change) => write!(f, " -> {}", visible(change)),
            None => Ok(()),
        }
    }
}

/// How many of each there are.
pub(super) fn sum(findings: &[Finding]) -> String {
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let some = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let (warnings, problems) = (some(count(Level::Warning), "warning"), some(count(Level::Problem), "problem"));
    format!("{}: {} ok, {warnings}, {problems}", some(findings.len(), "check"), count(Level::Ok))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_a_server_says() {
        let finding = Finding::problem("broker b:1", "no\nway\u{1b}[2J", "start it");
        assert_eq!(finding.to_string(), "problem  broker b:1: no\\nway\\u{1b}[2J -> start it");
        let ok = Finding::ok("broker b:1", "answers");
        assert_eq!(ok.to_string(), "ok       broker b:1: answers");
        assert_eq!(sum(&[finding.clone(), ok, finding]), "3 checks: 1 ok, 0 warnings, 2 problems");
    }
}
