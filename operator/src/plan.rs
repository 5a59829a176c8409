//! What happens next to a pipeline's workers: a pure function of what is wanted, what there is, and who holds which shards.
//!
//! Nothing of a change is remembered: where it stands is read off the cluster each time, so that any operator can go on where another stopped, and a change of mind in the middle is a change like any
//! other. Invariants:
//!
//! - **Shards leave first.** A Pod that goes, because its stage gets fewer or because it gets another template, has no shard any more, unless nobody is there to take them. Until it is gone, none
//!   comes back to it. A Pod that gets another template is not waited for without end: when its shards get no further ([`crate::departures`]), it is replaced with them, because the new template may
//!   be what others need to take them.
//! - **One at a time.** Of all Pods of a pipeline at most one is replaced at a time, readers before writers (reaction, action, unify, gateway), from the highest ordinal down; the next one
//!   only when the one before is ready. A stage that gets fewer gets a new template afterwards. This holds for a Pod that does not work, too: what it would write with its new template, readers with the former one may
//!   not understand, and `partition` reaches it only after all with higher ordinals.
//! - **A template reaches nobody by itself.** In the moment in which it changes, `partition` goes above all ordinals; a Pod whose turn it is lowers it to its ordinal. It is reckoned each time, and
//!   never taken over from what there is.
//! - **Who does not work holds up nobody.** A worker that is not alive holds nothing, by the plan's own judgement, and is replaced at once when its turn has come. A Pod that does not end (its
//!   node is lost) holds up its own stage, because Kubernetes waits for it, and no other; nor does one for which Kubernetes finds no node ([`PLACED`]).
//! - **The last gateway is not taken away.** Gateways hold no shards, so nothing else keeps one from being replaced while the others are not ready, and then nobody takes in anything. It waits for them as
//!   long as they may come back by themselves ([`SETTLES`]); later the new template may be what mends them.

use crate::Prepared;
use crate::build::{Objects, TEMPLATE_HASH, names};
use crate::fleet::Fleet;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use millstream_crds::{LostNode, StageName, Storage};
use std::collections::{BTreeMap, BTreeSet};

/// `partition` above all ordinals: no Pod gets a changed template by itself.
pub const AT_REST: i32 = 4096;

/// A Pod that has not ended so long after it should have: nobody waits for it any more but Kubernetes.
const OVERDUE: SignedDuration = SignedDuration::from_secs(30);

/// A Pod for which no node was found for so long does not start by itself soon: a node that an autoscaler adds takes minutes.
const PLACED: SignedDuration = SignedDuration::from_secs(60);

/// A Pod that has not been ready for so long does not come back by itself.
const SETTLES: SignedDuration = SignedDuration::from_secs(120);

/// Readers before writers: whoever reads understands what those who write will write.
pub(crate) const ORDER: [StageName; 4] = [StageName::Reaction, StageName::Action, StageName::Unify, StageName::Gateway];

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
    /// It is not ready, and was a short while ago, or has just been made.
    pub is_settling: bool,
    /// It should have ended some time ago: its node may be lost.
    pub is_overdue: bool,
    /// It was told to end.
    pub is_ending: bool,
    /// No node was found for it for some time: the scheduler's words.
    pub unplaced: Option<String>,
    /// Which Pod of its name it is.
    pub uid: String,
}

/// What is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Of each stage: workers, and `partition`.
    pub sizes: BTreeMap<StageName, (i32, i32)>,
    /// Workers whose shards go elsewhere.
    pub leaving: BTreeSet<String>,
    /// Pods that Kubernetes does not replace by itself, and their uids.
    pub replaced: BTreeMap<String, String>,
    /// Pods that do not end, because their nodes may be lost; whether each has a volume of its own.
    pub lost: BTreeMap<String, bool>,
    /// Pods with a volume for which no node is found, and the scheduler's words: the volume may be bound to a node that is gone.
    pub unplaced: BTreeMap<String, String>,
    /// Of those that do not end, those that are to start elsewhere without their volumes, and their uids.
    pub recreated: BTreeMap<String, String>,
    /// What is under way, for people.
    pub doing: Vec<String>,
}

