//! What the gateway's answer means for the records of a request.

use serde::Deserialize;
use std::time::Duration;

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, serde::Serialize)]
#[serde(from = "AnyProblem")]
pub struct Problem {
    /// Reason code.
    pub reason: String,
    /// Dotted path of the field to blame.
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

/// A problem as the APIs write it: the data API has names of its own, and ours beside them.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AnyProblem {
    reason: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    field: Option<String>,
    attribute: Option<String>,
    message: String,
}

impl From<AnyProblem> for Problem {
    fn from(any: AnyProblem) -> Problem {
        Problem {
            reason: any.reason.or(any.kind).unwrap_or_default(),
            field: any.field.or(any.attribute).filter(|field| !field.is_empty()),
            message: any.message,
        }
    }
}

/// What to do after an answer.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// Each record's fate, in the order of the request.
    Records(Vec<Result<(), Problem>>),
    /// The request is too large: send it in halves.
    TooLarge(Problem),
    /// Send the very same request again, after this time if one is named.
    Again(String, Option<Duration>),
    /// The whole request was refused, and would be again: none of its records was taken.
    Refused(String),
    /// An answer that makes no sense: what became of the records is not known.
    Hopeless(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    records: Option<Vec<Record>>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Record {
    status: String,
    #[serde(default)]
    error: Option<Problem>,
}

/// Reads an answer to a request of `count` records.
pub(super) fn read(status: u16, retry_after: Option<&str>, body: &str, count: usize) -> Verdict {
    let parsed: Body = serde_json::from_str(body).unwrap_or_default();
    let shown = match &parsed.error {
        Some(problem) if !problem.message.is_empty() => format!("HTTP {status}: {}", problem.message),
        _ => format!("HTTP {status} {}", body.chars().take(300).collect::<String>().trim()),
    };
    match status {
        408 | 425 | 429 | 500 | 502..=504 => {
            let after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            Verdict::Again(shown, after)
        }
        413 => Verdict::TooLarge(problem(parsed.error.clone(), "too_large", shown)),
        200..300 | 400 | 422 => match parsed.records {
            Some(records) if records.len() == count => Verdict::Records(records.into_iter().map(fate).collect()),
            Some(records) => {
                Verdict::Hopeless(format!("HTTP {status} tells the fate of {} records of {count}", records.len()))
            }
            None if status < 300 => Verdict::Records(vec![Ok(()); count]),
            None => Verdict::Records(vec![Err(problem(parsed.error.clone(), "refused", shown)); count]),
        },
        400..500 => Verdict::Refused(shown),
        _ => Verdict::Hopeless(shown),
    }
}

fn fate(record: Record) -> Result<(), Problem> {
    if record.status == "accepted" {
        return Ok(());
    }
    let unnamed = || Problem { reason: record.status.clone(), ..Problem::default() };
    Err(record.error.unwrap_or_else(unnamed))
}

fn problem(named: Option<Problem>, reason: &str, shown: String) -> Problem {
    let mut problem = named.unwrap_or_default();
    if problem.reason.is_empty() {
        reason.clone_into(&mut problem.reason);
    }
    if problem.message.is_empty() {
        problem.message = shown;
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_has_its_fate() {
        let body = r#"{"accepted":1,"rejected":1,"records":[{"message_id":"a","status":"accepted"},
            {"message_id":null,"status":"rejected","error":{"reason":"too_deep","field":"x","message":"m"}}]}"#;
        let problem = Problem { reason: "too_deep".into(), field: Some("x".into()), message: "m".into() };
        assert_eq!(read(200, None, body, 2), Verdict::Records(vec![Ok(()), Err(problem)]));
        assert!(matches!(read(200, None, body, 3), Verdict::Hopeless(_)));
    }

    #[test]
    fn a_refused_request_refuses_its_records() {
        let body = r#"{"status":"fail","error":{"reason":"missing_field","attribute":"elements","message":"missing",
            "type":"MissingAttributeError","request_id":"r"}}"#;
        let Verdict::Records(records) = read(400, None, body, 2) else { panic!() };
        assert_eq!(records.len(), 2);
        let problem = records[0].as_ref().unwrap_err();
        assert_eq!((problem.reason.as_str(), problem.field.as_deref()), ("missing_field", Some("elements")));
    }

    #[test]
    fn what_may_pass_is_sent_again_and_what_never_will_is_not() {
        let again = read(429, Some("3"), r#"{"error":{"message":"slow down"}}"#, 1);
        assert_eq!(again, Verdict::Again("HTTP 429: slow down".into(), Some(Duration::from_secs(3))));
        assert!(matches!(read(503, None, r#"{"status":"unknown","retry":["a"]}"#, 1), Verdict::Again(_, None)));
        assert!(matches!(read(401, None, "", 1), Verdict::Refused(_)));
        assert!(matches!(read(404, None, "not found", 1), Verdict::Refused(_)));
        assert!(matches!(read(413, None, "", 1), Verdict::TooLarge(_)));
    }
}
