//! What goes to `rejects` (I2).
//!
//! Of several messages about one record, the first carries its original bytes. A message with `"partial": true` is not about a whole record: a part
//! of it was refused, or a field was dropped or cut, and the rest went on; it counts in no sum.

use crate::{At, Outbox, PublicMessage};
use millstream_model::event::cloud_event_headers;
use millstream_model::id::{hex, record_id};
use millstream_model::proto::{Envelope, TraceContext};
use millstream_model::reject::{CLOUD_EVENT_TYPE, Refusal, Reject};
use millstream_model::value::format_time;
use serde::Serialize;

/// A reject, and whether the rest of its record went on.
#[derive(Serialize)]
struct Message {
    #[serde(flatten)]
    reject: Reject,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// Writes the rejects of one record.
pub(super) struct Rejecter<'a> {
    pub(super) envelope: &'a Envelope,
    /// Where the record's sums are counted.
    pub(super) tenant: &'a str,
    pub(super) at: &'a At,
    pub(super) trace: Option<TraceContext>,
    /// Was the original in a message already?
    pub(super) has_original: bool,
}

impl Rejecter<'_> {
    /// The whole record will not be processed.
    pub(super) fn whole(&mut self, refusal: Refusal, out: &mut Outbox) {
        out.usage(self.tenant).rejects += 1;
        out.reasons.push((self.tenant.to_owned(), refusal.reason));
        self.message(self.id(0), refusal, false, out);
    }

    /// One of the record's parts will not be processed; `partial` when another one will.
    pub(super) fn part(&mut self, part: u32, refusal: Refusal, partial: bool, out: &mut Outbox) {
        self.message(self.id(part), refusal, partial, out);
    }

    /// Fields of a part were dropped or cut: one message for all of them.
    pub(super) fn reports(&mut self, part: u32, reports: &[Refusal], out: &mut Outbox) {
        const NAMED: usize = 10;
        let count = reports.len();
        let Some(first) = reports.first() else { return };
        let (reason, field) = (first.reason, first.field.clone());
        let name = |report: &Refusal| match &report.field {
            Some(field) if count > 1 => format!("{field}: {}", report.message),
            _ => report.message.clone(),
        };
        let mut message = reports.iter().take(NAMED).map(name).collect::<Vec<_>>().join("; ");
        if count > NAMED {
            message.push_str(&format!("; and {} more", count - NAMED));
        }
        let id = format!("{}.partial", self.id(part));
        self.message(id, Refusal { reason, field, message }, true, out);
    }

    fn id(&self, part: u32) -> String {
        let (envelope, at) = (self.envelope, self.at);
        hex(&record_id(&envelope.tenant, &envelope.message_id, at.partition, &at.stamp, part))
    }

    fn message(&mut self, id: String, refusal: Refusal, partial: bool, out: &mut Outbox) {
        let time = format_time(i64::try_from(self.at.stamp.time_ms).unwrap_or(i64::MAX));
        let source = self.envelope.source().code();
        let mut headers = cloud_event_headers(CLOUD_EVENT_TYPE, &id, self.tenant, source, &time);
        headers.extend(self.trace.as_ref().map(|trace| ("traceparent", millstream_model::trace::format(trace))));
        let reject = Reject {
            id,
            tenant: self.tenant.to_owned(),
            source: source.to_owned(),
            kind: self.envelope.kind.clone(),
            stage: "unify".to_owned(),
            reason: refusal.reason,
            field: refusal.field,
            message: refusal.message,
            message_id: self.envelope.message_id.clone(),
            time,
            original: None,
            original_hex: None,
            truncated: false,
        };
        let repeated = std::mem::replace(&mut self.has_original, true);
        let reject = if repeated { reject } else { reject.with_original(&self.envelope.body) };
        // Strings, numbers and enums only: writing them as JSON cannot fail.
        let payload = serde_json::to_vec(&Message { reject, partial }).unwrap_or_default();
        let group = u16::try_from(self.envelope.group % u32::from(millstream_model::key::GROUPS)).unwrap_or_default();
        out.rejects.push(PublicMessage { key: self.tenant.as_bytes().to_vec(), headers, payload, group });
    }
}
