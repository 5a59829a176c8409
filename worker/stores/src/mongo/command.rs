//! Sending guarded writes: one unordered bulk per call, majority, with a deadline, and what became of each.

use super::Server;
use super::update::{Plan, filter};
use bson::{Bson, Document as BsonDocument, doc};
use millstream_model::proto::Mutation;
use mongodb::error::{Error, ErrorKind, WriteError};
use mongodb::options::{ReplaceOneModel, UpdateOneModel, WriteModel};
use mongodb::{Client, Namespace};
use std::collections::BTreeMap;

/// What a server said about one write.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reply {
    /// Done: matched or inserted.
    Done,
    /// A document with this `_id` is there that the filter did not match, or another unique index is in the way.
    Duplicate(String),
    /// The document has a shape that the operators cannot work on.
    Shape,
    /// Never.
    Refused(String),
    /// Not known, or not now.
    Retry(String),
}

/// A write to send.
pub(super) struct Write<'a> {
    pub(super) mutation: &'a Mutation,
    pub(super) plan: &'a Plan,
}

/// Documents per command, besides their number, are bounded by their bytes: the command is one BSON document of at most 16 MiB.
const COMMAND_BYTES: usize = 8 * 1024 * 1024;

/// `DuplicateKey`.
const DUPLICATE: i32 = 11_000;

/// Codes that say that an operator met a field of another type: `BadValue`, `TypeMismatch`, `PathNotViable`, `ConflictingUpdateOperators`.
const SHAPE: [i32; 4] = [2, 14, 28, 40];

/// Codes of trouble that passes: elections, shutdown, interruption, time-outs, conflicts, throttling.
const TRANSIENT: [i32; 25] = [
    6, 7, 24, 43, 46, 50, 64, 89, 91, 100, 112, 133, 146, 149, 189, 234, 262, 317, 9001, 10_058, 10_107, 11_600,
    11_601, 11_602, 13_435,
];

