//! Control and status as bytes: one frame of one record per message (`docs/src/reference/frames.md`).
//!
//! `control` is compacted, so each message has a key that names what it is the newest of, and none repeats what another says. A message of a kind that
//! this version does not know is skipped, not refused: it is for newer workers. What is malformed is refused and says
//! which topic holds it; the reader skips it and goes on, because the last good plan is better than none.

use crate::incarnation::NotAnIncarnation;
use crate::plan::Plan;
use crate::status::WorkerStatus;
use crate::wire;
use millstream_model::frame::{self, Content, FrameError};
use millstream_model::proto;
use prost::Message;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The version in which workers write. Within a generation it is only raised; of several the greatest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FormatLevel {
    /// Generation of the pipeline that it is for.
    pub generation: u32,
    /// The level, from 1.
    pub level: u32,
}

/// A tenant of the pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Grows with each change of any tenant of the pipeline; of several messages about one tenant the highest counts.
    pub version: u64,
    /// On which terms it sends.
    pub terms: Terms,
    /// It is gone: no key is good any more.
    pub is_deleted: bool,
    /// What was received of it up to here is erased, for good: also when it is there again. Milliseconds since 1970; 0: nothing.
    pub erased_ms: u64,
}

/// The steps of an erasure, one after the other; each is published when the one before is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasing {
    /// The action stage takes users and devices out of its state, and publishes that.
    State,
    /// The reaction stage reads on, up to where `mutations` ended when it heard this: then all documents are gone.
    Documents,
}

/// On which terms a tenant sends: what is published of it, and compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// SHA-256 of each of its API keys. Keys themselves are in no topic.
    pub api_keys: BTreeSet<[u8; 32]>,
    /// What unify takes of it.
    pub rules: Rules,
    /// How much gateways take of it.
    pub rate: Rate,
    /// It goes, with all that it has sent.
    pub erasing: Option<Erasing>,
}

impl Terms {
    /// Of a tenant that goes, with all that it has sent: no key is good.
    pub fn erasing(step: Erasing) -> Terms {
        Terms { erasing: Some(step), ..Terms::default() }
    }
}

/// What a tenant's records may contain, and whom they may be about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where they are less than the pipeline's own.
    pub limits: Limits,
    /// Identifier values that name nobody at this tenant; without case.
    pub forbidden_values: BTreeSet<String>,
}

impl Rules {
    /// It says nothing: what is the pipeline's own counts.
    pub fn is_empty(&self) -> bool {
        *self == Rules::default()
    }
}

/// What a tenant's records may contain; `None`, or more than the pipeline's own: as much as that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a record.
    pub max_record_bytes: Option<u64>,
    /// Properties of an event.
    pub max_properties: Option<u64>,
    /// Characters of a string.
    pub max_string_chars: Option<u64>,
    /// Identifiers of a record.
    pub max_identifiers: Option<u64>,
    /// Actions of one data API event.
    pub max_actions: Option<u64>,
}

/// How much a tenant may send in a second, to all gateways together; `None`: as much as it likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Records.
    pub records: Option<u64>,
    /// Bytes of bodies, decompressed.
    pub bytes: Option<u64>,
}

/// How many gateways share the rates of tenants. Of several messages the one of the highest version counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateways {
    /// Grows with each change.
    pub version: u64,
    /// How many; at least 1.
    pub count: u32,
}

/// A savepoint that is being taken. Of several messages about one, that it has ended counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Savepoint {
    /// Greater than that of every savepoint before.
    pub id: u64,
    /// It is complete, or was given up.
    pub has_ended: bool,
    /// Generation of the pipeline.
    pub generation: u32,
}

/// One message of `control`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Who owns what.
    Plan(Plan),
    /// In which version workers write.
    FormatLevel(FormatLevel),
    /// Who may send, and on which terms.
    Tenant(Tenant),
    /// How many gateways share the rates of tenants.
    Gateways(Gateways),
    /// What shards are to cut for.
    Savepoint(Savepoint),
}

