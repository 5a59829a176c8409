//! The trace context of a request: the sender's, or a new one for a share of the requests that bring none.

use super::now;
use crate::telemetry::traces::Span;
use axum::http::HeaderMap;
use millstream_model::id::hex;
use millstream_model::proto::TraceContext;
use millstream_model::trace;
use std::time::Duration;

/// A request's place in its trace.
pub(super) struct RequestTrace {
    trace_id: [u8; 16],
    parent: Option<[u8; 8]>,
    span_id: [u8; 8],
    /// The header `tracestate`.
    state: String,
    sampled: bool,
    begin: Duration,
}

impl RequestTrace {
    /// That of a request. A `traceparent` that cannot be read counts as none (W3C Trace Context, section 3.2.4).
    pub(super) fn of(headers: &HeaderMap, sample_ratio: f64) -> RequestTrace {
        let given = headers.get("traceparent").and_then(|value| trace::parse(value.to_str().ok()?));
        let (span_id, begin) = (rand::random(), now());
        let ids = given.as_ref().and_then(|given| {
            Some((given.trace_id.as_slice().try_into().ok()?, given.span_id.as_slice().try_into().ok()?))
        });
        match (ids, given) {
            (Some((trace_id, parent)), Some(given)) => {
                let state = headers.get_all("tracestate").iter().map(|value| value.to_str().unwrap_or("?"));
                let (state, sampled) = (trace::state(state), trace::is_sampled(&given));
                RequestTrace { trace_id, parent: Some(parent), span_id, state, sampled, begin }
            }
            _ => {
                let sampled = sample_ratio > 0.0 && rand::random::<f64>() < sample_ratio;
                RequestTrace { trace_id: rand::random(), parent: None, span_id, state: String::new(), sampled, begin }
            }
        }
    }

    /// The trace id, hexadecimal.
    pub(super) fn id(&self) -> String {
        hex(&self.trace_id)
    }

    /// The context that the request's records carry, when the trace is sampled.
    pub(super) fn sampled(&self) -> Option<TraceContext> {
        let context = || TraceContext {
            trace_id: self.trace_id.to_vec(),
            span_id: self.span_id.to_vec(),
            flags: 1,
            state: self.state.clone(),
        };
        self.sampled.then(context)
    }

    /// The request's own span, when the trace is sampled.
    pub(super) fn finish(&self, name: String, attributes: Vec<(&'static str, String)>, error: bool) -> Option<Span> {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let span = || Span {
            trace_id: self.trace_id,
            parent: self.parent,
            span_id: self.span_id,
            state: self.state.clone(),
            name,
            start_ns: nanoseconds(self.begin),
            end_ns: nanoseconds(now()),
            attributes,
            error,
        };
        self.sampled.then(span)
    }
}
