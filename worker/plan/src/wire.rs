//! Plan and report in the shapes of the Protobuf contract, where an empty text stands for nothing.

use crate::incarnation::Incarnation;
use crate::message::{CONTROL, Erasing, Limits, MessageError, Rate, Rules, STATUS, Tenant, Terms, malformed};
use crate::plan::{Placement, Plan, ShardId, Version};
use crate::status::{Role, ShardStatus, WorkerStatus};
use crate::unread::{Kept, Unread};
use millstream_model::proto;
use std::collections::BTreeMap;

pub(crate) fn plan_to_proto(plan: &Plan) -> proto::Plan {
    let placements = plan.placements.iter().map(|(id, placement)| proto::Placement {
        stage: id.stage.clone(),
        shard: id.shard,
        owner: placement.owner.clone(),
        successors: placement.successors.clone(),
        warm: placement.warm,
        moving_to: placement.moving_to.clone().unwrap_or_default(),
    });
    proto::Plan {
        term: plan.version.term,
        number: plan.version.number,
        generation: plan.generation,
        placements: placements.collect(),
    }
}

pub(crate) fn plan_from_proto(plan: proto::Plan) -> Result<Plan, MessageError> {
    let mut placements = BTreeMap::new();
    for of in plan.placements {
        let id = ShardId { stage: of.stage, shard: of.shard };
        let moving_to = Some(of.moving_to).filter(|to| !to.is_empty());
        let placement = Placement { owner: of.owner, successors: of.successors, warm: of.warm, moving_to };
        if placements.insert(id.clone(), placement).is_some() {
            return Err(malformed(CONTROL, format!("plan {}.{} places {id} twice", plan.term, plan.number)));
        }
    }
    let version = Version { term: plan.term, number: plan.number };
    Ok(Plan { version, generation: plan.generation, placements })
}

pub(crate) fn tenant_to_proto(tenant: &Tenant) -> proto::Tenant {
    proto::Tenant {
        name: tenant.name.clone(),
        version: tenant.version,
        api_key_hashes: tenant.terms.api_keys.iter().map(|hash| hash.to_vec()).collect(),
        deleted: tenant.is_deleted,
        limits: limits_to_proto(&tenant.terms.rules.limits),
        forbidden_values: tenant.terms.rules.forbidden_values.iter().cloned().collect(),
        rate: rate_to_proto(tenant.terms.rate),
        erased_ms: tenant.erased_ms,
        erasing: erasing_to_proto(tenant.terms.erasing).into(),
    }
}

fn erasing_to_proto(erasing: Option<Erasing>) -> proto::Erasing {
    match erasing {
        None => proto::Erasing::Unspecified,
        Some(Erasing::State) => proto::Erasing::State,
        Some(Erasing::Documents) => proto::Erasing::Documents,
    }
}

fn erasing_from_proto(erasing: proto::Erasing) -> Option<Erasing> {
    match erasing {
        proto::Erasing::Unspecified => None,
        proto::Erasing::State => Some(Erasing::State),
        proto::Erasing::Documents => Some(Erasing::Documents),
    }
}

fn limits_to_proto(limits: &Limits) -> Option<proto::TenantLimits> {
    (*limits != Limits::default()).then(|| proto::TenantLimits {
        max_record_bytes: limits.max_record_bytes.unwrap_or_default(),
        max_properties: limits.max_properties.unwrap_or_default(),
        max_string_chars: limits.max_string_chars.unwrap_or_default(),
        max_identifiers: limits.max_identifiers.unwrap_or_default(),
        max_actions: limits.max_actions.unwrap_or_default(),
    })
}

fn rate_to_proto(Rate { records, bytes }: Rate) -> Option<proto::TenantRate> {
    let is_given = records.is_some() || bytes.is_some();
    is_given.then(|| proto::TenantRate { records: records.unwrap_or_default(), bytes: bytes.unwrap_or_default() })
}

/// What is not given is 0.
fn given(number: u64) -> Option<u64> {
    (number > 0).then_some(number)
}

fn limits_from_proto(limits: proto::TenantLimits) -> Limits {
    Limits {
        max_record_bytes: given(limits.max_record_bytes),
        max_properties: given(limits.max_properties),
        max_string_chars: given(limits.max_string_chars),
        max_identifiers: given(limits.max_identifiers),
        max_actions: given(limits.max_actions),
    }
}

pub(crate) fn tenant_from_proto(tenant: proto::Tenant) -> Result<Tenant, MessageError> {
    let hash = |bytes: Vec<u8>| {
        let length = bytes.len();
        let wrong = || malformed(CONTROL, format!("tenant {} has a key whose hash has {length} bytes", tenant.name));
        <[u8; 32]>::try_from(bytes).map_err(|_| wrong())
    };
    let erasing = erasing_from_proto(tenant.erasing());
    let api_keys = tenant.api_key_hashes.into_iter().map(hash).collect::<Result<_, _>>()?;
    let limits = tenant.limits.map(limits_from_proto).unwrap_or_default();
    let rules = Rules { limits, forbidden_values: tenant.forbidden_values.into_iter().collect() };
    let rate = tenant.rate.unwrap_or_default();
    let rate = Rate { records: given(rate.records), bytes: given(rate.bytes) };
    let (terms, erased_ms) = (Terms { api_keys, rules, rate, erasing }, tenant.erased_ms);
    Ok(Tenant { name: tenant.name, version: tenant.version, terms, is_deleted: tenant.deleted, erased_ms })
}

