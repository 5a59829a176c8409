//! The rules of ownership, and each of them broken.

/// A rule broken on purpose. All others are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mutant {
    /// Rule 4: initialises the named id, reads to the end, and goes on with it if the log still names it.
    NamedIdUsedOn,
    /// Rule 2: an id counts as prepared without a look at the log.
    PreparedUnchecked,
    /// Rule 4: the two inits in any order.
    InitsParallel,
    /// Rule 4: the named id first.
    InitsSwapped,
    /// Rule 6: after an error the transaction is aborted, and the client used on.
    ClientKept,
    /// Rule 6: after an error the client library gets itself a new producer epoch, and the client is used on.
    ClientRevived,
    /// Rule 6: success counts although there was a transport error.
    SuccessTrusted,
    /// Rule 1: the end of the log comes from a follower that lags.
    EndOfFollower,
    /// Rule 4: the log is read before the inits, and not again after them.
    NotReadAgain,
    /// Rule 3: initialises the prepared id once more when it reads the release.
    InitAfterRelease,
    /// Rule 3: whoever reads a release initialises the idle id and goes on, whoever it was meant for.
    ReleaseForAnyone,
    /// Rule 3: a release is taken by its worker's client, also when that was prepared after it.
    PreparedAfterRelease,
    /// Rule 3: the owner goes on after its release.
    GoesOnAfterRelease,
    /// Rule 1: reads what is not committed yet.
    ReadsUncommitted,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 14] = [
        Mutant::NamedIdUsedOn,
        Mutant::PreparedUnchecked,
        Mutant::InitsParallel,
        Mutant::InitsSwapped,
        Mutant::ClientKept,
        Mutant::ClientRevived,
        Mutant::SuccessTrusted,
        Mutant::EndOfFollower,
        Mutant::NotReadAgain,
        Mutant::InitAfterRelease,
        Mutant::ReleaseForAnyone,
        Mutant::PreparedAfterRelease,
        Mutant::GoesOnAfterRelease,
        Mutant::ReadsUncommitted,
    ];
}

/// By what rules the workers go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Rules that are broken.
    pub broken: Vec<Mutant>,
    /// A release already names the successor's id. By the rules it does not: only an ownership record names an id.
    pub release_names: bool,
    /// A takeover is lost if the log has any newer ownership record than the one it began with. By the rules only one that names the other id loses it.
    pub compare_epochs: bool,
    /// A release that is the last entry of the log is meant for the prepared *id*, whoever's client that is. By the rules it is meant for (worker, incarnation,
    /// client).
    pub release_to_id: bool,
}

impl Rules {
    /// All rules kept, but one.
    #[must_use]
    pub fn breaking(mutant: Mutant) -> Rules {
        Rules { broken: vec![mutant], ..Rules::default() }
    }

    /// True when that rule is broken.
    #[must_use]
    pub fn broken(&self, mutant: Mutant) -> bool {
        self.broken.contains(&mutant)
    }

    /// Nobody acts on anything but the newest part of the log, so that the rest may be folded away. Most broken rules do: they go by old ends and dead releases.
    #[must_use]
    pub fn only_the_end_matters(&self) -> bool {
        let harmless = [Mutant::PreparedUnchecked, Mutant::InitsParallel, Mutant::InitsSwapped];
        !self.release_to_id && self.broken.iter().all(|mutant| harmless.contains(mutant))
    }
}
