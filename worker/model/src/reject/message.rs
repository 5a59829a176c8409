//! A reject as the topic `rejects` carries it. One builder serves all stages, so that a reader sees one shape whoever refused.
//!
//! What a reject keeps of its record depends on what its stage has: unify the record's own bytes, action the consolidated form and the place of
//! the bytes in `ingress`, reaction the mutation. The message stays below 1 MB, which every log takes: what is cut is marked `truncated`.

use super::{Reason, Refusal};
use crate::action;
use crate::event::cloud_event_headers;
use crate::proto::{Action, TraceContext};
use crate::{trace, value};
use serde::{Deserialize, Serialize};

/// CloudEvents type of rejects.
pub const CLOUD_EVENT_TYPE: &str = "dev.millstream.reject.v1";

/// The most original bytes that a reject carries: written as hexadecimal or as escaped JSON they must still fit into a message of 1 MB.
pub const MAX_ORIGINAL: usize = 300_000;

/// The most bytes of an action, as JSON: with everything else that a reject says it must fit into a message of 1 MB. No record within the default
/// limits reaches it.
pub const MAX_ACTION: usize = 800_000;

/// The record that a reject is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// native, data_api, segment.
    pub source: &'a str,
    /// What the source calls it.
    pub kind: &'a str,
    /// The stage that rejects it.
    pub stage: &'a str,
    /// Its message id.
    pub message_id: &'a str,
    /// When it entered the log, milliseconds since 1970.
    pub time_ms: u64,
}

/// Where a record's own bytes are, for as long as the topic keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// Partition of `ingress`.
    pub partition: u32,
    /// Offset of the frame.
    pub offset: u64,
    /// Which record of the frame, from 0.
    pub index: u32,
}