/// Bytes of `control` or `status` that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Not a frame, or one of another topic.
    #[error("cannot read a message of {topic}: {error}")]
    Frame {
        /// `control` or `status`.
        topic: &'static str,
        /// Why.
        error: FrameError,
    },
    /// Not the record that the topic holds.
    #[error("cannot read a message of {topic}: {what}; only Millstream may write there")]
    Malformed {
        /// `control` or `status`.
        topic: &'static str,
        /// What is wrong.
        what: String,
    },
    /// A worker that names itself wrongly.
    #[error("cannot read a message of status: {0}")]
    Incarnation(#[from] NotAnIncarnation),
}

pub(crate) const CONTROL: &str = "control";
pub(crate) const STATUS: &str = "status";

/// The key of a control message: the compacted topic keeps the newest of each.
pub fn control_key(control: &Control) -> Cow<'static, str> {
    match control {
        Control::Plan(_) => "plan".into(),
        Control::FormatLevel(_) => "format-level".into(),
        Control::Tenant(tenant) => format!("tenant/{}", tenant.name).into(),
        Control::Gateways(_) => "gateways".into(),
        Control::Savepoint(savepoint) => format!("savepoint/{}", savepoint.id).into(),
    }
}

/// The bytes of a control message.
pub fn encode_control(control: &Control) -> Vec<u8> {
    use proto::control::Kind;
    let kind = match control {
        Control::Plan(plan) => Kind::Plan(wire::plan_to_proto(plan)),
        Control::FormatLevel(FormatLevel { generation, level }) => {
            Kind::FormatLevel(proto::FormatLevel { generation: *generation, level: *level })
        }
        Control::Tenant(tenant) => Kind::Tenant(wire::tenant_to_proto(tenant)),
        Control::Gateways(Gateways { version, count }) => {
            Kind::Gateways(proto::Gateways { version: *version, count: *count })
        }
        Control::Savepoint(Savepoint { id, has_ended, generation }) => {
            Kind::Savepoint(proto::Savepoint { id: *id, generation: *generation, ended: *has_ended })
        }
    };
    frame::single(Content::Control, &proto::Control { kind: Some(kind) })
}

/// Reads a control message; nothing when its kind is for newer workers.
///
/// # Errors
/// [`MessageError`] when it is not one.
pub fn decode_control(bytes: &[u8]) -> Result<Option<Control>, MessageError> {
    use proto::control::Kind;
    let control: proto::Control = record(bytes, Content::Control, CONTROL)?;
    match control.kind {
        Some(Kind::Plan(plan)) => wire::plan_from_proto(plan).map(Control::Plan).map(Some),
        Some(Kind::FormatLevel(proto::FormatLevel { generation, level })) => {
            Ok(Some(Control::FormatLevel(FormatLevel { generation, level })))
        }
        Some(Kind::Tenant(tenant)) => wire::tenant_from_proto(tenant).map(Control::Tenant).map(Some),
        // None at all cannot be: whoever hears it is one.
        Some(Kind::Gateways(proto::Gateways { version, count })) => {
            Ok(Some(Control::Gateways(Gateways { version, count: count.max(1) })))
        }
        Some(Kind::Savepoint(proto::Savepoint { id, generation, ended })) => {
            Ok(Some(Control::Savepoint(Savepoint { id, has_ended: ended, generation })))
        }
        None => Ok(None),
    }
}

/// The bytes of a report; its key is the worker's name.
pub fn encode_status(status: &WorkerStatus) -> Vec<u8> {
    frame::single(Content::Status, &wire::status_to_proto(status))
}

/// Reads a report.
///
/// # Errors
/// [`MessageError`] when it is not one.
pub fn decode_status(bytes: &[u8]) -> Result<WorkerStatus, MessageError> {
    wire::status_from_proto(record(bytes, Content::Status, STATUS)?)
}

pub(crate) fn malformed(topic: &'static str, what: impl Into<String>) -> MessageError {
    MessageError::Malformed { topic, what: what.into() }
}

