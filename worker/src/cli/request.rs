//! Which request a record goes into, and what the request looks like.

use super::input::Line;
use base64::Engine;
use millstream_model::proto::Source;
use millstream_stages::source::{self, Accepted, DataApiKind, Endpoint, Limits, SegmentKind};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Bytes of records per request: the gateway takes 5 MB, 1 MB compressed, and Segment 500 KB with everything around the records.
const MAX_BYTES: usize = 2_000_000;
const MAX_BYTES_SEGMENT: usize = 450_000;

/// Records that go into one request, in order.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) endpoint: Endpoint,
    pub(super) lines: Vec<Line>,
    bytes: usize,
}

impl Request {
    /// An empty request to an endpoint.
    pub(super) fn new(endpoint: Endpoint) -> Request {
        Request { endpoint, lines: Vec::new(), bytes: 0 }
    }

    /// Is there room for a further record of this size?
    pub(super) fn takes(&self, endpoint: Endpoint, length: usize, batch: usize) -> bool {
        let most = if endpoint.source() == Source::Segment { MAX_BYTES_SEGMENT } else { MAX_BYTES };
        let alone = endpoint == Endpoint::DataApi(DataApiKind::Delete);
        self.lines.is_empty()
            || self.endpoint == endpoint && !alone && self.lines.len() < batch && self.bytes + length <= most
    }

    /// Adds a record.
    pub(super) fn push(&mut self, line: Line) {
        self.bytes += line.text.len() + 1;
        self.lines.push(line);
    }

    /// Both halves, when there are two.
    pub(super) fn halves(mut self) -> Option<(Request, Request)> {
        let rest = self.lines.split_off(self.lines.len().div_ceil(2));
        let mut second = Request::new(self.endpoint);
        rest.into_iter().for_each(|line| second.push(line));
        (!second.lines.is_empty()).then_some((self, second))
    }

    /// The path at the gateway's public port.
    pub(super) fn path(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Segment(_) => "/segment/v1/batch",
            Endpoint::DataApi(DataApiKind::Merge) => "/data-api/v1/merge",
            Endpoint::DataApi(DataApiKind::Delete) => "/data-api/v1/delete",
            Endpoint::DataApi(_) => "/data-api/v1/transition",
            Endpoint::NativeBatch => "/v1/batch",
        }
    }

    /// The body's media type.
    pub(super) fn content_type(&self) -> &'static str {
        if self.endpoint == Endpoint::NativeBatch { "application/x-ndjson" } else { "application/json" }
    }

    /// The body; `sent_at` is the moment of sending, RFC 3339.
    pub(super) fn body(&self, sent_at: &str) -> String {
        let joined = |separator: &str| {
            let mut text = String::with_capacity(self.bytes + 100);
            for line in &self.lines {
                if !text.is_empty() {
                    text.push_str(separator);
                }
                text.push_str(&line.text);
            }
            text
        };
        match self.endpoint {
            Endpoint::NativeBatch => joined("\n"),
            Endpoint::Segment(_) => format!("{{\"batch\":[{}],\"sentAt\":\"{sent_at}\"}}", joined(",")),
            Endpoint::DataApi(DataApiKind::Merge) => format!("{{\"merge_data\":[{}]}}", joined(",")),
            Endpoint::DataApi(DataApiKind::Delete) => joined(","),
            Endpoint::DataApi(_) => format!("{{\"type\":\"transition\",\"elements\":[{}]}}", joined(",")),
        }
    }

    /// The header `Authorization`.
    pub(super) fn authorization(&self, key: &str) -> String {
        match self.endpoint {
            Endpoint::Segment(_) => {
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{key}:")))
            }
            _ => format!("Bearer {key}"),
        }
    }
}

/// Where a record is to be sent.
///
/// # Errors
/// It is no JSON, which would spoil the records that share its request (only native requests have a line each).
pub(super) fn endpoint(source: Source, text: &str) -> Result<Endpoint, String> {
    /// What tells the data API's records apart.
    #[derive(Deserialize)]
    struct Told<'a> {
        #[serde(borrow)]
        merged_user: Option<&'a RawValue>,
        #[serde(borrow)]
        retained_user: Option<&'a RawValue>,
        #[serde(borrow)]
        identity_type: Option<&'a RawValue>,
        #[serde(borrow)]
        identity_value: Option<&'a RawValue>,
    }
    if source == Source::Native {
        return Ok(Endpoint::NativeBatch);
    }
    serde_json::from_str::<&RawValue>(text).map_err(|error| format!("not valid JSON: {error}"))?;
    if source == Source::Segment {
        return Ok(Endpoint::Segment(SegmentKind::Batch));
    }
    // What is no object is an element like any other, and the gateway says what is wrong with it.
    let kind = match serde_json::from_str::<Told<'_>>(text) {
        Ok(told) if told.merged_user.or(told.retained_user).is_some() => DataApiKind::Merge,
        Ok(told) if told.identity_type.or(told.identity_value).is_some() => DataApiKind::Delete,
        _ => DataApiKind::Transition,
    };
    Ok(Endpoint::DataApi(kind))
}