/// A reject as the topic `rejects` carries it, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// Deterministic: the same record has the same id however often it is processed (hexadecimal).
    pub id: String,
    /// Whose record it was.
    pub tenant: String,
    /// native, data_api, segment.
    pub source: String,
    /// What the source calls the record: identify, event, ...
    pub kind: String,
    /// The stage that rejected it: unify, action, reaction.
    pub stage: String,
    /// Why.
    pub reason: Reason,
    /// Dotted path of the field to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong and what to do.
    pub message: String,
    /// The record's message id.
    pub message_id: String,
    /// When the record entered the log, RFC 3339.
    pub time: String,
    /// The record is longer than a message of the log takes comfortably; what is here is its beginning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The record's own bytes, when they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<String>,
    /// The record's own bytes in hexadecimal, when they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_hex: Option<String>,
    /// Where the record's own bytes are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// The record in its consolidated form, or, of a partial reject, what was refused of it ([`crate::action`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<serde_json::Value>,
    /// It is about a part of a record; what the record counts as is decided elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl Reject {
    /// A reject that says why, without what the record was.
    pub fn new(id: impl Into<String>, about: &About<'_>, refusal: Refusal) -> Reject {
        Reject {
            id: id.into(),
            tenant: about.tenant.to_owned(),
            source: about.source.to_owned(),
            kind: about.kind.to_owned(),
            stage: about.stage.to_owned(),
            reason: refusal.reason,
            field: refusal.field,
            message: refusal.message,
            message_id: about.message_id.to_owned(),
            time: value::format_time(i64::try_from(about.time_ms).unwrap_or(i64::MAX)),
            truncated: false,
            original: None,
            original_hex: None,
            ingress: None,
            action: None,
            partial: false,
        }
    }

    /// Keeps the original bytes in the field that can hold them; of more than [`MAX_ORIGINAL`] the first.
    pub fn with_original(mut self, bytes: &[u8]) -> Reject {
        self.truncated = bytes.len() > MAX_ORIGINAL;
        let mut end = bytes.len().min(MAX_ORIGINAL);
        // Text is not cut within a character.
        while self.truncated && end > 0 && bytes.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
            end -= 1;
        }
        let bytes = bytes.get(..end).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => self.original = Some(text.to_owned()),
            Err(_) => self.original_hex = Some(crate::id::hex(bytes)),
        }
        self
    }

    /// Says where the record's own bytes are.
    pub fn with_ingress(self, ingress: Ingress) -> Reject {
        Reject { ingress: Some(ingress), ..self }
    }

    /// Keeps the record in its consolidated form, up to [`MAX_ACTION`] bytes.
    pub fn with_action(mut self, action: &Action) -> Reject {
        let (json, truncated) = action::readable(action, MAX_ACTION);
        (self.action, self.truncated) = (Some(json), truncated);
        self
    }

    /// Of a part of a record, or of a whole one.
    pub fn with_partial(self, partial: bool) -> Reject {
        Reject { partial, ..self }
    }

    /// The message's headers: CloudEvents attributes, and the trace context of a sampled record.
    pub fn headers(&self, context: Option<&TraceContext>) -> Vec<(&'static str, String)> {
        let mut headers = cloud_event_headers(CLOUD_EVENT_TYPE, &self.id, &self.tenant, &self.source, &self.time);
        headers.extend(context.into_iter().flat_map(trace::headers));
        headers
    }

    /// The message's payload.
    pub fn payload(&self) -> Vec<u8> {
        // Strings, numbers, enums and JSON only: writing them as JSON cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Change, Event, Identifier, Member, Value, change::Op};

    const ABOUT: About<'_> = About {
        tenant: "acme",
        source: "native",
        kind: "user",
        stage: "action",
        message_id: "m",
        time_ms: 1_700_000_000_123,
    };

    fn reject() -> Reject {
        Reject::new("00ff", &ABOUT, Refusal::new(Reason::TooOld, "sent too late"))
    }

    fn text(reject: &Reject) -> String {
        String::from_utf8(reject.payload()).unwrap()
    }

    /// Readers rely on these bytes; new members only come behind the ones that were there.
    #[test]
    fn the_bytes_of_each_form() {
        let begin =
            r#"{"id":"00ff","tenant":"acme","source":"native","kind":"user","stage":"action","reason":"too_old","#;
        let end = r#""message":"sent too late","message_id":"m","time":"2023-11-14T22:13:20.123Z""#;
        assert_eq!(text(&reject()), format!("{begin}{end}}}"));
        let field = Reject { field: Some("set.a".into()), ..reject() };
        assert_eq!(text(&field), format!(r#"{begin}"field":"set.a",{end}}}"#));
        let original = reject().with_original(b"{}").with_partial(true);
        assert_eq!(text(&original), format!(r#"{begin}{end},"original":"{{}}","partial":true}}"#));
        assert_eq!(text(&reject().with_original(&[0xff])), format!(r#"{begin}{end},"original_hex":"ff"}}"#));
        let ingress = Ingress { partition: 3, offset: 42, index: 7 };
        let action = Action { delete: true, ..Action::default() };
        let place = r#""ingress":{"partition":3,"offset":42,"index":7}"#;
        let shown = r#""action":{"type":"delete","time":"1970-01-01T00:00:00Z"}"#;
        assert_eq!(
            text(&reject().with_ingress(ingress).with_action(&action)),
            format!("{begin}{end},{place},{shown}}}")
        );
        assert_eq!(serde_json::from_slice::<Reject>(&original.payload()).unwrap(), original);
    }

    #[test]
    fn the_headers_are_those_of_cloud_events_and_the_trace() {
        let context = TraceContext { trace_id: vec![1; 16], span_id: vec![2; 8], flags: 1, state: "a=1".into() };
        let headers = reject().headers(Some(&context));
        let find = |name| headers.iter().find(|(header, _)| *header == name).map(|(_, value)| value.as_str());
        assert_eq!((find("ce_id"), find("ce_source")), (Some("00ff"), Some("/millstream/acme/native")));
        assert_eq!((find("ce_type"), find("ce_time")), (Some(CLOUD_EVENT_TYPE), Some("2023-11-14T22:13:20.123Z")));
        assert_eq!(find("tracestate"), Some("a=1"));
        assert!(find("traceparent").is_some_and(|context| context.starts_with("00-0101")));
        assert_eq!(reject().headers(None).len(), headers.len() - 2);
    }

    #[test]
    fn the_original_is_kept_as_far_as_it_fits() {
        let reject = |bytes: &[u8]| reject().with_original(bytes);
        assert_eq!(reject(b"{}").original.as_deref(), Some("{}"));
        assert!(!reject(b"{}").truncated);
        assert_eq!(reject(&[0xff]).original_hex.as_deref(), Some("ff"));
        let long = reject("ä".repeat(MAX_ORIGINAL).as_bytes());
        assert!(long.truncated);
        assert_eq!(long.original.map(|text| text.len()), Some(MAX_ORIGINAL));
        let odd = reject(format!("x{}", "ä".repeat(MAX_ORIGINAL)).as_bytes());
        assert_eq!(odd.original.map(|text| text.len()), Some(MAX_ORIGINAL - 1));
    }

    /// Control characters are the worst: each is six bytes of JSON.
    #[test]
    fn a_message_is_below_one_megabyte_whatever_the_action() {
        let bad = "\u{1}".repeat(512);
        let member = |index: usize| (format!("{index}{bad}"), Value::string(&*bad));
        let set = |index| Change { name: member(index).0, op: Some(Op::Set(member(index).1)) };
        let property = |index| Member { name: member(index).0, value: Some(member(index).1) };
        let action = Action {
            user_identifiers: (0..50).map(|index| Identifier::new("x".repeat(64), member(index).0)).collect(),
            user_changes: (0..256).map(set).collect(),
            device_changes: (0..256).map(set).collect(),
            event: Some(Event { name: bad.clone(), properties: (0..100).map(property).collect() }),
            ..Action::default()
        };
        let kept = reject().with_action(&action);
        let size = kept.payload().len();
        assert!(kept.truncated && size < 1_000_000 && size > MAX_ACTION - 10_000, "{size} bytes");
        let json = kept.action.unwrap();
        assert_eq!(
            json["identifiers"]["x".repeat(64)].as_array().map(Vec::len),
            Some(50),
            "who it is about goes first"
        );
    }
}
