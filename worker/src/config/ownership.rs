//! Who owns which shard.

use super::Millis;
use super::text::{from_text, to_text};
use millstream_plan::view::Bounds;
use serde::{Deserialize, Serialize};

/// How a process knows which shards are its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// Those in `owned`, whatever anybody else does. Two processes with one shard take it from each other in turn: safe, but useless.
    #[default]
    Static,
    /// Those that the plan in the topic `control` gives it; others may take them over when it falls silent, and it gives them away when it ends.
    Plan(Plan),
}

/// Name of a zone or a machine, as clouds and Kubernetes name them: 1 to 253 letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(String);

impl Place {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if (1..=253).contains(&text.len()) && text.chars().all(is_allowed) {
            return Ok(Place(text.to_owned()));
        }
        Err(format!(
            "`{}` is not the name of a zone or machine: use 1 to 253 letters, digits, `-`, `_` and `.`",
            text.escape_debug()
        ))
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

from_text!(Place, "a name of 1 to 253 letters, digits, `-`, `_` and `.`");
to_text!(Place);

/// A worker that follows the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Failure domain, such as a zone: successors of a shard are elsewhere, if they can be (default: not known).
    pub zone: Option<Place>,
    /// Machine; as `zone` (default: not known).
    pub node: Option<Place>,
    /// Relative to other workers: one of 2 gets twice the shards of one of 1 (default 1).
    pub capacity: u32,
    /// A worker that was not heard for so long is silent, and its successors take over (default 2.8s). The same in every process.
    pub silence: Millis,
    /// A live owner that the plan has replaced must have handed off so long after its successor was ready; then it is taken over (default 5s).
    pub handoff: Millis,
    /// At its end, a process gives its shards away for so long at most (default 20s). Shorter than what the process is given to end.
    pub release: Millis,
}

impl Default for Plan {
    fn default() -> Plan {
        let Bounds { silence_ms, handoff_ms, .. } = Bounds::default();
        Plan {
            zone: None,
            node: None,
            capacity: 1,
            silence: Millis(silence_ms),
            handoff: Millis(handoff_ms),
            release: Millis(20_000),
        }
    }
}

impl Plan {
    /// Bounds of patience.
    pub fn bounds(&self) -> Bounds {
        Bounds { silence_ms: self.silence.0, handoff_ms: self.handoff.0, ..Bounds::default() }
    }

    /// What a schema cannot say: the field, and what is wrong with it.
    ///
    /// # Errors
    /// The first problem.
    pub fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if self.capacity == 0 {
            return Err(("capacity", "must be more than 0"));
        }
        if self.silence.0 < 500 {
            return Err((
                "silence",
                "must be at least 500ms: workers report six times per bound, and a busy machine must not look dead",
            ));
        }
        if self.handoff.0 < self.silence.0 {
            return Err(("handoff", "must be at least as long as `silence`"));
        }
        Ok(())
    }
}
