//! The document store on MongoDB.
//!
//! Upholds I8 by the guard in each document's `_gen` and `_rev`: see `write.rs` for the protocol. One database, one collection for each
//! kind of entity, `_id` = `<tenant>/<id>`. The blocking API runs on a tokio runtime of its own, so it can be called from any thread.

mod command;
mod config;
mod convert;
mod reply;
pub mod survey;
mod update;
mod verdict;
mod write;

pub use config::MongoConfig;

use bson::{Document as BsonDocument, doc};
use convert::{ID, key, loaded, prefix};
use futures::TryStreamExt;
use millstream_model::document::Document;
use millstream_model::proto::Mutation;
use millstream_shard::documents::{DocumentError, DocumentStore, Outcome};
use mongodb::error::Error;
use mongodb::options::{Acknowledgment, ClientOptions, ReadConcern, SelectionCriteria, WriteConcern};
use mongodb::{Client, Collection};
use std::future::Future;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// What the tasks share.
struct Server {
    client: Client,
    config: MongoConfig,
    /// Does the server know the `bulkWrite` command?
    bulk: bool,
}

/// The document store on MongoDB.
pub struct MongoDocuments {
    documents: Arc<Server>,
    runtime: Option<Runtime>,
}

/// `NamespaceExists`.
const EXISTS: i32 = 48;

impl MongoDocuments {
    /// Connects, and asks the server what it can do.
    ///
    /// # Errors
    /// [`DocumentError::Configuration`] for what is wrong with the settings, [`DocumentError::Unavailable`] when the server does not answer.
    pub fn connect(config: MongoConfig) -> Result<MongoDocuments, DocumentError> {
        config.check()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("mongo")
            .enable_all()
            .build()
            .map_err(|error| DocumentError::Unavailable(format!("cannot start threads: {error}")))?;
        let documents = wait(&runtime, open(config))?;
        Ok(MongoDocuments { documents: Arc::new(documents), runtime: Some(runtime) })
    }

    /// Runs `work` on the runtime and waits for it. Works on any thread, those of another runtime included.
    fn run<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Server>) -> F,
    ) -> Option<T> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let work = work(Arc::clone(&self.documents));
        self.runtime.as_ref()?.spawn(async move { drop(sender.send(work.await)) });
        receiver.recv().ok()
    }

    fn read<T: Send + 'static, F: Future<Output = Result<T, Error>> + Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(Arc<Server>) -> F,
    ) -> Result<T, DocumentError> {
        match self.run(work) {
            Some(Ok(found)) => Ok(found),
            Some(Err(error)) => Err(DocumentError::Unavailable(format!("{what}: {error}"))),
            None => Err(DocumentError::Unavailable(format!("{what}: the client is closed"))),
        }
    }
}

impl Drop for MongoDocuments {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping a runtime waits for its tasks, which panics on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

fn wait<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = Result<T, DocumentError>> + Send + 'static,
) -> Result<T, DocumentError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime.spawn(async move { drop(sender.send(work.await)) });
    receiver.recv().unwrap_or_else(|_| Err(DocumentError::Unavailable("the client is closed".to_owned())))
}

/// What the driver says of a connection string may repeat parts of it.
fn without_credentials(uri: &str, said: &str) -> String {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let Some((credentials, _)) = rest.rsplit_once('@') else { return said.to_owned() };
    let parts = credentials.split([':', '/', '?', '@', ',']).filter(|part| part.len() > 1);
    parts.fold(said.to_owned(), |said, part| said.replace(part, "(redacted)"))
}

async fn open(config: MongoConfig) -> Result<Server, DocumentError> {
    let uri = config.connection_string();
    let wrong =
        |error: Error| DocumentError::Configuration(format!("uri: {}", without_credentials(&uri, &error.to_string())));
    let mut options = ClientOptions::parse(&uri).await.map_err(wrong)?;
    // What is not told otherwise: reads of the primary, and errors in the time that a write has.
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(mongodb::options::ReadPreference::Primary));
    options.read_concern = Some(ReadConcern::local());
    options.server_selection_timeout = Some(config.write_timeout());
    options.app_name.get_or_insert_with(|| "millstream".to_owned());
    let client = Client::with_options(options).map_err(wrong)?;
    let known = command::knows_bulk_write(&client)
        .await
        .map_err(|error| DocumentError::Unavailable(format!("cannot reach MongoDB: {error}")))?;
    let bulk = known && config.bulk_write;
    Ok(Server { client, config, bulk })
}

impl Server {
    fn collection(&self, name: &str) -> Collection<BsonDocument> {
        self.client.database(&self.config.database).collection(name)
    }

    fn concern(&self) -> WriteConcern {
        WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(self.config.write_timeout()).build()
    }