pub(crate) fn status_to_proto(status: &WorkerStatus) -> proto::WorkerStatus {
    proto::WorkerStatus {
        worker: status.worker.clone(),
        incarnation: status.incarnation.to_string(),
        sequence: status.sequence,
        generation: status.generation,
        zone: status.zone.clone(),
        node: status.node.clone(),
        started_ms: status.started_ms,
        capacity: status.capacity,
        leaving: status.leaving,
        stages: status.stages.iter().cloned().collect(),
        shards: status.shards.iter().map(shard_to_proto).collect(),
        control_offset: status.control_offset,
        version: status.version.clone(),
        known: status.known.iter().map(known_to_proto).collect(),
        unable: status.unable.iter().map(unable_to_proto).collect(),
        knows_markers: status.knows_markers,
    }
}

pub(crate) fn status_from_proto(status: proto::WorkerStatus) -> Result<WorkerStatus, MessageError> {
    if status.worker.is_empty() {
        return Err(malformed(STATUS, "a report names no worker"));
    }
    Ok(WorkerStatus {
        incarnation: Incarnation::parse(&status.incarnation)?,
        worker: status.worker,
        sequence: status.sequence,
        generation: status.generation,
        zone: status.zone,
        node: status.node,
        started_ms: status.started_ms,
        capacity: status.capacity,
        leaving: status.leaving,
        stages: status.stages.into_iter().collect(),
        shards: status.shards.into_iter().map(shard_from_proto).collect(),
        control_offset: status.control_offset,
        version: status.version,
        known: status.known.into_iter().map(known_from_proto).collect(),
        unable: status.unable.into_iter().map(|it| ShardId { stage: it.stage, shard: it.shard }).collect(),
        knows_markers: status.knows_markers,
    })
}

fn unable_to_proto(id: &ShardId) -> proto::UnableShard {
    proto::UnableShard { stage: id.stage.clone(), shard: id.shard }
}

fn known_to_proto((id, unread): (&ShardId, &Vec<Unread>)) -> proto::KnownUnread {
    let inputs = unread.iter().map(unread_to_proto).collect();
    proto::KnownUnread { stage: id.stage.clone(), shard: id.shard, unread: for_former(unread), inputs }
}

fn known_from_proto(known: proto::KnownUnread) -> (ShardId, Vec<Unread>) {
    let inputs = inputs_from_proto(known.inputs, known.unread);
    (ShardId { stage: known.stage, shard: known.shard }, inputs)
}

fn shard_to_proto((id, shard): (&ShardId, &ShardStatus)) -> proto::ShardStatus {
    let role = match shard.role {
        Role::Owner => proto::ShardRole::Owner,
        Role::Standby => proto::ShardRole::Standby,
        Role::Opening => proto::ShardRole::Opening,
    };
    proto::ShardStatus {
        stage: id.stage.clone(),
        shard: id.shard,
        role: role.into(),
        changelog_offset: shard.changelog_offset,
        lag: shard.lag,
        digest: shard.digest,
        epoch: shard.epoch,
        batch_number: shard.batch_number,
        condition: shard.condition.clone(),
        prepared_client: shard.prepared.clone().unwrap_or_default(),
        unread_ms: shard.unread_ms,
        unread: for_former(&shard.unread),
        inputs: shard.unread.iter().map(unread_to_proto).collect(),
        control_offset: shard.control_offset,
    }
}

/// That nothing is ever deleted.
const FOR_EVER: i64 = -1;

fn unread_to_proto(unread: &Unread) -> proto::Unread {
    proto::Unread {
        topic: unread.topic.clone(),
        watermark_ms: unread.watermark_ms.unwrap_or_default(),
        age_ms: unread.age_ms,
        retention_ms: unread.kept.map(|kept| match kept {
            Kept::ForEver => FOR_EVER,
            Kept::For(milliseconds) => i64::try_from(milliseconds).unwrap_or(i64::MAX),
        }),
        near_start: unread.near_start,
    }
}

/// Former versions hear of one input only: the one that was processed least far.
fn for_former(inputs: &[Unread]) -> Option<proto::Unread> {
    let least = inputs.iter().min_by_key(|unread| unread.watermark_ms.unwrap_or(u64::MAX));
    least.map(unread_to_proto)
}

/// Former versions tell of one input only.
fn inputs_from_proto(inputs: Vec<proto::Unread>, former: Option<proto::Unread>) -> Vec<Unread> {
    let former = former.filter(|_| inputs.is_empty());
    inputs.into_iter().chain(former).map(unread_from_proto).collect()
}

fn unread_from_proto(unread: proto::Unread) -> Unread {
    Unread {
        topic: unread.topic,
        watermark_ms: Some(unread.watermark_ms).filter(|watermark_ms| *watermark_ms > 0),
        age_ms: unread.age_ms,
        kept: unread.retention_ms.map(|retention_ms| u64::try_from(retention_ms).map_or(Kept::ForEver, Kept::For)),
        near_start: unread.near_start,
    }
}

fn shard_from_proto(shard: proto::ShardStatus) -> (ShardId, ShardStatus) {
    let role = match shard.role() {
        proto::ShardRole::Owner => Role::Owner,
        proto::ShardRole::Standby => Role::Standby,
        proto::ShardRole::Opening | proto::ShardRole::Unspecified => Role::Opening,
    };
    let status = ShardStatus {
        role,
        changelog_offset: shard.changelog_offset,
        lag: shard.lag,
        digest: shard.digest,
        epoch: shard.epoch,
        batch_number: shard.batch_number,
        condition: shard.condition,
        prepared: Some(shard.prepared_client).filter(|client| !client.is_empty()),
        unread_ms: shard.unread_ms,
        unread: inputs_from_proto(shard.inputs, shard.unread),
        control_offset: shard.control_offset,
    };
    (ShardId { stage: shard.stage, shard: shard.shard }, status)
}
