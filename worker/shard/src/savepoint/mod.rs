//! Savepoints: a consistent cut over all shards of a pipeline, while it works (I10).
//!
//! **The cut.** Whoever takes a savepoint publishes its id in `control`. Each shard is *cut* for it at one of its batches: a batch without a change, whose transaction holds nothing but the changelog's record,
//! which says that it is a cut, where the inputs stand, and what the state's digest is, and one [`marker`] in every partition that other shards read from this one. What the shard has written before
//! the marker belongs to the savepoint, what it writes after does not.
//!
//! - A shard of unify is cut when it hears of the savepoint. (Anybody may write to `ingress`: what looks like a marker there is a record that cannot be read.)
//! - A shard of action is cut when it meets the savepoint's first marker in any of its inputs, and before it reads further: nothing that is behind a marker has been processed at the cut
//!   ([`Inputs`](crate::inputs::Inputs)). So the markers of unify reach every shard.
//!
//! **What lies between.** What a shard sent before its marker, and the receiver had not processed at its own cut, is between the two positions that are recorded: the receiver's input at its cut, and the sender's
//! marker. It belongs to the savepoint, as the content of that channel.
//!
//! **Once.** Which savepoints a shard was cut for is in the changelog, and goes with its state: a shard that moves, or dies in the middle, is not cut again, and meets the other markers of that savepoint as
//! messages for nobody. The newest few are remembered ([`cuts`]), in whatever order they came: savepoints that overlap do not wait for each other.
//!
//! What a shard [owes](crate::hanging) its outputs of batches before goes first: it was written before the cut.

pub(crate) mod cuts;
pub mod marker;