/// What the StatefulSets and Pods of the pipeline of this name say.
pub fn seen(pipeline: &str, sets: &[StatefulSet], pods: &[Pod], now: Timestamp) -> Seen {
    let mut seen: Seen = sets.iter().filter_map(|set| Some((stage_of(set.labels())?, StageSeen::of(set)))).collect();
    for pod in pods {
        // By its whole name: labels can be anybody's.
        let of = stage_of(pod.labels()).and_then(|stage| Some((stage, ordinal(pipeline, stage, &pod.name_any())?)));
        if let Some((stage, ordinal)) = of
            && let Some(seen) = seen.get_mut(&stage)
        {
            seen.pods.insert(ordinal, PodSeen::of(pod, now));
        }
    }
    seen
}

/// The stage that an object with these labels is of.
pub(crate) fn stage_of(labels: &BTreeMap<String, String>) -> Option<StageName> {
    let component = labels.get(names::COMPONENT)?;
    StageName::ALL.into_iter().find(|stage| stage.as_str() == component)
}

/// Of the Pod of this name, which is its worker's, too.
fn ordinal(pipeline: &str, stage: StageName, pod: &str) -> Option<i32> {
    pod.strip_prefix(pipeline)?.strip_prefix('-')?.strip_prefix(stage.as_str())?.strip_prefix('-')?.parse().ok()
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

    /// A template is on its way: not everybody has it, or Kubernetes has not noted yet that everybody has.
    fn is_rolling(&self) -> bool {
        self.current != self.newest || self.pods.range(0..self.replicas).any(|(_, pod)| pod.revision != self.newest)
    }

    /// The Pod that was given the newest template, and does not work yet.
    fn in_flight(&self) -> Option<i32> {
        let is_it = |ordinal: &i32| match self.pods.get(ordinal) {
            Some(pod) => pod.revision == self.newest && !pod.is_ready && !pod.is_overdue && pod.unplaced.is_none(),
            None => self.partition <= *ordinal,
        };
        (0..self.replicas).rev().find(is_it).filter(|_| self.is_rolling())
    }

    /// From here on Pods have the newest template: those that are made again must get it, too.
    fn boundary(&self) -> i32 {
        if self.current == self.newest {
            return AT_REST;
        }
        let has_newest = |ordinal: &i32| match self.pods.get(ordinal) {
            Some(pod) => pod.revision == self.newest,
            None => self.partition <= *ordinal,
        };
        let newest = (0..self.replicas).rev().take_while(has_newest).count();
        match i32::try_from(newest) {
            Ok(newest) if newest > 0 => self.replicas - newest,
            _ => AT_REST,
        }
    }
}

impl PodSeen {
    fn of(pod: &Pod, now: Timestamp) -> PodSeen {
        let conditions = || pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions().find(|it| it.type_ == "Ready");
        let is_long = |it: &&PodCondition| {
            it.last_transition_time.as_ref().is_some_and(|since| now.duration_since(since.0) > PLACED)
        };
        let unplaced = conditions().find(|it| {
            it.type_ == "PodScheduled" && it.status == "False" && it.reason.as_deref() == Some("Unschedulable")
        });
        let is_ready = ready.is_some_and(|it| it.status == "True");
        let since = ready.and_then(|it| it.last_transition_time.as_ref()).or(pod.metadata.creation_timestamp.as_ref());
        let ends = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
        PodSeen {
            revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
            is_ready: is_ready && ends.is_none(),
            is_settling: !is_ready && since.is_none_or(|since| now.duration_since(since.0) < SETTLES),
            // The moment by which it should have ended is in the mark itself.
            is_overdue: ends.is_some_and(|ends| now.duration_since(ends) > OVERDUE),
            is_ending: ends.is_some(),
            unplaced: unplaced.filter(is_long).map(|it| it.message.clone().unwrap_or_default()),
            uid: pod.uid().unwrap_or_default(),
        }
    }
}

