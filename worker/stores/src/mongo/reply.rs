//! What servers answer to writes: done, nothing matched, never, or not known.

use super::command::Write;
use super::update::may_insert;
use bson::{Bson, Document as BsonDocument};
use mongodb::error::{Error, ErrorKind, PartialBulkWriteResult, WriteError};
use mongodb::results::UpdateResult;

/// What a server said about one write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    /// Done: matched or inserted.
    Done,
    /// No document matched, and none was to be inserted.
    Unmatched,
    /// Done, or unmatched: the server tells only how many writes of the command matched.
    Unsure,
    /// A document with this `_id` is there that the filter did not match, or another unique index is in the way.
    Duplicate(String),
    /// The document has a shape that the operators cannot work on.
    Shape,
    /// Never.
    Refused(String),
    /// Not known, or not now.
    Retry(String),
}

/// `DuplicateKey`.
const DUPLICATE: i32 = 11_000;

/// Codes that say that an operator met a field of another type: `BadValue`, `TypeMismatch`, `PathNotViable`, `ConflictingUpdateOperators`.
const SHAPE: [i32; 4] = [2, 14, 28, 40];

/// Codes of trouble that passes: elections, shutdown, interruption, time-outs, conflicts, throttling.
const TRANSIENT: [i32; 25] = [
    6, 7, 24, 43, 46, 50, 64, 89, 91, 100, 112, 133, 146, 149, 189, 234, 262, 317, 9001, 10_058, 10_107, 11_600,
    11_601, 11_602, 13_435,
];

/// What the result of a write without error says. Where nothing may be inserted, it is done only if something matched.
pub(super) fn match_reply(write: &Write<'_>, result: Option<&UpdateResult>) -> Reply {
    let is_done = may_insert(write.mutation) || result.is_some_and(|result| result.matched_count > 0);
    if is_done { Reply::Done } else { Reply::Unmatched }
}

