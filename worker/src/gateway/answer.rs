//! What a sender is told: one outcome per record, in the shape that the API it speaks is known for.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use millstream_model::reject::{Reason, Refusal};
use serde::Serialize;
use utoipa::ToSchema;

/// Whose conventions an answer follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Native,
    DataApi,
    Segment,
}

impl Family {
    /// As metrics call it.
    pub(super) fn source(self) -> &'static str {
        match self {
            Family::Native => "native",
            Family::DataApi => "data_api",
            Family::Segment => "segment",
        }
    }
}

/// The answer to a request whose records were looked at.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct Answer {
    /// Segment only: true when at least one record was accepted (or there was none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// `success` or `fail` (data API), or `unknown` (everywhere): the log did not acknowledge in time, repeat the records in `retry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub status: Option<&'static str>,
    /// Records that the log has: they will take effect, be found duplicate, or be in the topic `rejects`.
    pub accepted: usize,
    /// Records that were refused here; `records` says why. Repeating them without change is of no use.
    pub rejected: usize,
    /// Identifies this request in logs; also the header `X-Request-Id`.
    pub request_id: String,
    /// One entry per record, in their order.
    pub records: Vec<RecordAnswer>,
    /// Message ids of the records whose outcome is unknown. Send these records again with these same ids: what did get through then counts as a
    /// duplicate. A record that had no message id was given one; set it on the record when you repeat it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub retry: Vec<String>,
    /// Data API, and answers of status 503: what went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// What became of one record.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RecordAnswer {
    /// The sender's, or one derived from `Idempotency-Key`, or one made by the gateway. Absent for a record that was refused without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// `accepted`, `rejected` or `unknown`.
    #[schema(value_type = String)]
    pub status: &'static str,
    /// Why it was rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<RecordError>,
}

/// Why a record was rejected.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct RecordError {
    /// Reason code: `malformed_json`, `missing_identifier`, `too_large`, ...
    #[schema(value_type = String)]
    pub reason: &'static str,
    /// Dotted path of the field to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
}

impl From<Refusal> for RecordError {
    fn from(refusal: Refusal) -> RecordError {
        RecordError { reason: refusal.reason.code(), field: refusal.field, message: refusal.message }
    }
}

/// The answer to a request that failed as a whole.
// Nothing else is in it, so that the description can tell it from an `Answer`, which may have an `error`, too.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorAnswer {
    /// Segment only: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success: Option<bool>,
    /// Data API only: `fail`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub status: Option<&'static str>,
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct ErrorBody {
    /// Reason code: `missing_key`, `too_large`, `malformed_json`, `overloaded`, ...
    #[schema(value_type = String)]
    pub reason: &'static str,
    /// The field or header to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Data API only: the same as `field`, or empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribute: Option<String>,
    /// Data API only: MissingAttributeError, TypeError, PayloadTooLarge, MediaTypeError, ...
    #[serde(skip_serializing_if = "Option::is_none", rename = "type")]
    #[schema(value_type = Option<String>)]
    pub kind: Option<&'static str>,
    /// What is wrong and what to do.
    pub message: String,
    /// Identifies this request in logs; also the header `X-Request-Id`.
    pub request_id: String,
}

/// A request that failed as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    pub(super) reason: &'static str,
    pub(super) field: Option<String>,
    pub(super) message: String,
    pub(super) retry_after_s: Option<u32>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { status, reason, field: None, message: message.into(), retry_after_s: None }
    }

    /// Something that should not happen; the sender learns no more than that.
    pub(super) fn internal(what: &str) -> Failure {
        tracing::error!(what, "a request failed");
        let message =
            "the gateway failed; repeat the request with the same ids, and report the request id if it happens again";
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    pub(super) fn retry_after(self, seconds: u32) -> Failure {
        Failure { retry_after_s: Some(seconds), ..self }
    }

    /// In the shape of a family.
    pub(super) fn render(&self, family: Family, request_id: &str) -> Response {
        let body = ErrorAnswer {
            success: (family == Family::Segment).then_some(false),
            status: (family == Family::DataApi).then_some("fail"),
            error: self.body(family, request_id),
        };
        let mut response = json(self.status, &body);
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"millstream\", Basic realm=\"millstream\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }

    /// The member `error`.
    pub(super) fn body(&self, family: Family, request_id: &str) -> ErrorBody {
        let data_api = family == Family::DataApi;
        ErrorBody {
            reason: self.reason,
            attribute: data_api.then(|| self.field.clone().unwrap_or_default()),
            field: self.field.clone().filter(|_| !data_api),
            kind: data_api.then(|| data_api_type(self.reason, self.status)),
            message: self.message.clone(),
            request_id: request_id.to_owned(),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let status = match refusal.reason {
            Reason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Failure { field: refusal.field, ..Failure::new(status, refusal.reason.code(), refusal.message) }
    }
}

/// What customer-engagement platforms call an error.
fn data_api_type(reason: &str, status: StatusCode) -> &'static str {
    match (reason, status) {
        ("missing_field" | "missing_identifier", _) => "MissingAttributeError",
        ("wrong_type", _) => "TypeError",
        ("too_large", _) => "PayloadTooLarge",
        (_, StatusCode::TOO_MANY_REQUESTS) => "RateLimitError",
        (_, StatusCode::UNSUPPORTED_MEDIA_TYPE) => "MediaTypeError",
        (_, StatusCode::UNAUTHORIZED) => "AuthenticationError",
        (_, status) if status.is_server_error() => "ServiceError",
        _ => "InvalidRequestError",
    }
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