/// What is to be, as far as it can be now. Without a fleet nobody knows who holds what, and nothing goes.
pub fn plan(prepared: &Prepared, objects: &Objects, seen: &Seen, fleet: Option<&Fleet>) -> Intent {
    let mut intent = Intent::default();
    let step = |stage| Step { pipeline: prepared.name(), stage, fleet };
    for stage in StageName::ALL {
        let wanted = prepared.workers(stage);
        let size = match seen.get(&stage) {
            None => (wanted, AT_REST),
            Some(seen) => {
                let partition = match (step(stage).has_newest(objects, seen), seen.is_observed) {
                    (true, true) => seen.boundary(),
                    // What Kubernetes has not looked at yet stays as it was written.
                    (true, false) => seen.partition,
                    (false, _) => AT_REST,
                };
                (step(stage).shrink(wanted, seen, &mut intent), partition)
            }
        };
        intent.sizes.insert(stage, size);
    }
    for (stage, seen) in seen {
        step(*stage).note_ends(&prepared.pipeline.spec.stages.of(*stage).storage, seen, &mut intent);
    }
    let in_flight = |except: StageName| {
        seen.iter()
            .filter(|(stage, _)| **stage != except)
            .find_map(|(stage, seen)| Some(step(*stage).pod(seen.in_flight()?)))
    };
    for stage in ORDER {
        let (Some(seen), Some(size)) = (seen.get(&stage), intent.sizes.get(&stage).copied()) else { continue };
        let wanted = prepared.workers(stage);
        if !step(stage).has_newest(objects, seen) {
            continue;
        }
        // The status may be about what was before: nobody's turn is over, and nobody's begins.
        if !seen.is_observed {
            // (Of one that has just been made, its workers are waited for.)
            if !seen.newest.is_empty() {
                intent.doing.push(format!("Kubernetes has not looked yet at what was changed of {}", stage.as_str()));
            }
            let is_going = |(_, pod): &(&i32, &PodSeen)| stage != StageName::Gateway && pod.revision != seen.newest;
            let going = seen.pods.range(seen.partition..).filter(is_going);
            intent.leaving.extend(going.map(|(ordinal, _)| step(stage).pod(*ordinal)));
            break;
        }
        // A stage gets its size first, unless those that are to stay cannot take what the others have: a template may mend them.
        let is_stalled = (wanted..seen.replicas).any(|ordinal| step(stage).is_stalled(ordinal));
        let is_blocked = wanted > 0 && (is_stalled || !step(stage).can_leave(-1, wanted, &BTreeSet::new()));
        if !seen.is_rolling() || size.0 != seen.replicas || (size.0 != wanted && !is_blocked) {
            continue;
        }
        let turn = match in_flight(stage).filter(|_| seen.in_flight().is_none()) {
            Some(other) => {
                intent.doing.push(format!("{other} starts"));
                Turn { partition: None, is_over: true }
            }
            None => step(stage).roll(seen, &mut intent),
        };
        if let Some(partition) = turn.partition {
            intent.sizes.insert(stage, (size.0, partition));
        }
        if !turn.is_over {
            break;
        }
    }
    intent
}

/// What the stage whose turn it is does.
struct Turn {
    /// Another one than [`StageSeen::boundary`].
    partition: Option<i32>,
    /// The next stage may begin.
    is_over: bool,
}

impl Intent {
    /// Notes which stages got another template just now, a *rolling* change as [`crate::change`] has it, whatever of the resource or of a Secret it came from: what was seen is about the one before, by which there was nothing to do.
    pub fn note_templates(&mut self, seen: &Seen, applied: &[StatefulSet]) {
        for set in applied {
            let before = stage_of(set.labels()).and_then(|stage| Some((stage, seen.get(&stage)?)));
            let is_new = |before: &StageSeen| StageSeen::of(set).template_hash != before.template_hash;
            if let Some((stage, _)) = before.filter(|(_, before)| is_new(before)) {
                self.doing.push(format!("rolling: {} gets a new template, one Pod at a time", stage.as_str()));
            }
        }
    }

