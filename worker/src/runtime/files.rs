//! The limit of open files: each connection is one, and so is each file of a shard's state and each connection to a store.
//!
//! Shells and service managers start processes with a low soft limit (1,024), for the sake of programs that use `select`; ours does not, so
//! that it takes what the hard limit allows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one, and gives what is allowed then.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok() {
        return maximum.unwrap_or(u64::MAX);
    }
    tracing::warn!(?current, ?maximum, "the limit of open files cannot be raised");
    current.unwrap_or(u64::MAX)
}

/// Connections of the public port when so many files may be open: half of them, so that state and stores have the other half.
pub fn connections(open_files: u64, wanted: usize) -> usize {
    let half = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
    if half < wanted {
        tracing::warn!(
            open_files,
            connections = half,
            "the limit of open files allows fewer than {wanted} connections; raise it (ulimit -Hn, LimitNOFILE)"
        );
    }
    half.min(wanted).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_files_are_for_connections() {
        assert_eq!(connections(1024, 10_000), 512);
        assert_eq!(connections(u64::MAX, 10_000), 10_000);
        assert_eq!(connections(0, 10_000), 1);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let allowed = raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!((current, current.unwrap_or(u64::MAX)), (maximum, allowed));
    }
}
