//! One who looks at what is published in a pipeline's `control`, or publishes there, from the command line.
//!
//! To look fences nobody; [`Session::get_to_know`] and [`Planning::fence`] do, when something is to be published.

use crate::config::{self, Config};
use crate::runtime::stores;
use anyhow::{Context, bail};
use millstream_plan::view::Bounds;
use millstream_shard::log::LogError;
use millstream_shard::planning::Planning;
use millstream_shard::topics;
use std::time::{Duration, Instant};

/// How long one look at reports waits.
pub(super) const LISTEN: Duration = Duration::from_millis(100);

/// What becomes of topics that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topics {
    /// They are made, as a worker makes them.
    Create,
    /// They stay away, and that is an error.
    Expect,
}

/// One who looks at a pipeline's plan and tenants, or publishes them, and their clock.
pub(super) struct Session {
    pub(super) planning: Planning,
    began: Instant,
}

impl Session {
    /// Reads what was published and reported.
    pub(super) fn open(config: &Config, missing: Topics) -> anyhow::Result<Session> {
        if matches!(config.log, config::Log::Embedded) {
            bail!(
                "a pipeline on the embedded log has one process, which owns all shards and knows the tenants of its configuration: nothing is published for others; configure `log: {{kafka: ...}}`"
            );
        }
        let bounds = match &config.ownership {
            config::Ownership::Plan(plan) => plan.bounds(),
            config::Ownership::Static => Bounds::default(),
        };
        let log = stores::open_log(config)?.0;
        let topics = topics::Topics::new(config.pipeline.as_str(), config.shards.0, config.generation);
        if missing == Topics::Create {
            log.create_topics(&topics.specs()).context("preparing the pipeline's topics")?;
        }
        let planning = Planning::open(log, topics, bounds, 0).context("reading plan and reports")?;
        Ok(Session { planning, began: Instant::now() })
    }

    pub(super) fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn listen(&mut self, pause: Duration) -> Result<(), LogError> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            let now_ms = self.now_ms();
            self.planning.listen(LISTEN, now_ms)?;
        }
        Ok(())
    }

    /// Hears reports until it is known who is alive; then, unless nothing is to be published, fences whoever published before.
    pub(super) fn get_to_know(&mut self, dry_run: bool) -> anyhow::Result<()> {
        while !self.planning.knows_all(self.now_ms()) {
            self.listen(LISTEN)?;
        }
        if !dry_run {
            self.fence()?;
        }
        Ok(())
    }

    /// Fences whoever published before, and reads what they did.
    pub(super) fn fence(&mut self) -> anyhow::Result<()> {
        let now_ms = self.now_ms();
        self.planning.fence(now_ms).context("fencing whoever published before")
    }
}
