//! What happens next to a pipeline's workers: a pure function of what is wanted, what there is, and who holds which shards.
//!
//! Nothing of a change is remembered: where it stands is read off the cluster each time, so that any operator can go on where another stopped, and a change of mind in the middle is a change like any
//! other. Invariants:
//!
//! - **Shards leave first.** A Pod that goes, because its stage gets fewer or because it gets another template, has no shard any more, unless nobody is there to take them.
//! - **One at a time.** Of all Pods of a pipeline at most one is replaced at a time, readers before writers (reaction, action, unify, gateway), from the highest ordinal down; the next one
//!   only when the one before is ready.
//! - **A template reaches nobody by itself.** In the moment in which it changes, `partition` goes above all ordinals; a Pod whose turn it is lowers it to its ordinal.
//! - **Who does not work holds up nobody.** A worker that is not alive holds nothing, by the plan's own judgement, and is replaced at once when its turn has come.

use crate::Prepared;
use crate::build::{Objects, TEMPLATE_HASH, names};
use crate::fleet::Fleet;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use millstream_crds::StageName;
use std::collections::{BTreeMap, BTreeSet};

/// `partition` above all ordinals: no Pod gets a changed template by itself.
pub const AT_REST: i32 = 4096;

/// Readers before writers: whoever reads understands what those who write will write.
const ORDER: [StageName; 4] = [StageName::Reaction, StageName::Action, StageName::Unify, StageName::Gateway];

/// What there is of each stage.
pub type Seen = BTreeMap<StageName, StageSeen>;

/// What there is of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StageSeen {
    /// Workers that the StatefulSet asks for.
    pub replicas: i32,
    /// Ordinals from here on get the newest template.
    pub partition: i32,
    /// The hash of the template that was applied last.
    pub template_hash: String,
    /// The StatefulSet's status is about what its spec says now.
    pub is_observed: bool,
    /// Revision of Pods below the partition.
    pub current: String,
    /// Revision of the newest template.
    pub newest: String,
    /// By ordinal.
    pub pods: BTreeMap<i32, PodSeen>,
}

/// One Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSeen {
    /// Revision of the template that it was made from.
    pub revision: String,
    /// It is ready, and is to stay.
    pub is_ready: bool,
}

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Of each stage: workers, and `partition`.
    pub sizes: BTreeMap<StageName, (i32, i32)>,
    /// Workers whose shards go elsewhere.
    pub leaving: BTreeSet<String>,
    /// What is under way, for people.
    pub doing: Vec<String>,
}

/// What a pipeline's StatefulSets and Pods say.
pub fn seen(sets: &[StatefulSet], pods: &[Pod]) -> Seen {
    let stage = |labels: &BTreeMap<String, String>| {
        let component = labels.get(names::COMPONENT)?;
        StageName::ALL.into_iter().find(|stage| stage.as_str() == component)
    };
    let mut seen: Seen = sets.iter().filter_map(|set| Some((stage(set.labels())?, StageSeen::of(set)))).collect();
    for pod in pods {
        let of_stage = stage(pod.labels()).and_then(|stage| seen.get_mut(&stage));
        let ordinal = pod.name_any().rsplit_once('-').and_then(|(_, ordinal)| ordinal.parse().ok());
        if let (Some(of_stage), Some(ordinal)) = (of_stage, ordinal) {
            of_stage.pods.insert(ordinal, PodSeen::of(pod));
        }
    }
    seen
}

impl StageSeen {
    fn of(set: &StatefulSet) -> StageSeen {
        let (spec, status) = (set.spec.clone().unwrap_or_default(), set.status.clone().unwrap_or_default());
        let rolling = spec.update_strategy.and_then(|strategy| strategy.rolling_update);
        StageSeen {
            replicas: spec.replicas.unwrap_or(0),
            partition: rolling.and_then(|rolling| rolling.partition).unwrap_or(0),
            template_hash: set.annotations().get(TEMPLATE_HASH).cloned().unwrap_or_default(),
            is_observed: status.observed_generation.is_some() && status.observed_generation == set.metadata.generation,
            current: status.current_revision.unwrap_or_default(),
            newest: status.update_revision.unwrap_or_default(),
            pods: BTreeMap::new(),
        }
    }

    fn is_rolling(&self) -> bool {
        self.current != self.newest || self.pods.values().any(|pod| pod.revision != self.newest)
    }
}

impl PodSeen {
    fn of(pod: &Pod) -> PodSeen {
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
        PodSeen {
            revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
            is_ready: is_ready && pod.metadata.deletion_timestamp.is_none(),
        }
    }
}

