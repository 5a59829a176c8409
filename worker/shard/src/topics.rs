//! Names of a pipeline's topics.
//!
//! Internal topics carry the generation, so that a restored pipeline starts with new ones; `ingress`, `events` and `rejects` do not.
//! Every topic of a pipeline has the same number of partitions, but for `control` and `status`, which are small and have one.

use crate::log::{Retention, TopicSpec};
use std::sync::Arc;

/// Stages that have shards.
pub const SHARDED: [&str; 3] = ["unify", "action", "reaction"];

/// The topics of one pipeline in one generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Number of partitions of each topic.
    pub shards: u32,
    /// Generation of the pipeline.
    pub generation: u16,
    /// Envelopes.
    pub ingress: Arc<str>,
    /// Actions.
    pub actions: Arc<str>,
    /// Messages between action shards.
    pub exchange: Arc<str>,
    /// Mutations.
    pub mutations: Arc<str>,
    /// Enriched events: public.
    pub events: Arc<str>,
    /// Rejects: public.
    pub rejects: Arc<str>,
    /// Plans and format levels, of every generation: what tells a worker that it belongs to an older one.
    pub control: Arc<str>,
    /// What every worker says about itself.
    pub status: Arc<str>,
}

impl Topics {
    /// The topics of a pipeline.
    pub fn new(pipeline: &str, shards: u32, generation: u16) -> Topics {
        let public = |name: &str| Arc::from(format!("{pipeline}.{name}"));
        let internal = |name: &str| Arc::from(format!("{pipeline}.g{generation}.{name}"));
        Topics {
            pipeline: pipeline.to_owned(),
            shards,
            generation,
            ingress: public("ingress"),
            actions: internal("actions"),
            exchange: internal("exchange.action"),
            mutations: internal("mutations"),
            events: public("events"),
            rejects: public("rejects"),
            control: public("control"),
            status: public("status"),
        }
    }

    /// The changelog of a stage. (The reaction stage keeps its positions in one, too.)
    pub fn changelog(&self, stage: &str) -> Arc<str> {
        Arc::from(format!("{}.g{}.changelog.{stage}", self.pipeline, self.generation))
    }

    /// A shard's transactional id; it has two, `slot` 0 and 1.
    pub fn transactional_id(&self, stage: &str, shard: u32, slot: u32) -> String {
        format!("{}.g{}.{stage}.{shard}.{slot}", self.pipeline, self.generation)
    }

    /// How each is to be created.
    pub fn specs(&self) -> Vec<TopicSpec> {
        let changelogs = SHARDED.map(|stage| self.changelog(stage));
        let plain = [&self.actions, &self.exchange, &self.mutations, &self.events, &self.rejects];
        let spec = |name: &Arc<str>| TopicSpec {
            name: name.to_string(),
            partitions: self.shards,
            append_time: false,
            retention: Retention::Cluster,
        };
        let ingress = TopicSpec { append_time: true, ..spec(&self.ingress) };
        let kept = changelogs.iter().map(|name| TopicSpec { retention: Retention::Keep, ..spec(name) });
        let compacted = [&self.control, &self.status].map(|name| TopicSpec {
            partitions: 1,
            retention: Retention::Compact,
            ..spec(name)
        });
        [ingress].into_iter().chain(plain.into_iter().map(spec)).chain(kept).chain(compacted).collect()
    }
}