impl Server {
    /// Sends writes with upsert; one reply each.
    pub(super) async fn send(&self, writes: &[Write<'_>]) -> Vec<Reply> {
        let mut replies = Vec::with_capacity(writes.len());
        for batch in self.batches(writes) {
            replies.extend(self.send_batch(batch).await);
        }
        replies
    }

    fn batches<'a, 'b>(&self, writes: &'a [Write<'b>]) -> Vec<&'a [Write<'b>]> {
        let (mut batches, mut rest, mut bytes, mut count) = (Vec::new(), writes, 0, 0);
        for write in writes {
            let size = prost::Message::encoded_len(write.mutation) * 2;
            if count > 0 && (bytes + size > COMMAND_BYTES || count >= self.config.max_batch) {
                let (batch, after) = rest.split_at(count);
                batches.push(batch);
                (rest, bytes, count) = (after, 0, 0);
            }
            bytes += size;
            count += 1;
        }
        if !rest.is_empty() {
            batches.push(rest);
        }
        batches
    }

    /// One batch; when the server refuses the command as a whole for good, the bad write is found by halving.
    async fn send_batch(&self, batch: &[Write<'_>]) -> Vec<Reply> {
        let sent = if self.bulk { self.bulk_write(batch).await } else { self.update_commands(batch).await };
        match (sent, batch) {
            (Ok(replies), _) => replies,
            (Err(reply), [_]) => vec![reply],
            (Err(Reply::Refused(_)), _) => {
                let (left, right) = batch.split_at(batch.len() / 2);
                let mut replies = Box::pin(self.send_batch(left)).await;
                replies.extend(Box::pin(self.send_batch(right)).await);
                replies
            }
            (Err(reply), _) => vec![reply; batch.len()],
        }
    }

    /// MongoDB 8 and later: one command for all collections.
    async fn bulk_write(&self, batch: &[Write<'_>]) -> Result<Vec<Reply>, Reply> {
        let models: Vec<WriteModel> = batch.iter().filter_map(|write| self.model(write)).collect();
        let sent = self.client.bulk_write(models).ordered(false).write_concern(self.concern());
        match tokio::time::timeout(self.config.write_timeout(), sent.into_future()).await {
            Err(_) => Err(Reply::Retry("time-out".to_owned())),
            Ok(Ok(_)) => Ok(vec![Reply::Done; batch.len()]),
            Ok(Err(error)) => bulk_replies(&error, batch.len()),
        }
    }

    fn model(&self, write: &Write<'_>) -> Option<WriteModel> {
        let namespace = Namespace::new(&self.config.database, &write.mutation.collection);
        let filter = filter(write.mutation);
        Some(match write.plan {
            Plan::Update(update) => UpdateOneModel::builder()
                .namespace(namespace)
                .filter(filter)
                .update(update.clone())
                .upsert(true)
                .build()
                .into(),
            Plan::Replace(document) => ReplaceOneModel::builder()
                .namespace(namespace)
                .filter(filter)
                .replacement(document.clone())
                .upsert(true)
                .build()
                .into(),
            Plan::Fold | Plan::Refuse(_) => return None,
        })
    }

    /// Servers before 8: one command for each collection.
    async fn update_commands(&self, batch: &[Write<'_>]) -> Result<Vec<Reply>, Reply> {
        let mut collections: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, write) in batch.iter().enumerate() {
            collections.entry(&write.mutation.collection).or_default().push(index);
        }
        let mut replies = vec![Reply::Retry("no answer".to_owned()); batch.len()];
        for (collection, indexes) in collections {
            let updates = indexes.iter().filter_map(|&index| batch.get(index)).filter_map(statement).collect();
            let answers = match self.update(collection, updates).await {
                Ok(answer) => update_replies(&answer, indexes.len()),
                // Halving is for the whole batch: only one collection's writes are known to be refused.
                Err(reply) if batch.len() == 1 => return Err(reply),
                Err(reply @ Reply::Refused(_)) => return Err(reply),
                Err(reply) => vec![reply; indexes.len()],
            };
            for (index, answer) in indexes.into_iter().zip(answers) {
                if let Some(reply) = replies.get_mut(index) {
                    *reply = answer;
                }
            }
        }
        Ok(replies)
    }

    /// The `update` command.
    pub(super) async fn update(&self, collection: &str, updates: Vec<BsonDocument>) -> Result<BsonDocument, Reply> {
        let timeout = i64::try_from(self.config.write_timeout_ms).unwrap_or(i64::MAX);
        let command = doc! {
            "update": collection,
            "updates": updates,
            "ordered": false,
            "writeConcern": { "w": "majority", "wtimeout": timeout },
        };
        let database = self.client.database(&self.config.database);
        let sent = database.run_command(command);
        match tokio::time::timeout(self.config.write_timeout(), sent.into_future()).await {
            Err(_) => Err(Reply::Retry("time-out".to_owned())),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(command_reply(&error)),
        }
    }
}

/// A write as an element of the `update` command.
pub(super) fn statement(write: &Write<'_>) -> Option<BsonDocument> {
    match write.plan {
        Plan::Update(change) | Plan::Replace(change) => {
            Some(doc! { "q": filter(write.mutation), "u": change.clone(), "upsert": true })
        }
        Plan::Fold | Plan::Refuse(_) => None,
    }
}

fn bulk_replies(error: &Error, count: usize) -> Result<Vec<Reply>, Reply> {
    let ErrorKind::BulkWrite(bulk) = error.kind.as_ref() else { return Err(command_reply(error)) };
    // Something besides single writes went wrong: what has no error of its own is not known to be done.
    let whole = std::error::Error::source(error).map(ToString::to_string).or_else(|| {
        bulk.write_concern_errors.first().map(|concern| format!("not acknowledged by a majority: {}", concern.message))
    });
    let reply = |index| match (bulk.write_errors.get(&index), &whole) {
        (Some(WriteError { code, message, .. }), _) => write_reply(*code, message),
        (None, Some(why)) => Reply::Retry(why.clone()),
        (None, None) => Reply::Done,
    };
    Ok((0..count).map(reply).collect())
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
fn command_reply(error: &Error) -> Reply {
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

/// Is the server one that knows the `bulkWrite` command (8.0 and later)?
pub(super) async fn knows_bulk_write(client: &Client) -> Result<bool, Error> {
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    Ok(number(&hello, "maxWireVersion").unwrap_or(0) >= 25)
}

#[cfg(test)]
mod tests {
    use super::*;

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