/// What is to be, as far as it can be now. Without a fleet nobody knows who holds what, and nothing goes.
pub fn plan(prepared: &Prepared, objects: &Objects, seen: &Seen, fleet: Option<&Fleet>) -> Intent {
    let mut intent = Intent::default();
    for stage in StageName::ALL {
        let wanted = if prepared.pipeline.spec.suspend { 0 } else { prepared.replicas(stage) };
        let step = Step { pipeline: prepared.name(), stage, fleet };
        let size = match seen.get(&stage) {
            None => (wanted, AT_REST),
            Some(seen) => (step.shrink(wanted, seen, &mut intent), step.rest(objects, seen)),
        };
        intent.sizes.insert(stage, size);
    }
    let rolls = |stage: &StageName| seen.get(stage).is_some_and(StageSeen::is_rolling);
    if let Some(stage) = ORDER.into_iter().find(rolls)
        && let (Some(seen), Some(size)) = (seen.get(&stage), intent.sizes.get(&stage).copied())
    {
        let step = Step { pipeline: prepared.name(), stage, fleet };
        // Otherwise the status may be about the template before.
        if seen.is_observed && step.has_newest(objects, seen) {
            let partition = step.roll(seen, &mut intent);
            intent.sizes.insert(stage, (size.0, partition));
        }
    }
    intent
}

impl Intent {
    /// Puts it into the objects.
    pub fn settle(&self, objects: &mut Objects) {
        for set in &mut objects.stateful_sets {
            let component = set.labels().get(names::COMPONENT).cloned().unwrap_or_default();
            let size = self.sizes.iter().find(|(stage, _)| stage.as_str() == component);
            if let (Some((_, (replicas, partition))), Some(spec)) = (size, &mut set.spec) {
                spec.replicas = Some(*replicas);
                let strategy = spec.update_strategy.get_or_insert_default();
                strategy.rolling_update.get_or_insert_default().partition = Some(*partition);
            }
        }
    }
}

struct Step<'a> {
    pipeline: &'a str,
    stage: StageName,
    fleet: Option<&'a Fleet>,
}

impl Step<'_> {
    fn pod(&self, ordinal: i32) -> String {
        format!("{}-{}-{ordinal}", self.pipeline, self.stage.as_str())
    }

    /// Gateways hold nothing.
    fn holds(&self, ordinal: i32) -> bool {
        self.stage != StageName::Gateway && self.fleet.is_none_or(|fleet| fleet.holds(&self.pod(ordinal)))
    }

    /// How many workers there may be now, on the way to fewer: those that still hold something stay.
    fn shrink(&self, wanted: i32, seen: &StageSeen, intent: &mut Intent) -> i32 {
        let going = wanted..seen.replicas;
        if wanted == 0 || going.is_empty() || self.stage == StageName::Gateway {
            return wanted;
        }
        intent.leaving.extend(going.clone().map(|ordinal| self.pod(ordinal)));
        let last = going.rev().find(|ordinal| self.holds(*ordinal));
        if let Some(last) = last {
            intent.doing.push(format!("shards leave {}, which is to go", self.pod(last)));
        }
        last.map_or(wanted, |last| last + 1)
    }

    fn has_newest(&self, objects: &Objects, seen: &StageSeen) -> bool {
        let is_it = |set: &&StatefulSet| set.labels().get(names::COMPONENT).is_some_and(|it| it == self.stage.as_str());
        let wanted =
            objects.stateful_sets.iter().find(is_it).and_then(|set| set.annotations().get(TEMPLATE_HASH).cloned());
        wanted.is_none_or(|wanted| wanted == seen.template_hash)
    }

    /// The partition of a stage whose turn it is not: as it is while some Pods have the newest template and others not, because a Pod that is made again gets the template of its side.
    fn rest(&self, objects: &Objects, seen: &StageSeen) -> i32 {
        if seen.is_rolling() && self.has_newest(objects, seen) { seen.partition } else { AT_REST }
    }

    /// The partition of the stage whose turn it is.
    fn roll(&self, seen: &StageSeen, intent: &mut Intent) -> i32 {
        for ordinal in (0..seen.replicas).rev() {
            let pod = self.pod(ordinal);
            match seen.pods.get(&ordinal) {
                Some(PodSeen { revision, is_ready: true }) if *revision == seen.newest => {}
                Some(PodSeen { revision, .. }) if *revision != seen.newest => {
                    // With nobody else, its shards wait for it.
                    if seen.replicas > 1 && self.holds(ordinal) {
                        intent.doing.push(format!("shards leave {pod}, which gets a new template"));
                        intent.leaving.insert(pod);
                        return seen.partition;
                    }
                    intent.doing.push(format!("{pod} gets a new template"));
                    return ordinal;
                }
                _ => {
                    intent.doing.push(format!("{pod} starts"));
                    return seen.partition;
                }
            }
        }
        seen.partition
    }
}

#[cfg(test)]
mod tests;