    async fn find(&self, collection: &str, key: &str) -> Result<Option<BsonDocument>, Error> {
        self.collection(collection).find_one(doc! { ID: key }).max_time(self.config.read_timeout()).await
    }

    async fn prepare(&self, name: &str) -> Result<(), DocumentError> {
        let unavailable = |error: Error| DocumentError::Unavailable(format!("collection {name}: {error}"));
        match self.client.database(&self.config.database).create_collection(name).await {
            Ok(()) => {}
            Err(error) if is_command_error(&error, EXISTS) => {}
            Err(error) => return Err(unavailable(error)),
        }
        match self.unique_index(name).await.map_err(unavailable)? {
            None => Ok(()),
            Some(keys) => Err(DocumentError::Configuration(format!(
                "collection {name} has the unique index {keys}: a write that it refuses could never be applied; drop it"
            ))),
        }
    }

    /// The keys of a unique index of a collection, besides the one that each has.
    async fn unique_index(&self, name: &str) -> Result<Option<String>, Error> {
        let indexes: Vec<mongodb::IndexModel> = self.collection(name).list_indexes().await?.try_collect().await?;
        let unique = indexes.iter().find(|index| {
            index.keys != doc! { ID: 1 } && index.options.as_ref().and_then(|options| options.unique) == Some(true)
        });
        Ok(unique.map(|index| index.keys.to_string()))
    }

    /// The documents of a tenant from some id on, in order.
    async fn page(&self, collection: &str, tenant: &str, after: Option<&str>) -> Result<Vec<BsonDocument>, Error> {
        let first = prefix(tenant);
        // '0' is the character after '/'.
        let end = format!("{}0", first.trim_end_matches('/'));
        let mut range = doc! { "$gte": &first, "$lt": end };
        if let Some(after) = after {
            range.insert("$gt", after);
        }
        let documents = self.collection(collection);
        let found = documents.find(doc! { ID: range }).sort(doc! { ID: 1 }).limit(PAGE);
        found.max_time(self.config.read_timeout()).await?.try_collect().await
    }
}

/// How long it may take to make a collection ready, a server to be found included.
const PREPARES: std::time::Duration = std::time::Duration::from_secs(30);
/// Documents that a scan reads at once.
const PAGE: i64 = 1000;

fn is_command_error(error: &Error, code: i32) -> bool {
    matches!(error.kind.as_ref(), mongodb::error::ErrorKind::Command(command) if command.code == code)
}

impl DocumentStore for MongoDocuments {
    fn prepare(&self, collections: &[&str]) -> Result<(), DocumentError> {
        for name in collections {
            let name = (*name).to_owned();
            // What it asks has no bound of its own: a server may say that it is there, and answer nothing else.
            let late =
                DocumentError::Unavailable(format!("collection {name}: no answer within {} s", PREPARES.as_secs()));
            let prepared = self.run(|documents| async move {
                tokio::time::timeout(PREPARES, documents.prepare(&name)).await.unwrap_or(Err(late))
            });
            prepared.unwrap_or_else(|| Err(DocumentError::Unavailable("the client is closed".to_owned())))?;
        }
        Ok(())
    }

    fn write(&self, mutations: &[Mutation]) -> Vec<Outcome> {
        if mutations.is_empty() {
            return Vec::new();
        }
        let owned = mutations.to_vec();
        self.run(|documents| async move { documents.write_all(&owned).await })
            .unwrap_or_else(|| vec![Outcome::Retry("the client is closed".to_owned()); mutations.len()])
    }

    fn get(&self, tenant: &str, collection: &str, id: &str) -> Result<Option<Document>, DocumentError> {
        let (collection, key) = (collection.to_owned(), key(tenant, id));
        let found = self.read("read", |documents| async move { documents.find(&collection, &key).await })?;
        Ok(found.map(loaded))
    }

    fn scan(
        &self,
        tenant: &str,
        collection: &str,
        each: &mut dyn FnMut(&str, Document) -> bool,
    ) -> Result<(), DocumentError> {
        let skip = prefix(tenant).len();
        let mut after: Option<String> = None;
        loop {
            let (tenant, collection, from) = (tenant.to_owned(), collection.to_owned(), after.clone());
            let page = self
                .read("scan", |documents| async move { documents.page(&collection, &tenant, from.as_deref()).await })?;
            let last = page.last().and_then(|document| document.get_str(ID).ok()).map(str::to_owned);
            for document in page {
                let key = document.get_str(ID).unwrap_or_default().to_owned();
                if !each(key.get(skip..).unwrap_or_default(), loaded(document)) {
                    return Ok(());
                }
            }
            match last {
                Some(last) => after = Some(last),
                None => return Ok(()),
            }
        }
    }
}