/// Which of the parallel senders takes a record: one for all records that the gateway routes alike, so that their order is kept (I3).
pub(super) fn lane(endpoint: Endpoint, line: &Line, lanes: usize) -> usize {
    if lanes < 2 {
        return 0;
    }
    let mut request = Request::new(endpoint);
    request.push(line.clone());
    let body = request.body("");
    let request = source::Request {
        tenant: "lane",
        endpoint,
        body: body.as_bytes(),
        ndjson: endpoint == Endpoint::NativeBatch,
        idempotency_key: None,
        received_ms: 0,
        trace: None,
    };
    let group =
        source::split(&request, &Limits::default(), &mut String::new).ok().and_then(|split| match split.first() {
            Some(Accepted::Envelope(envelope)) => Some(envelope.group as usize),
            // Whatever is refused has no order to keep.
            _ => None,
        });
    group.unwrap_or(0) % lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { file: "f".into(), number: 1, text: text.to_owned() }
    }

    fn data_api(text: &str) -> DataApiKind {
        match endpoint(Source::DataApi, text).unwrap() {
            Endpoint::DataApi(kind) => kind,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_data_api_has_an_endpoint_per_kind() {
        assert_eq!(data_api(r#"{"type":"customer","customer_id":"1"}"#), DataApiKind::Transition);
        assert_eq!(data_api(r#"{"merged_user":"1","retained_user":"2"}"#), DataApiKind::Merge);
        assert_eq!(data_api(r#"{"identity_type":"customer_id","identity_value":"1"}"#), DataApiKind::Delete);
        assert_eq!(data_api("[1]"), DataApiKind::Transition);
        assert!(endpoint(Source::DataApi, "{").is_err());
        assert_eq!(endpoint(Source::Native, "{"), Ok(Endpoint::NativeBatch));
    }

    #[test]
    fn a_request_holds_one_endpoint_and_no_more_than_it_may() {
        let mut request = Request::new(Endpoint::NativeBatch);
        assert!(request.takes(Endpoint::NativeBatch, 9_999_999, 1));
        request.push(line("{}"));
        assert!(request.takes(Endpoint::NativeBatch, 10, 2));
        assert!(!request.takes(Endpoint::NativeBatch, 10, 1));
        assert!(!request.takes(Endpoint::NativeBatch, MAX_BYTES, 2));
        assert!(!request.takes(Endpoint::DataApi(DataApiKind::Merge), 10, 2));
        let mut delete = Request::new(Endpoint::DataApi(DataApiKind::Delete));
        delete.push(line("{}"));
        assert!(!delete.takes(delete.endpoint, 10, 2));
    }

    #[test]
    fn bodies() {
        let body = |endpoint| {
            let mut request = Request::new(endpoint);
            request.push(line("{\"a\":1}"));
            request.push(line("{\"a\":2}"));
            request.body("T")
        };
        assert_eq!(body(Endpoint::NativeBatch), "{\"a\":1}\n{\"a\":2}");
        assert_eq!(body(Endpoint::Segment(SegmentKind::Batch)), r#"{"batch":[{"a":1},{"a":2}],"sentAt":"T"}"#);
        let elements = body(Endpoint::DataApi(DataApiKind::Transition));
        assert_eq!(elements, r#"{"type":"transition","elements":[{"a":1},{"a":2}]}"#);
        assert_eq!(body(Endpoint::DataApi(DataApiKind::Merge)), r#"{"merge_data":[{"a":1},{"a":2}]}"#);
    }

    #[test]
    fn one_routing_key_has_one_lane() {
        let lane_of = |text: &str| lane(Endpoint::NativeBatch, &line(text), 7);
        let user = lane_of(r#"{"type":"user","identifiers":{"anonymous_id":"a1"}}"#);
        assert_eq!(lane_of(r#"{"type":"event","identifiers":{"user_id":"9","anonymous_id":"a1"}}"#), user);
        let lanes: std::collections::HashSet<usize> =
            (10..60).map(|n| lane_of(&format!(r#"{{"type":"user","identifiers":{{"user_id":"{n}"}}}}"#))).collect();
        assert!(lanes.len() > 4, "{lanes:?}");
        assert_eq!(lane_of("{"), 0);
    }

    #[test]
    fn halves_keep_the_order() {
        let mut request = Request::new(Endpoint::NativeBatch);
        (0..3).for_each(|n| request.push(line(&n.to_string())));
        let (first, second) = request.halves().unwrap();
        assert_eq!((first.body(""), second.body("")), ("0\n1".to_owned(), "2".to_owned()));
        assert!(second.halves().is_none());
    }
}
