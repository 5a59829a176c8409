//! The message that `rejects` carries (I2): every stage's is built here, headers included, and is keyed by its tenant.

use crate::PublicMessage;
use millstream_model::key::GROUPS;
use millstream_model::proto::TraceContext;
use millstream_model::reject::Reject;

/// The message of a reject; `group` is its record's key group, which others may have written and which chooses the partition.
pub fn message(reject: &Reject, trace: Option<&TraceContext>, group: u32) -> PublicMessage {
    PublicMessage {
        key: reject.tenant.as_bytes().to_vec(),
        headers: reject.headers(trace),
        payload: reject.payload(),
        group: u16::try_from(group % u32::from(GROUPS)).unwrap_or_default(),
    }
}