    /// Puts it into the objects. A StatefulSet that is to let Pods go is written only if it is what was looked at: a write that comes late must not repeat that.
    pub fn settle(&self, objects: &mut Objects, observed: &[StatefulSet]) {
        for set in &mut objects.stateful_sets {
            let size = stage_of(set.labels()).and_then(|stage| self.sizes.get(&stage));
            let Some((replicas, partition)) = size else { continue };
            if let Some(before) = observed.iter().find(|before| before.metadata.name == set.metadata.name) {
                let seen = StageSeen::of(before);
                let lets_go = *replicas < seen.replicas || *partition < seen.partition;
                set.metadata.uid = before.metadata.uid.clone();
                set.metadata.resource_version = before.metadata.resource_version.clone().filter(|_| lets_go);
            }
            let spec = set.spec.get_or_insert_default();
            spec.replicas = Some(*replicas);
            let strategy = spec.update_strategy.get_or_insert_default();
            strategy.rolling_update.get_or_insert_default().partition = Some(*partition);
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

    /// It was waited for long enough that its shards get elsewhere.
    fn is_stalled(&self, ordinal: i32) -> bool {
        self.fleet.is_some_and(|fleet| fleet.stalled.contains(&self.pod(ordinal)))
    }

    /// Somebody else could take its shards; nobody knows without a fleet, so that it is waited for.
    fn can_leave(&self, ordinal: i32, replicas: i32, leaving: &BTreeSet<String>) -> bool {
        let takes = |fleet: &Fleet, other: i32| {
            let other = self.pod(other);
            fleet.takers.contains(&other) && !leaving.contains(&other)
        };
        self.fleet.is_none_or(|fleet| (0..replicas).any(|other| other != ordinal && takes(fleet, other)))
    }

    /// How many workers there may be now, on the way to fewer: those that still hold something stay. Whoever is too many gets nothing, until it is gone.
    fn shrink(&self, wanted: i32, seen: &StageSeen, intent: &mut Intent) -> i32 {
        if wanted == 0 || self.stage == StageName::Gateway {
            return wanted;
        }
        let alive = self.fleet.iter().flat_map(|fleet| &fleet.alive);
        let is_going =
            |worker: &&String| ordinal(self.pipeline, self.stage, worker).is_some_and(|ordinal| ordinal >= wanted);
        // Who is not known to be alive, too: the plan in which a worker is counted for the first time is published before anybody can say that it is to have nothing.
        let there = (wanted..seen.replicas).chain(seen.pods.range(wanted..).map(|(ordinal, _)| *ordinal));
        let can_leave = self.can_leave(-1, wanted, &intent.leaving);
        if can_leave {
            intent.leaving.extend(alive.filter(is_going).cloned());
            intent.leaving.extend(there.map(|ordinal| self.pod(ordinal)));
        }
        let last = (wanted..seen.replicas).rev().find(|ordinal| self.holds(*ordinal));
        if let Some(last) = last {
            let why = match (can_leave, self.is_stalled(last)) {
                (false, _) => "; nobody who is to stay is there to take them",
                (true, true) => "; those who are to stay do not take them",
                (true, false) => "",
            };
            intent.doing.push(format!("shards leave {}, which is to go{why}", self.pod(last)));
        }
        last.map_or(wanted, |last| last + 1)
    }

    /// Pods that end, and those that should have.
    fn note_ends(&self, storage: &Storage, seen: &StageSeen, intent: &mut Intent) {
        let claim = storage.persistent_volume_claim.as_ref();
        let is_recreated = claim.is_some_and(|claim| claim.on_lost_node == LostNode::Recreate);
        for (ordinal, pod) in seen.pods.iter().filter(|(_, pod)| pod.is_overdue) {
            let name = self.pod(*ordinal);
            if is_recreated {
                intent.recreated.insert(name.clone(), pod.uid.clone());
            }
            intent.lost.insert(name, claim.is_some());
        }
        for (ordinal, pod) in seen.pods.iter().filter(|(_, pod)| claim.is_some() && !pod.is_ending) {
            intent.unplaced.extend(pod.unplaced.iter().map(|why| (self.pod(*ordinal), why.clone())));
        }
        // Whether one ends in time is to be looked at again.
        let ending = seen.pods.iter().filter(|(_, pod)| pod.is_ending && !pod.is_overdue);
        intent.doing.extend(ending.map(|(ordinal, _)| format!("{} ends", self.pod(*ordinal))));
    }

    fn has_newest(&self, objects: &Objects, seen: &StageSeen) -> bool {
        let is_it = |set: &&StatefulSet| stage_of(set.labels()) == Some(self.stage);
        let wanted =
            objects.stateful_sets.iter().find(is_it).and_then(|set| set.annotations().get(TEMPLATE_HASH).cloned());
        wanted.is_none_or(|wanted| wanted == seen.template_hash)
    }

    /// Finds the Pod whose turn it is.
    fn roll(&self, seen: &StageSeen, intent: &mut Intent) -> Turn {
        for ordinal in (0..seen.replicas).rev() {
            let pod = self.pod(ordinal);
            match seen.pods.get(&ordinal) {
                Some(PodSeen { revision, is_ready: true, .. }) if *revision == seen.newest => {}
                // Kubernetes waits for it, maybe for ever.
                Some(PodSeen { is_overdue: true, .. }) => {
                    intent.doing.push(format!("{pod} does not end"));
                    return Turn { partition: None, is_over: true };
                }
                Some(PodSeen { revision, is_ready, .. })
                    if self.stage == StageName::Gateway
                        && *revision != seen.newest
                        && *is_ready
                        && let Some(other) = settling(ordinal, seen) =>
                {
                    let other = self.pod(other);
                    intent.doing.push(format!(
                        "{pod} gets a new template when {other} is ready, or does not get ready for two minutes"
                    ));
                    let above = Some(ordinal + 1).filter(|above| *above < seen.replicas);
                    return Turn { partition: Some(above.unwrap_or(AT_REST)), is_over: false };
                }
                Some(PodSeen { revision, uid, is_ending, .. }) if *revision != seen.newest => {
                    let can_leave = self.can_leave(ordinal, seen.replicas, &intent.leaving);
                    if can_leave && self.stage != StageName::Gateway {
                        intent.leaving.insert(pod.clone());
                    }
                    // One that was let go comes back with the newest template, whatever it still has.
                    let is_let_go = *is_ending && seen.partition <= ordinal;
                    let is_stalled = self.is_stalled(ordinal);
                    // With nobody to take them, its shards wait for it.
                    if can_leave && self.holds(ordinal) && !is_stalled && !is_let_go {
                        intent.doing.push(format!("shards leave {pod}, which gets a new template"));
                        let above = Some(ordinal + 1).filter(|above| *above < seen.replicas);
                        return Turn { partition: Some(above.unwrap_or(AT_REST)), is_over: false };
                    }
                    if is_stuck(ordinal, seen) {
                        intent.replaced.insert(pod.clone(), uid.clone());
                    }
                    let why = if is_stalled { ", and keeps its shards until then: nobody takes them" } else { "" };
                    intent.doing.push(format!("{pod} gets a new template{why}"));
                    return Turn { partition: Some(ordinal), is_over: false };
                }
                // It has its template, and nothing here can bring it a node.
                Some(PodSeen { unplaced: Some(_), .. }) => {
                    intent.doing.push(format!("{pod} finds no node"));
                    return Turn { partition: Some(ordinal), is_over: true };
                }
                _ => {
                    intent.doing.push(format!("{pod} starts"));
                    return Turn { partition: Some(ordinal), is_over: false };
                }
            }
        }
        // Until Kubernetes has noted it, a Pod that is made again must get the newest one.
        Turn { partition: None, is_over: true }
    }
}

/// Of the others none is ready, and this one may be so by itself; `None` when nobody is to be waited for.
fn settling(ordinal: i32, seen: &StageSeen) -> Option<i32> {
    let others = || (0..seen.replicas).filter(|other| *other != ordinal);
    let pod = |other: &i32| seen.pods.get(other);
    if others().any(|other| pod(&other).is_some_and(|pod| pod.is_ready)) {
        return None;
    }
    // One that is not there may never be: nobody knows for how long it has been so.
    others().find(|other| pod(other).is_some_and(|pod| pod.is_settling))
}

/// A Pod that does not work and has an old template stays where Kubernetes counts unready Pods before it replaces one (`MaxUnavailableStatefulSet`): it was told to replace it, and has looked.
fn is_stuck(ordinal: i32, seen: &StageSeen) -> bool {
    let is_it = |pod: &PodSeen| !pod.is_ready && !pod.is_ending;
    seen.partition <= ordinal && seen.pods.get(&ordinal).is_some_and(is_it)
}

#[cfg(test)]
mod tests;