/// The `update` command tells how many documents matched or were inserted, but not by which writes.
pub(super) fn count_matches(answer: &BsonDocument, writes: &[&Write<'_>], replies: &mut [Reply]) {
    let (mut expected, mut inserting) = (0, 0);
    for (write, _) in writes.iter().zip(replies.iter()).filter(|(_, reply)| **reply == Reply::Done) {
        expected += 1;
        inserting += usize::from(may_insert(write.mutation));
    }
    let total = number(answer, "n").and_then(|total| usize::try_from(total).ok()).unwrap_or(0);
    if total >= expected {
        return;
    }
    let told = if total <= inserting { Reply::Unmatched } else { Reply::Unsure };
    for (write, reply) in writes.iter().zip(replies) {
        if *reply == Reply::Done && !may_insert(write.mutation) {
            *reply = told.clone();
        }
    }
}

/// What the error of a `bulkWrite` command says about each of its writes; `Err` when it says the same about all.
pub(super) fn bulk_replies(error: &Error, batch: &[Write<'_>]) -> Result<Vec<Reply>, Reply> {
    let ErrorKind::BulkWrite(bulk) = error.kind.as_ref() else { return Err(command_reply(error)) };
    // Something besides single writes went wrong: what has no error of its own is not known to be done.
    let whole = std::error::Error::source(error).map(ToString::to_string).or_else(|| {
        bulk.write_concern_errors.first().map(|concern| format!("not acknowledged by a majority: {}", concern.message))
    });
    let results = match &bulk.partial_result {
        Some(PartialBulkWriteResult::Verbose(results)) => Some(&results.update_results),
        _ => None,
    };
    let reply = |(index, write): (usize, &Write<'_>)| match (bulk.write_errors.get(&index), &whole) {
        (Some(WriteError { code, message, .. }), _) => write_reply(*code, message),
        (None, Some(why)) => Reply::Retry(why.clone()),
        (None, None) => match_reply(write, results.and_then(|results| results.get(&index))),
    };
    Ok(batch.iter().enumerate().map(reply).collect())
}

/// The replies in the answer of an `update` command.
pub(super) fn update_replies(answer: &BsonDocument, count: usize) -> Vec<Reply> {
    let concern = answer.get_document("writeConcernError").ok();
    let rest = concern.map_or(Reply::Done, |concern| {
        Reply::Retry(format!("not acknowledged by a majority: {}", concern.get_str("errmsg").unwrap_or("no reason")))
    });
    let mut replies = vec![rest; count];
    let errors = answer.get_array("writeErrors").map(Vec::as_slice).unwrap_or_default();
    for error in errors.iter().filter_map(Bson::as_document) {
        let index = number(error, "index").and_then(|index| usize::try_from(index).ok());
        let code = number(error, "code").and_then(|code| i32::try_from(code).ok()).unwrap_or(0);
        if let Some(reply) = index.and_then(|index| replies.get_mut(index)) {
            *reply = write_reply(code, error.get_str("errmsg").unwrap_or("no reason"));
        }
    }
    replies
}

/// A whole number that servers send in any of three types.
pub(super) fn number(document: &BsonDocument, name: &str) -> Option<i64> {
    match document.get(name)? {
        Bson::Int32(number) => Some(i64::from(*number)),
        Bson::Int64(number) => Some(*number),
        Bson::Double(number) => Some(*number as i64),
        _ => None,
    }
}

fn write_reply(code: i32, message: &str) -> Reply {
    if code == DUPLICATE {
        Reply::Duplicate(message.to_owned())
    } else if SHAPE.contains(&code) {
        Reply::Shape
    } else if TRANSIENT.contains(&code) {
        Reply::Retry(format!("{message} ({code})"))
    } else {
        Reply::Refused(format!("{message} ({code})"))
    }
}

/// What an error of a whole command says about each of its writes.
pub(super) fn command_reply(error: &Error) -> Reply {
    let message = error.to_string();
    match error.kind.as_ref() {
        ErrorKind::InvalidArgument { .. } | ErrorKind::Bson(_) | ErrorKind::BsonSerialization(_) => {
            Reply::Refused(message)
        }
        // Too large, or not understood: `BSONObjectTooLarge`, `FailedToParse`, invalid BSON.
        ErrorKind::Command(command) if [9, 22, 10_334, 17_419, 17_420].contains(&command.code) => {
            Reply::Refused(message)
        }
        _ => Reply::Retry(message),
    }
}

#[cfg(test)]
mod tests {
    use super::super::update::Plan;
    use super::*;
    use bson::doc;
    use millstream_model::proto::{Mutation, Operation, operation::Op};

    #[test]
    fn answers_are_told_apart() {
        let answer = doc! { "ok": 1.0, "n": 1, "writeErrors": [
            { "index": 1, "code": 11000, "errmsg": "E11000 dup key" },
            { "index": 2, "code": 121, "errmsg": "Document failed validation" },
            { "index": 3_i64, "code": 28, "errmsg": "Cannot create field" },
            { "index": 4, "code": 189, "errmsg": "stepped down" },
        ]};
        let replies = update_replies(&answer, 5);
        assert_eq!(replies.first(), Some(&Reply::Done));
        assert!(matches!(&replies[1], Reply::Duplicate(_)));
        assert!(matches!(&replies[2], Reply::Refused(why) if why.contains("validation")));
        assert_eq!(replies[3], Reply::Shape);
        assert!(matches!(&replies[4], Reply::Retry(_)));
    }

    /// Two that build on revision 1, and one that may insert.
    fn replies_to(n: i32) -> Vec<Reply> {
        let mutation = |base| Mutation { generation: 1, revision: 2, base, ..Mutation::default() };
        let set = Operation { path: "a".to_owned(), op: Some(Op::Unset(true)) };
        let mutations = [1, 0, 1].map(|base| Mutation { operations: vec![set.clone()], ..mutation(base) });
        let plan = Plan::Update(doc! {});
        let writes = mutations.each_ref().map(|mutation| Write { mutation, plan: &plan });
        let mut replies = vec![Reply::Done; 3];
        count_matches(&doc! { "ok": 1.0, "n": n }, &writes.iter().collect::<Vec<_>>(), &mut replies);
        replies
    }

    #[test]
    fn how_many_matched_says_which_only_when_all_or_none_did() {
        use Reply::{Done, Unmatched, Unsure};
        assert_eq!(replies_to(3), [Done, Done, Done]);
        assert_eq!(replies_to(2), [Unsure, Done, Unsure]);
        assert_eq!(replies_to(1), [Unmatched, Done, Unmatched]);
    }

    #[test]
    fn without_a_majority_nothing_is_known() {
        let answer = doc! { "ok": 1.0, "n": 2, "writeConcernError": { "code": 64, "errmsg": "waiting timed out" } };
        assert!(
            update_replies(&answer, 2)
                .iter()
                .all(|reply| matches!(reply, Reply::Retry(why) if why.contains("timed out")))
        );
    }
}
