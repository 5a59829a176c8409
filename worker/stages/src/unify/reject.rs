//! What goes to `rejects` (I2).
//!
//! Of several messages about one record, the first carries its original bytes. A message with `"partial": true` is not about a whole record: a part
//! of it was refused, or a field was dropped or cut, and the rest went on; it counts in no sum.

use crate::{At, Outbox, Rejected, reject};
use millstream_model::id::{hex, record_id};
use millstream_model::proto::{Envelope, TraceContext};
use millstream_model::reject::{About, Refusal, Reject};

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
        let trace_id = self.trace.as_ref().map(|trace| trace.trace_id.clone()).unwrap_or_default();
        let (tenant, message_id) = (self.tenant.to_owned(), self.envelope.message_id.clone());
        out.reasons.push(Rejected { tenant, reason: refusal.reason, message_id, trace_id });
        self.message(self.id(0), refusal, false, out);
    }

    /// One of the record's parts will not be processed; `partial` when another one will.
    pub(super) fn part(&mut self, part: u32, refusal: Refusal, partial: bool, out: &mut Outbox) {
        self.message(self.id(part), refusal, partial, out);
    }

    /// Fields of a part were dropped or cut: one message for all of them.
    pub(super) fn reports(&mut self, part: u32, reports: &[Refusal], out: &mut Outbox) {
        let Some(refusal) = Refusal::join(reports) else { return };
        let id = format!("{}.partial", self.id(part));
        self.message(id, refusal, true, out);
    }

    fn id(&self, part: u32) -> String {
        let (envelope, at) = (self.envelope, self.at);
        hex(&record_id(&envelope.tenant, &envelope.message_id, at.partition, &at.stamp, part))
    }

    fn message(&mut self, id: String, refusal: Refusal, partial: bool, out: &mut Outbox) {
        let envelope = self.envelope;
        let about = About {
            tenant: self.tenant,
            source: envelope.source().code(),
            kind: &envelope.kind,
            stage: "unify",
            message_id: &envelope.message_id,
            time_ms: self.at.stamp.time_ms,
        };
        let reject = Reject::new(id, &about, refusal).with_partial(partial);
        let repeated = std::mem::replace(&mut self.has_original, true);
        let reject = if repeated { reject } else { reject.with_original(&envelope.body) };
        out.rejects.push(reject::message(&reject, self.trace.as_ref(), envelope.group));
    }
}
