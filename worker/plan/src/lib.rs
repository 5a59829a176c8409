//! Who owns which shard, who comes next, and what each worker does about it.
//!
//! Two topics carry all of it. The operator, or a person with `millstream plan`, publishes the [`plan::Plan`] to the compacted topic `control`;
//! every worker says on `status` what it has open ([`status::WorkerStatus`]). Who publishes makes the plan with the [`planner`]; a worker keeps
//! what it heard in a [`view::View`] and asks it for its duties. The operator is not in the failover path: owner and successors are in
//! the plan, and silence is judged by each worker for itself.
//!
//! *What this crate does not do* is decide who may write. Kafka's transactional ids are the only lock (I4), and a duty is only advice on
//! when to try: two workers whose views differ may both try, and one of them is fenced. So nothing here can break I1 to I5; what a mistake here
//! costs is time (nobody takes over) or work (shards moved for nothing). The invariants of this crate are about those:
//!
//! - **One candidate.** Of workers with the same view at the same moment at most one takes a shard over, and at most one prepares for it.
//! - **Order does not matter.** The plan of the highest (term, number) and each worker's report of the highest (incarnation, sequence) count, so
//!   that messages that come late, twice or in another order make the same view.
//! - **Little moves.** At most k shards are in motion because of a plan, and a shard leaves a live owner only for a worker that has caught up.
//! - **It comes to rest.** The same input gives the same plan, and a plan that would say the same is not published again.
//!
//! Protocol of a worker: read `control` and `status` to their ends and feed the view; then, several times per second, feed what came,
//! ask [`view::View::verdict`] and, when that says go on, [`view::View::duties`]; report at least four times per bound of silence. All is pure:
//! time comes in as milliseconds of a monotonic clock.

pub mod ability;
pub mod file;
pub mod incarnation;
pub mod message;
pub mod plan;
pub mod planner;
pub mod status;
pub mod unread;
pub mod validate;
pub mod view;
mod wire;
