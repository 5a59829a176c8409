//! Some workers who report regularly, and one view of them: for the tests.

use super::*;
use crate::plan::{Placement, Version};
use crate::status::ShardStatus;
use std::collections::BTreeSet;

pub(super) const REPORT_MS: u64 = 500;

pub(super) fn shard() -> ShardId {
    ShardId::new("action", 0)
}

pub(super) fn plan_of(number: u64, owner: &str, successors: &[&str], warm: u32) -> Control {
    let successors = successors.iter().map(|name| (*name).to_owned()).collect();
    let placement = Placement { owner: owner.into(), successors, warm, moving_to: None };
    let version = Version { term: 1, number };
    Control::Plan(Plan { version, generation: 1, placements: [(shard(), placement)].into() })
}

pub(super) fn report(worker: &str, sequence: u64) -> WorkerStatus {
    WorkerStatus {
        worker: worker.into(),
        incarnation: Incarnation::new(1, 1),
        sequence,
        generation: 1,
        zone: "z".into(),
        node: "n".into(),
        started_ms: 1,
        capacity: 1,
        leaving: false,
        stages: BTreeSet::from(["action".into()]),
        shards: BTreeMap::new(),
        control_offset: 0,
        version: String::new(),
        known: BTreeMap::new(),
        unable: BTreeSet::new(),
        knows_markers: true,
    }
}

pub(super) fn owner(epoch: u64) -> ShardStatus {
    ShardStatus { role: Role::Owner, epoch, ..ShardStatus::default() }
}

pub(super) fn standby(epoch: u64, client: Option<&str>) -> ShardStatus {
    ShardStatus { role: Role::Standby, epoch, lag: 3, prepared: client.map(str::to_owned), ..ShardStatus::default() }
}

/// Some workers who report regularly, and one view of them.
pub(super) struct Scene {
    pub(super) view: View,
    pub(super) now_ms: u64,
    pub(super) reports: BTreeMap<String, WorkerStatus>,
    /// Not heard.
    pub(super) mute: BTreeSet<String>,
}

impl Scene {
    pub(super) fn new(workers: &[&str], plan: Control) -> Scene {
        let reports = workers.iter().map(|name| ((*name).to_owned(), report(name, 0))).collect();
        let mut scene = Scene { view: View::new(1, Bounds::default()), now_ms: 0, reports, mute: BTreeSet::new() };
        scene.view.control(plan, 0);
        scene.pass(REPORT_MS);
        scene
    }

    pub(super) fn says(&mut self, worker: &str, status: ShardStatus) -> &mut Scene {
        self.reports.get_mut(worker).unwrap().shards.insert(shard(), status);
        self
    }

    pub(super) fn closes(&mut self, worker: &str) -> &mut Scene {
        self.reports.get_mut(worker).unwrap().shards.clear();
        self
    }

    /// It says that it can open the shard, or cannot.
    pub(super) fn is_able(&mut self, worker: &str, is_able: bool) -> &mut Scene {
        self.reports.get_mut(worker).unwrap().unable = if is_able { BTreeSet::new() } else { [shard()].into() };
        self
    }

    pub(super) fn leaves(&mut self, worker: &str) -> &mut Scene {
        self.reports.get_mut(worker).unwrap().leaving = true;
        self
    }

    pub(super) fn mute(&mut self, workers: &[&str]) -> &mut Scene {
        self.mute.extend(workers.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Time goes by; whoever is not mute reports.
    pub(super) fn pass(&mut self, ms: u64) -> &mut Scene {
        let end_ms = self.now_ms + ms;
        while self.now_ms < end_ms {
            self.now_ms = (self.now_ms + REPORT_MS).min(end_ms);
            for report in self.reports.values_mut().filter(|report| !self.mute.contains(&report.worker)) {
                report.sequence += 1;
                self.view.status(report.clone(), self.now_ms);
            }
        }
        self
    }

    pub(super) fn duty(&self, worker: &str) -> Duty {
        let leaving = self.reports[worker].leaving;
        let me = Me { worker, incarnation: &Incarnation::new(1, 1), leaving };
        self.view.duties(&me, self.now_ms)[&shard()].clone()
    }

    pub(super) fn duties<const N: usize>(&self, workers: [&str; N]) -> [Duty; N] {
        workers.map(|worker| self.duty(worker))
    }
}
