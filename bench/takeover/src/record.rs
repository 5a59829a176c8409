//! The changelog of the proof: who owns the shard, and how far its input is processed.

use serde::{Deserialize, Serialize};

/// A record of the changelog.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Record {
    /// The first record of every changelog; names slot 0.
    Genesis,
    /// First record of the first transaction of an owner.
    Own { epoch: u64, slot: u8, worker: String, incarnation: u64 },
    /// A batch: inputs from..next are in the output.
    Batch { epoch: u64, slot: u8, worker: String, from: i64, next: i64 },
    /// In the last transaction of an owner: only that client of that process may go on without a takeover (rule 3).
    Release { epoch: u64, worker: String, incarnation: u64, client: u64 },
}

/// The fold of the changelog.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub epoch: u64,
    /// The named id.
    pub slot: u8,
    pub worker: String,
    pub incarnation: u64,
    /// Next input offset to process.
    pub next_input: i64,
    /// (worker, incarnation, client) of an unanswered release.
    pub released: Option<(String, u64, u64)>,
    /// What should never be there; found by the audit.
    pub violations: Vec<String>,
}

impl View {
    /// Applies one record. What contradicts the fold so far is a violation, not an error: the audit wants all of them.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Genesis => {}
            Record::Own { epoch, slot, worker, incarnation } => {
                self.expect(epoch == self.epoch + 1, format!("epoch {epoch} after {}: {worker}", self.epoch));
                self.expect(
                    slot != self.slot || self.epoch == 0,
                    format!("slot {slot} twice in a row at epoch {epoch}"),
                );
                (self.epoch, self.slot, self.worker, self.incarnation) = (epoch, slot, worker, incarnation);
                self.released = None;
            }
            Record::Batch { epoch, slot, worker, from, next } => {
                let is_owner = (epoch, slot, &worker) == (self.epoch, self.slot, &self.worker);
                self.expect(
                    is_owner,
                    format!("batch of {worker} epoch {epoch} while {} epoch {} owns", self.worker, self.epoch),
                );
                self.expect(self.released.is_none(), format!("batch of {worker} epoch {epoch} after its release"));
                self.expect(from == self.next_input, format!("batch from {from}, expected {}", self.next_input));
                self.next_input = next;
            }
            Record::Release { epoch, worker, incarnation, client } => {
                self.expect(epoch == self.epoch, format!("release by epoch {epoch} while epoch is {}", self.epoch));
                self.released = Some((worker, incarnation, client));
            }
        }
    }

    fn expect(&mut self, holds: bool, says: String) {
        if !holds {
            self.violations.push(says);
        }
    }
}
