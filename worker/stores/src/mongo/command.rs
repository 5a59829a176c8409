//! Sending guarded writes: one unordered bulk per call, majority, with a deadline, and what became of each.

use super::Server;
use super::reply::{Reply, bulk_replies, command_reply, count_matches, match_reply, number, update_replies};
use super::update::{Plan, filter, may_insert};
use bson::{Document as BsonDocument, doc};
use millstream_model::proto::Mutation;
use mongodb::error::Error;
use mongodb::options::{ReplaceOneModel, UpdateOneModel, WriteModel};
use mongodb::{Client, Namespace};
use std::collections::BTreeMap;

/// A write to send.
pub(super) struct Write<'a> {
    pub(super) mutation: &'a Mutation,
    pub(super) plan: &'a Plan,
}

/// Documents per command, besides their number, are bounded by their bytes: the command is one BSON document of at most 16 MiB.
const COMMAND_BYTES: usize = 8 * 1024 * 1024;

impl Server {
    /// Sends writes, with upsert where that is allowed; one reply each.
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
        let sent = self.client.bulk_write(models).verbose_results().ordered(false).write_concern(self.concern());
        match tokio::time::timeout(self.config.write_timeout(), sent.into_future()).await {
            Err(_) => Err(Reply::Retry("time-out".to_owned())),
            Ok(Ok(results)) => {
                let reply =
                    |(index, write): (usize, &Write<'_>)| match_reply(write, results.update_results.get(&index));
                Ok(batch.iter().enumerate().map(reply).collect())
            }
            Ok(Err(error)) => bulk_replies(&error, batch),
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
                .upsert(may_insert(write.mutation))
                .build()
                .into(),
            Plan::Replace(document) => ReplaceOneModel::builder()
                .namespace(namespace)
                .filter(filter)
                .replacement(document.clone())
                .upsert(may_insert(write.mutation))
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
            let writes: Vec<&Write<'_>> = indexes.iter().filter_map(|&index| batch.get(index)).collect();
            let updates = writes.iter().filter_map(|write| statement(write)).collect();
            let answers = match self.update(collection, updates).await {
                Ok(answer) => {
                    let mut answers = update_replies(&answer, indexes.len());
                    count_matches(&answer, &writes, &mut answers);
                    answers
                }
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

    /// The `update` command. Sent as it is, it has neither the default write concern nor the driver's repetition: it says the one itself, and the other is the caller's, who must know of it.
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
            let upsert = may_insert(write.mutation);
            Some(doc! { "q": filter(write.mutation), "u": change.clone(), "upsert": upsert })
        }
        Plan::Fold | Plan::Refuse(_) => None,
    }
}

/// Is the server one that knows the `bulkWrite` command (8.0 and later)?
pub(super) async fn knows_bulk_write(client: &Client) -> Result<bool, Error> {
    let hello = client.database("admin").run_command(doc! { "hello": 1 }).await?;
    Ok(number(&hello, "maxWireVersion").unwrap_or(0) >= 25)
}
