//! Why a condition is as it is: every reason that the operator gives, in one list.
//!
//! Scripts compare reasons, alerts count them, and `docs/src/guides/troubleshooting.md` explains each: a test holds the page to this list.

macro_rules! reasons {
    ($($(#[$about:meta])* $name:ident,)+) => {
        /// The reason of a condition or an Event, or the result of a reconciliation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$about])* $name,)+
        }

        impl Reason {
            /// Every one.
            pub const ALL: &[Reason] = &[$(Reason::$name,)+];

            /// As it is written.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// All workers are ready, and every shard has an owner.
    WorkersReady,
    /// Some workers are not ready.
    WorkersNotReady,
    /// Nobody owns some shards.
    ShardsWithoutOwner,
    /// No workers are to run.
    Suspended,
    /// What there is is not known yet.
    NotObserved,
    /// Workers are replaced or removed, one at a time.
    WorkersChanging,
    /// Workers start by themselves.
    WorkersStarting,
    /// Shards move to where they belong.
    ShardsMoving,
    /// Everything is as it should be.
    NothingToDo,
    /// The resource asks for what cannot be.
    InvalidSpec,
    /// A Secret, or a key in it, is not there.
    SecretMissing,
    /// The API server refuses an object.
    ObjectRefused,
    /// The operator's Role lacks something.
    Forbidden,
    /// Somebody changed the same thing at the same time.
    Conflict,
    /// The API server does not answer.
    ApiServerUnavailable,
    /// Kafka does not answer, or refuses.
    LogUnavailable,
    /// A topic is not there, or not as it must be.
    TopicMismatch,
    /// Strimzi's Topic Operator has not made a topic yet, or cannot.
    TopicsNotReady,
    /// Owners say that something is wrong with their shards.
    ShardsInTrouble,
    /// A worker should have ended, and did not; or no node is found for one that has a volume.
    WorkerLost,
    /// A shard that a person has moved cannot be understood.
    PinIgnored,
    /// No thread could be started.
    OperatorOverloaded,
    /// Nothing is wrong.
    AsExpected,
    /// Something was wrong, and is not any more. Of an Event only.
    Recovered,
    /// The pipeline is deleted, and something must be done before it may go.
    Deleting,
    /// What became of the topics of a pipeline that was deleted. Of an Event only.
    TopicsDeleted,
    /// A pipeline was let go, and its topics stayed. Of an Event only.
    TopicsRetained,
    /// The operator changes nothing.
    PausedBySpec,
    /// The operator makes changes.
    NotPaused,
    /// It is not known how old what waits is, or how long topics keep it.
    NotMeasured,
    /// What waits may be deleted before it is processed.
    RetentionNear,
    /// Every gateway, and every shard of unify, goes by a tenant's terms.
    Known,
    /// Not every gateway, or not every shard of unify, goes by a tenant's terms.
    Waiting,
    /// The tenant is deleted, and what it has sent is erased before it goes.
    Erasing,
    /// No gateway reports.
    NoGateways,
    /// There is no such pipeline.
    PipelineMissing,
    /// A key is another tenant's, too.
    KeyTaken,
    /// A key cannot be sent.
    InvalidKey,
    /// A resource is not understood.
    Unreadable,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The first cell of each row of the guide that is a word in backticks and begins with a capital letter: a reason.
    fn explained() -> BTreeSet<&'static str> {
        let guide = include_str!("../../docs/src/guides/troubleshooting.md");
        let cells = guide.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
        cells.map(|(cell, _)| cell).filter(|cell| cell.starts_with(|first: char| first.is_ascii_uppercase())).collect()
    }

    #[test]
    fn every_reason_is_explained_and_no_other() {
        let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(reasons, explained(), "left: the code; right: docs/src/guides/troubleshooting.md");
    }
}
