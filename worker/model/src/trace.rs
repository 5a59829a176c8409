//! W3C trace context: the headers `traceparent` and `tracestate` to and from [`TraceContext`].

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
    (!all_zero(&trace_id) && !all_zero(&span_id)).then_some(TraceContext {
        trace_id,
        span_id,
        flags,
        state: String::new(),
    })
}

/// The most characters of a `tracestate` that must be passed on (W3C Trace Context, section 3.3.1.5); a longer one is not.
pub const MAX_STATE_CHARS: usize = 512;
/// The most members of a `tracestate` (section 3.3.1.1).
const MAX_STATE_MEMBERS: usize = 32;

/// The `tracestate` of headers in their order, several of which are one list; empty when it is not one that may be passed on. What its members
/// say is the business of those that wrote them.
pub fn state<'a>(headers: impl Iterator<Item = &'a str>) -> String {
    let members: Vec<&str> = headers.flat_map(|header| header.split(',')).map(str::trim).collect();
    let members: Vec<&str> = members.into_iter().filter(|member| !member.is_empty()).collect();
    let well_formed = |member: &&str| {
        let printable = member.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        printable && member.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.contains('='))
    };
    let state = members.join(",");
    let passes =
        members.iter().all(well_formed) && members.len() <= MAX_STATE_MEMBERS && state.len() <= MAX_STATE_CHARS;
    if passes { state } else { String::new() }
}

/// The headers of a context: `traceparent`, and `tracestate` where there is one.
pub fn headers(context: &TraceContext) -> impl Iterator<Item = (&'static str, String)> {
    let state = (!context.state.is_empty()).then(|| ("tracestate", context.state.clone()));
    std::iter::once(("traceparent", format(context))).chain(state)
}

/// The trace id of a record for log lines: hexadecimal, of a sampled one.
pub fn sampled_id(context: Option<&TraceContext>) -> Option<String> {
    context.filter(|context| is_sampled(context)).map(|context| hex(&context.trace_id))
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
        assert_eq!(headers(&context).collect::<Vec<_>>(), [("traceparent", header.to_owned())]);
        let context = TraceContext { state: "a=1".into(), ..context };
        assert_eq!(headers(&context).last(), Some(("tracestate", "a=1".to_owned())));
        assert_eq!(sampled_id(Some(&context)).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        assert_eq!(sampled_id(Some(&TraceContext { flags: 0, ..context })), None);
    }

    #[test]
    fn a_state_is_passed_on_whole_or_not_at_all() {
        let of = |headers: &[&str]| state(headers.iter().copied());
        assert_eq!(
            of(&["rojo=00f067aa0ba902b7, congo=t61rcWkgMzE", "", " b=2 "]),
            "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE,b=2"
        );
        for refused in ["a", "=1", "a=1=2", "a=\u{e9}", &format!("a={}", "x".repeat(511)), &vec!["a=1"; 33].join(",")] {
            assert_eq!(of(&[refused]), "", "{refused}");
        }
        assert_eq!(of(&[]), "");
    }

    #[test]
    fn malformed_headers_are_no_context() {
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for header in ["", "00", "00-a-b-c", zero, "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"] {
            assert_eq!(parse(header), None, "{header}");
        }
    }
}
