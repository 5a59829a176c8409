//! A database that goes back in time: the pipeline notices at the next change of each document, and heals it (I8).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use bson::{Document as BsonDocument, doc};
use database::{all, put_back};
use millstream_tests::conformance::unique;
use millstream_tests::pipeline::{Pipeline, Settings, until};
use millstream_tests::servers::Mongo;
use serde_json::json;

const USERS: usize = 20;

/// What the tests do to the database behind the pipeline's back.
mod database {
    use super::*;

    fn run<T>(work: impl Future<Output = mongodb::error::Result<T>>) -> T {
        tokio::runtime::Runtime::new().unwrap().block_on(work).unwrap()
    }

    async fn users(database: &str) -> mongodb::error::Result<mongodb::Collection<BsonDocument>> {
        let client = mongodb::Client::with_uri_str(Mongo::shared().unwrap().uri()).await?;
        Ok(client.database(database).collection("users"))
    }

    /// All documents of users, in order of their ids.
    pub(super) fn all(database: &str) -> Vec<BsonDocument> {
        run(async {
            let mut found = users(database).await?.find(doc! {}).sort(doc! { "_id": 1 }).await?;
            let mut documents = Vec::new();
            while found.advance().await? {
                documents.push(found.deserialize_current()?);
            }
            Ok(documents)
        })
    }

    /// Every other document is what it was; the others are gone, as if the backup were older than they are.
    pub(super) fn put_back(database: &str, backup: &[BsonDocument]) {
        run(async {
            let users = users(database).await?;
            users.delete_many(doc! {}).await?;
            users.insert_many(backup.iter().step_by(2)).await.map(drop)
        });
    }
}

fn send(pipeline: &Pipeline, key: &str, attribute: &str) {
    let user = |number: usize| {
        json!({
            "type": "user",
            "message_id": format!("{attribute}-{number}"),
            "identifiers": { "user_id": format!("user-{number}") },
            "set": { attribute: number },
        })
    };
    let batch = json!({ "batch": (0..USERS).map(user).collect::<Vec<_>>() });
    let answer = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", pipeline.gateway().unwrap().url()))
        .bearer_auth(key)
        .header("content-type", "application/json")
        .body(batch.to_string())
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
}

/// Waits until each user's document has these attributes.
fn wait_for(database: &str, attributes: &[&str]) -> Vec<BsonDocument> {
    let has = |document: &BsonDocument, name: &&str| {
        document.get_document("attributes").is_ok_and(|attributes| attributes.contains_key(*name))
    };
    until(&format!("{USERS} documents with {attributes:?}"), || {
        let documents = all(database);
        let complete = documents.iter().filter(|document| attributes.iter().all(|name| has(document, name))).count();
        Ok((complete == USERS).then_some(documents))
    })
    .unwrap()
}

#[test]
fn a_database_restored_from_a_backup_is_healed_document_by_document() {
    let (tenant, key) = ("acme".to_owned(), "secret-of-acme".to_owned());
    let pipeline = unique("gaps");
    let settings = Settings {
        pipeline: pipeline.clone(),
        shards: 4,
        replication: 1,
        mongodb: Some(Mongo::shared().unwrap().uri().to_owned()),
        tenants: vec![(tenant, key.clone())],
        ..Settings::default()
    };
    let running = Pipeline::local(&settings).unwrap();
    send(&running, &key, "first");
    let backup = wait_for(&pipeline, &["first"]);
    send(&running, &key, "second");
    wait_for(&pipeline, &["first", "second"]);
    put_back(&pipeline, &backup);
    send(&running, &key, "third");
    for document in wait_for(&pipeline, &["first", "second", "third"]) {
        assert!(document.get_document("identifiers").unwrap().contains_key("user_id"), "{document}");
        assert!(document.get_i64("_rev").unwrap() > 3, "the whole document has a revision of its own: {document}");
    }
}
