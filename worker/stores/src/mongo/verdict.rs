//! What a collision, or a write that matched nothing, means once the stored guard is known (I8).

use super::reply::Reply;
use millstream_model::document::{Fit, fit};
use millstream_model::proto::Mutation;

/// Names the index that every collection has, in the text of E11000: the driver does not pass on the key pattern.
pub(super) const ID_INDEX: &str = "index: _id_";

/// What a collision or a write that matched nothing means, once the stored guard is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Ours is there.
    Applied,
    /// Ours was there already, or a newer one is.
    Stale,
    /// What it builds on is not there.
    Gap,
    /// It fits now: two upserts collided, or somebody else wrote in between. Once more, without upsert.
    Repeat,
    /// The document was there, and is not any more.
    Later,
    /// Another unique index is in the way.
    Never,
}

/// What a doubtful reply means where this guard is stored.
pub(super) fn verdict(mutation: &Mutation, found: Option<(u32, u64)>, doubt: &Reply) -> Verdict {
    let ours = (mutation.generation, mutation.revision);
    match (fit(found.unwrap_or_default(), mutation), doubt) {
        (Fit::Stale, Reply::Unsure) if found == Some(ours) => Verdict::Applied,
        (Fit::Stale, _) => Verdict::Stale,
        (Fit::Gap, _) => Verdict::Gap,
        (Fit::Next, _) if found.is_some() => Verdict::Repeat,
        (Fit::Next, Reply::Duplicate(message)) if !message.contains(ID_INDEX) => Verdict::Never,
        (Fit::Next, _) => Verdict::Later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_model::proto::{Operation, operation::Op};

    /// Revision 5 of generation 1, building on a revision.
    fn mutation(base: u64) -> Mutation {
        let unset = Operation { path: "a".to_owned(), op: Some(Op::Unset(true)) };
        Mutation { generation: 1, revision: 5, base, operations: vec![unset], ..Mutation::default() }
    }

    /// The servers of the tests do not let two upserts collide, MongoDB does.
    #[test]
    fn a_collision_proves_nothing_until_the_stored_guard_is_known() {
        let (by_id, by_other) = ("E11000 dup key: index: _id_ dup key", "E11000 dup key: index: email_1 dup key");
        for (found, message, expected) in [
            (Some((1, 4)), by_id, Verdict::Repeat),
            (Some((0, 9)), by_id, Verdict::Repeat),
            (Some((1, 5)), by_id, Verdict::Stale),
            (Some((2, 0)), by_id, Verdict::Stale),
            (Some((1, 4)), by_other, Verdict::Repeat),
            (None, by_id, Verdict::Later),
            (None, by_other, Verdict::Never),
        ] {
            let doubt = Reply::Duplicate(message.to_owned());
            assert_eq!(verdict(&mutation(0), found, &doubt), expected, "{found:?} {message}");
        }
    }

    #[test]
    fn what_matched_nothing_is_newer_or_older_or_has_come_since() {
        for (found, expected) in [
            (None, Verdict::Gap),
            (Some((0, 9)), Verdict::Gap),
            (Some((1, 2)), Verdict::Gap),
            (Some((1, 3)), Verdict::Repeat),
            (Some((1, 4)), Verdict::Repeat),
            (Some((1, 5)), Verdict::Stale),
            (Some((1, 6)), Verdict::Stale),
            (Some((2, 1)), Verdict::Stale),
        ] {
            assert_eq!(verdict(&mutation(3), found, &Reply::Unmatched), expected, "{found:?}");
        }
        assert_eq!(verdict(&mutation(3), Some((1, 5)), &Reply::Unsure), Verdict::Applied, "one of us wrote it");
        assert_eq!(verdict(&mutation(3), Some((1, 6)), &Reply::Unsure), Verdict::Stale);
    }
}