/// The one record of a frame.
fn record<M: Message + Default>(bytes: &[u8], content: Content, topic: &'static str) -> Result<M, MessageError> {
    let of_frame = |error| MessageError::Frame { topic, error };
    let mut records = frame::read(bytes, content).map_err(of_frame)?;
    let first = records.next().ok_or_else(|| malformed(topic, "an empty frame"))?.map_err(of_frame)?;
    if records.left() > 0 {
        return Err(malformed(topic, "more than one record in a frame"));
    }
    M::decode(first).map_err(|error| malformed(topic, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incarnation::Incarnation;
    use crate::plan::{Placement, ShardId, Version};
    use crate::status::{Role, ShardStatus};
    use crate::unread::{Kept, Unread};
    use crate::wire::{plan_to_proto, status_to_proto};
    use std::collections::BTreeSet;

    fn plan() -> Plan {
        let placement = |owner: &str, moving_to: Option<&str>| Placement {
            owner: owner.into(),
            successors: vec!["b".into(), "c".into()],
            warm: 1,
            moving_to: moving_to.map(str::to_owned),
        };
        let placements =
            [(ShardId::new("action", 1), placement("a", Some("c"))), (ShardId::new("unify", 0), placement("d", None))];
        Plan { version: Version { term: 2, number: 7 }, generation: 3, placements: placements.into() }
    }

    fn tenant() -> Tenant {
        let limits = Limits {
            max_record_bytes: Some(1),
            max_properties: Some(2),
            max_string_chars: Some(3),
            max_identifiers: Some(4),
            max_actions: Some(5),
        };
        let rules = Rules { limits, forbidden_values: ["none".to_owned(), "test".to_owned()].into() };
        let rate = Rate { records: Some(6), bytes: Some(7) };
        let terms = Terms { api_keys: [[1; 32], [2; 32]].into(), rules, rate, erasing: Some(Erasing::Documents) };
        Tenant { name: "acme".into(), version: 7, terms, is_deleted: false, erased_ms: 1_790_000_000_000 }
    }

    #[test]
    fn a_hash_of_another_length_is_refused() {
        let mut proto = wire::tenant_to_proto(&tenant());
        proto.api_key_hashes[1].pop();
        let kind = Some(proto::control::Kind::Tenant(proto));
        let bytes = frame::single(Content::Control, &proto::Control { kind });
        let error = decode_control(&bytes).unwrap_err().to_string();
        assert!(error.contains("tenant acme has a key whose hash has 31 bytes"), "{error}");
    }

    fn unread(kept: Option<Kept>) -> Unread {
        Unread { topic: "p.ingress".into(), watermark_ms: Some(5), age_ms: Some(0), kept, near_start: true }
    }

    /// Of an input that was processed further.
    fn further() -> Unread {
        Unread { topic: "p.exchange".into(), watermark_ms: Some(6), ..unread(None) }
    }

    fn status() -> WorkerStatus {
        let shard = ShardStatus {
            role: Role::Standby,
            changelog_offset: 10,
            lag: 2,
            digest: u64::MAX,
            epoch: 4,
            batch_number: 9,
            condition: "disk is slow".into(),
            prepared: Some("b-17".into()),
            unread_ms: Some(0),
            unread: vec![further(), unread(Some(Kept::For(7)))],
            control_offset: 98,
        };
        let for_ever = ShardStatus { unread: vec![unread(Some(Kept::ForEver))], ..ShardStatus::default() };
        let not_known = Unread { watermark_ms: None, age_ms: None, near_start: false, ..unread(None) };
        let unlike = ShardStatus { unread: vec![not_known], ..ShardStatus::default() };
        WorkerStatus {
            worker: "b".into(),
            incarnation: Incarnation::new(1, 2),
            sequence: 3,
            generation: 1,
            zone: "z".into(),
            node: "n".into(),
            started_ms: 1,
            capacity: 2,
            leaving: true,
            stages: BTreeSet::from(["action".into()]),
            shards: [shard, ShardStatus::default(), for_ever, unlike]
                .into_iter()
                .zip(1..)
                .map(|(status, number)| (ShardId::new("action", number), status))
                .collect(),
            control_offset: 99,
            version: "1.2.3".into(),
            known: [(ShardId::new("action", 9), vec![further(), unread(Some(Kept::For(7)))])].into(),
            unable: [ShardId::new("unify", 3)].into(),
            knows_markers: true,
        }
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let level = Control::FormatLevel(FormatLevel { generation: 3, level: 2 });
        let api_keys = [[3; 32]].into();
        let keys_only = Tenant { terms: Terms { api_keys, ..Terms::default() }, ..tenant() };
        let gateways = Control::Gateways(Gateways { version: 2, count: 3 });
        let savepoint = Control::Savepoint(Savepoint { id: u64::MAX, has_ended: true, generation: 3 });
        let tenants = [tenant(), keys_only].map(Control::Tenant);
        for control in [Control::Plan(plan()), level, gateways, savepoint].into_iter().chain(tenants) {
            assert_eq!(decode_control(&encode_control(&control)).unwrap(), Some(control));
        }
        assert_eq!(decode_status(&encode_status(&status())).unwrap(), status());
    }

    #[test]
    fn each_kind_of_control_message_has_a_key_of_its_own() {
        assert_eq!(control_key(&Control::Plan(plan())), "plan");
        assert_eq!(control_key(&Control::FormatLevel(FormatLevel::default())), "format-level");
        assert_eq!(control_key(&Control::Tenant(tenant())), "tenant/acme");
        assert_eq!(control_key(&Control::Gateways(Gateways::default())), "gateways");
        let savepoint = Savepoint { id: 7, ..Savepoint::default() };
        assert_eq!(control_key(&Control::Savepoint(savepoint)), "savepoint/7");
    }

    #[test]
    fn a_kind_or_a_role_of_a_newer_version_is_no_error() {
        // Some other message with nothing but field 15, which Control does not have.
        let unknown = proto::Action { update_existing_only: true, ..proto::Action::default() };
        let newer = frame::single(Content::Control, &unknown);
        assert_eq!(decode_control(&newer).unwrap(), None);
        let mut newer = status_to_proto(&status());
        newer.shards[0].role = 99;
        let read = decode_status(&frame::single(Content::Status, &newer)).unwrap();
        assert_eq!(read.shards[&ShardId::new("action", 1)].role, Role::Opening);
    }

    #[test]
    fn a_former_version_tells_of_one_input() {
        let mut former = status_to_proto(&status());
        former.shards.iter_mut().for_each(|shard| shard.inputs.clear());
        former.known.iter_mut().for_each(|known| known.inputs.clear());
        let read = decode_status(&frame::single(Content::Status, &former)).unwrap();
        assert_eq!(read.shards[&ShardId::new("action", 1)].unread, [unread(Some(Kept::For(7)))]);
        assert_eq!(read.known[&ShardId::new("action", 9)], [unread(Some(Kept::For(7)))]);
    }

    #[test]
    fn what_is_malformed_says_where_and_why() {
        let error = |bytes: &[u8]| decode_status(bytes).unwrap_err().to_string();
        assert!(error(b"{}").starts_with("cannot read a message of status: not a frame"));
        assert!(error(&encode_control(&Control::Plan(plan()))).contains("content 6"));
        let with = |change: fn(&mut proto::WorkerStatus)| {
            let mut message = status_to_proto(&status());
            change(&mut message);
            frame::single(Content::Status, &message)
        };
        assert!(error(&with(|message| message.worker.clear())).contains("names no worker"));
        assert!(error(&with(|message| message.incarnation = "19a-7".into())).contains("`19a-7` is no incarnation"));
    }

    #[test]
    fn a_plan_that_places_a_shard_twice_is_refused() {
        let mut twice = plan_to_proto(&plan());
        twice.placements.push(twice.placements[0].clone());
        let kind = Some(proto::control::Kind::Plan(twice));
        let bytes = frame::single(Content::Control, &proto::Control { kind });
        assert!(decode_control(&bytes).unwrap_err().to_string().contains("plan 2.7 places action[1] twice"));
    }
}
