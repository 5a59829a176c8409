//! What keeps a pipeline from being reconciled, by what has to happen before it is tried again.

use crate::reason::Reason;
use std::time::Duration;

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The API server cannot be reached, or is busy: it is tried again soon, by itself.
    #[error("the API server does not answer {what}: {error}")]
    Unavailable {
        /// What was asked.
        what: String,
        /// What came back.
        error: kube::Error,
    },
    /// Somebody changed the same thing at the same time: it is looked at again at once.
    #[error("{what} was changed by somebody else meanwhile: {error}")]
    Conflict {
        /// What.
        what: String,
        /// What came back.
        error: kube::Error,
    },
    /// The API server refuses an object: only another specification helps.
    #[error("{what} is refused: {message}")]
    Refused {
        /// Which object.
        what: String,
        /// The API server's own words.
        message: String,
    },
    /// The operator may not do it: its Role lacks something.
    #[error("the operator may not {what}: {message}")]
    Forbidden {
        /// What was tried.
        what: String,
        /// The API server's own words, which name the verb and the resource.
        message: String,
    },
    /// No thread can be started for the pipeline's plans.
    #[error("cannot start a thread: {0}")]
    Threads(std::io::Error),
    /// The objects cannot be built.
    #[error(transparent)]
    Build(#[from] crate::build::BuildError),
}

/// How long to wait before the first repetition, by category; each further one waits twice as long, up to the second value.
const SOON: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
const AT_ONCE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
const LATER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// What goes by itself is said when it has come so often in turn: an alert for what is over before anybody looks teaches people to look away.
const SAID_AT: u32 = 3;

impl Trouble {
    /// The category of an answer of the API server.
    pub(crate) fn of(what: impl Into<String>, error: kube::Error) -> Trouble {
        let what = what.into();
        match &error {
            kube::Error::Api(status) => match status.code {
                409 => Trouble::Conflict { what, error },
                401 | 403 => Trouble::Forbidden { what, message: status.message.clone() },
                400 | 404 | 405 | 413 | 422 => Trouble::Refused { what, message: status.message.clone() },
                _ => Trouble::Unavailable { what, error },
            },
            _ => Trouble::Unavailable { what, error },
        }
    }

    /// When to try again after so many failures in turn (the first is 0).
    pub fn pause(&self, failures: u32) -> Duration {
        let (first, longest) = match self {
            Trouble::Unavailable { .. } | Trouble::Threads(_) => SOON,
            Trouble::Conflict { .. } => AT_ONCE,
            // A change of the specification, or of the Role, is noticed by itself, or after a while.
            Trouble::Refused { .. } | Trouble::Forbidden { .. } | Trouble::Build(_) => LATER,
        };
        first.saturating_mul(2_u32.saturating_pow(failures.min(16))).min(longest)
    }

    /// Whether a condition says it, after so many failures in turn before this one. Logs and metrics say it in any case.
    pub fn is_said(&self, failures: u32) -> bool {
        match self {
            Trouble::Unavailable { .. } | Trouble::Conflict { .. } => failures.saturating_add(1) >= SAID_AT,
            Trouble::Refused { .. } | Trouble::Forbidden { .. } | Trouble::Threads(_) | Trouble::Build(_) => true,
        }
    }

    /// It is about one object, and a person has to mend it: the others need not wait for that.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Trouble::Refused { .. } | Trouble::Forbidden { .. })
    }

    /// The reason of the condition that says it.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Trouble::Unavailable { .. } => Reason::ApiServerUnavailable,
            Trouble::Threads(_) => Reason::OperatorOverloaded,
            Trouble::Conflict { .. } => Reason::Conflict,
            Trouble::Refused { .. } => Reason::ObjectRefused,
            Trouble::Forbidden { .. } => Reason::Forbidden,
            Trouble::Build(_) => Reason::InvalidSpec,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16) -> Trouble {
        let status = Status { code, message: "said".to_owned(), ..Status::default() };
        Trouble::of("apply", kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn each_answer_has_its_category_and_its_patience() {
        let reasons = [409, 403, 422, 500, 503].map(|code| api(code).reason().as_str());
        assert_eq!(reasons, ["Conflict", "Forbidden", "ObjectRefused", "ApiServerUnavailable", "ApiServerUnavailable"]);
        assert_eq!([0, 1, 2].map(|failures| api(503).pause(failures).as_secs()), [1, 2, 4]);
        assert_eq!([0, 30].map(|failures| api(409).pause(failures).as_millis()), [200, 10_000]);
        assert_eq!([0, u32::MAX].map(|failures| api(422).pause(failures).as_secs()), [10, 300]);
        assert_eq!(api(422).to_string(), "apply is refused: said");
    }

    #[test]
    fn a_single_failure_that_goes_by_itself_degrades_nothing() {
        for code in [409, 429, 500, 503] {
            assert_eq!([0, 1, 2, 3].map(|failures| api(code).is_said(failures)), [false, false, true, true], "{code}");
        }
        assert!([403, 404, 422].iter().all(|code| api(*code).is_said(0)), "what a person has to mend is said at once");
    }
}
