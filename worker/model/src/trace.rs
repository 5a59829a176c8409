//! W3C trace context: `traceparent` headers to and from [`TraceContext`].

use crate::id::{hex, unhex};
use crate::proto::TraceContext;

/// Reads a `traceparent` header, `00-<trace id>-<span id>-<flags>`; `None` when it is malformed or all zero.
pub fn parse(header: &str) -> Option<TraceContext> {
    let mut parts = header.trim().split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let lengths = (version.len(), trace.len(), span.len(), flags.len());
    if lengths != (2, 32, 16, 2) || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let (trace_id, span_id) = (unhex(trace)?, unhex(span)?);
    let flags = u32::from(*unhex(flags)?.first()?);
    let all_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    (!all_zero(&trace_id) && !all_zero(&span_id)).then_some(TraceContext { trace_id, span_id, flags })
}

/// The `traceparent` header of a context.
pub fn format(context: &TraceContext) -> String {
    format!("00-{}-{}-{:02x}", hex(&context.trace_id), hex(&context.span_id), context.flags & 0xff)
}

/// Is the record's trace sampled?
pub fn is_sampled(context: &TraceContext) -> bool {
    context.flags & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways() {
        let header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context = parse(header).unwrap();
        assert!(is_sampled(&context));
        assert_eq!(format(&context), header);
    }

    #[test]
    fn malformed_headers_are_no_context() {
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for header in ["", "00", "00-a-b-c", zero, "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert_eq!(parse(header), None, "{header}");
        }
    }
}
