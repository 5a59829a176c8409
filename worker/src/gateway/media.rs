//! Content types.

use super::answer::{Failure, Family};
use axum::http::{HeaderMap, StatusCode, header};

/// Checks the content type; true means NDJSON.
///
/// # Errors
/// 415.
pub(super) fn is_ndjson(headers: &HeaderMap, family: Family) -> Result<bool, Failure> {
    let allowed = allowed(family);
    let Some(value) = headers.get(header::CONTENT_TYPE) else {
        return Err(unsupported(format!("the request has no Content-Type; send {allowed}")));
    };
    let value = value.to_str().unwrap_or("?").to_ascii_lowercase();
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let charset = parts.find_map(|part| part.strip_prefix("charset="));
    if let Some(charset) = charset.map(|charset| charset.trim_matches('"')).filter(|charset| !is_utf8(charset)) {
        return Err(unsupported(format!("charset {charset} is not taken; encode the body as UTF-8")));
    }
    match essence {
        "application/json" => Ok(false),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" if family == Family::Native => Ok(true),
        // Browsers send this to avoid a preflight request.
        "text/plain" if family == Family::Segment => Ok(false),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(false),
        other => Err(unsupported(format!("Content-Type {} is not taken here; send {allowed}", other.escape_debug()))),
    }
}

fn allowed(family: Family) -> &'static str {
    match family {
        Family::Native => "application/json or application/x-ndjson",
        Family::DataApi => "application/json",
        Family::Segment => "application/json or text/plain",
    }
}

fn is_utf8(charset: &str) -> bool {
    matches!(charset, "utf-8" | "utf8" | "us-ascii")
}

fn unsupported(message: String) -> Failure {
    Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
}
