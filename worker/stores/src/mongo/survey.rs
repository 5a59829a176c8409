//! A look at a server that changes nothing in it: for whoever checks a configuration.

use super::reply::number;
use super::{MongoDocuments, Server, is_command_error};
use bson::{Document as BsonDocument, doc};
use millstream_shard::documents::DocumentError;
use mongodb::error::Error;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// `NamespaceNotFound`.
const NOT_FOUND: i32 = 26;

/// What is done with a collection, by the names that permissions have.
pub const ACTIONS: [&str; 5] = ["find", "insert", "update", "createCollection", "listIndexes"];

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its version, when it tells.
    pub version: Option<String>,
    /// The newest version of the wire protocol that it speaks.
    pub wire: i64,
    /// The replica set that it is in.
    pub replica_set: Option<String>,
    /// It is a router of a sharded cluster.
    pub is_router: bool,
    /// It takes writes.
    pub is_writable: bool,
    /// Members that have data and are well, and how many of them are a majority; when we may ask.
    pub members: Option<(i64, i64)>,
    /// How far its clock is ahead of ours, milliseconds, give or take [`Found::round_trip_ms`].
    pub clock_ahead_ms: Option<i64>,
    /// How long it took to answer, milliseconds.
    pub round_trip_ms: i64,
    /// What the user may not do of [`ACTIONS`]; `None`: that is not told, or there are no users.
    pub forbidden: Option<Vec<&'static str>>,
    /// The collections that were asked about, by name.
    pub collections: Vec<(String, Collection)>,
}

/// A collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collection {
    /// It is not there, or cannot be told from an empty one.
    Absent,
    /// Nothing is in the way of writes.
    Good,
    /// A unique index, by its keys.
    Unique(String),
    /// It could not be looked at.
    Unknown(String),
}

impl MongoDocuments {
    /// Looks at the server and these collections, and changes nothing. Gives up when that takes longer than a read may.
    ///
    /// # Errors
    /// [`DocumentError::Unavailable`].
    pub fn survey(&self, collections: &[&str]) -> Result<Found, DocumentError> {
        let names: Vec<String> = collections.iter().map(|name| (*name).to_owned()).collect();
        let late = || DocumentError::Unavailable("the server does not answer in time".to_owned());
        let looked = self.run(|server| async move {
            let timeout = server.config.read_timeout();
            tokio::time::timeout(timeout, server.survey(names)).await
        });
        let failed = |error: Error| DocumentError::Unavailable(format!("cannot look at MongoDB: {error}"));
        looked.and_then(Result::ok).ok_or_else(late)?.map_err(failed)
    }
}

impl Server {
    async fn survey(&self, names: Vec<String>) -> Result<Found, Error> {
        let (began, before_ms) = (Instant::now(), now_ms());
        let hello = self.ask("hello").await?;
        let round_trip_ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let ours = before_ms + round_trip_ms / 2;
        let build = self.ask("buildInfo").await.unwrap_or_default();
        let mut found = Found {
            version: build.get_str("version").ok().map(str::to_owned),
            wire: number(&hello, "maxWireVersion").unwrap_or(0),
            replica_set: hello.get_str("setName").ok().map(str::to_owned),
            is_router: hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid"),
            is_writable: hello.get_bool("isWritablePrimary").unwrap_or(false),
            clock_ahead_ms: hello.get_datetime("localTime").ok().map(|time| time.timestamp_millis() - ours),
            round_trip_ms,
            ..Found::default()
        };
        if found.replica_set.is_some() {
            // Often not permitted to an application's user.
            found.members = self.ask("replSetGetStatus").await.ok().and_then(|status| members(&status));
        }
        let names_text: Vec<&str> = names.iter().map(String::as_str).collect();
        found.forbidden = self.privileges().await.and_then(|of| forbidden(&of, &self.config.database, &names_text));
        for name in names {
            let collection = self.look_at(&name).await;
            found.collections.push((name, collection));
        }
        Ok(found)
    }

    async fn ask(&self, command: &str) -> Result<BsonDocument, Error> {
        self.client.database("admin").run_command(doc! { command: 1 }).await
    }

    async fn privileges(&self) -> Option<BsonDocument> {
        let command = doc! { "connectionStatus": 1, "showPrivileges": true };
        let status = self.client.database("admin").run_command(command).await.ok()?;
        status.get_document("authInfo").ok().cloned()
    }

    async fn look_at(&self, name: &str) -> Collection {
        match self.unique_index(name).await {
            Ok(None) => Collection::Good,
            Ok(Some(keys)) => Collection::Unique(keys),
            Err(error) if is_command_error(&error, NOT_FOUND) => Collection::Absent,
            Err(error) => Collection::Unknown(error.to_string()),
        }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Members that have data and are well (primary 1, secondary 2), and how many are a majority, from `replSetGetStatus`.
fn members(status: &BsonDocument) -> Option<(i64, i64)> {
    let members = status.get_array("members").ok()?;
    let is_well = |member: &&BsonDocument| {
        matches!(number(member, "state"), Some(1 | 2)) && number(member, "health").unwrap_or(1) == 1
    };
    let well = members.iter().filter_map(|member| member.as_document()).filter(is_well).count();
    let voters = number(status, "votingMembersCount").unwrap_or(members.len() as i64);
    let majority = number(status, "writeMajorityCount").unwrap_or(voters / 2 + 1);
    Some((well as i64, majority))
}

/// What a user may not do with these collections, from `connectionStatus.authInfo`. `None`: nobody is logged in, or what they may do is not told.
fn forbidden(info: &BsonDocument, database: &str, collections: &[&str]) -> Option<Vec<&'static str>> {
    info.get_array("authenticatedUsers").ok().filter(|users| !users.is_empty())?;
    let privileges = info.get_array("authenticatedUserPrivileges").ok()?;
    let privileges: Vec<&BsonDocument> = privileges.iter().filter_map(|privilege| privilege.as_document()).collect();
    let may = |action: &str, collection: &str| {
        privileges.iter().any(|privilege| {
            let actions = privilege.get_array("actions").map_or(&[][..], Vec::as_slice);
            let has = |name: &str| actions.iter().any(|known| known.as_str() == Some(name));
            (has(action) || has("anyAction")) && covers(privilege, database, collection)
        })
    };
    let is_forbidden = |action: &&&'static str| collections.iter().any(|collection| !may(action, collection));
    Some(ACTIONS.iter().filter(is_forbidden).copied().collect())
}

/// An empty name stands for all.
fn covers(privilege: &BsonDocument, database: &str, collection: &str) -> bool {
    let Ok(resource) = privilege.get_document("resource") else { return false };
    let is_of = |field: &str, name: &str| resource.get_str(field).is_ok_and(|of| of.is_empty() || of == name);
    resource.get_bool("anyResource").unwrap_or(false) || (is_of("db", database) && is_of("collection", collection))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(privileges: Vec<BsonDocument>) -> BsonDocument {
        doc! { "authenticatedUsers": [{ "user": "u", "db": "admin" }], "authenticatedUserPrivileges": privileges }
    }

    fn privilege(database: &str, collection: &str, actions: &[&str]) -> BsonDocument {
        doc! { "resource": { "db": database, "collection": collection }, "actions": actions }
    }

    #[test]
    fn what_a_user_may_not_do_is_known_without_trying() {
        let of = |privileges| forbidden(&info(privileges), "shop", &["users", "devices"]);
        assert_eq!(of(vec![privilege("shop", "", &ACTIONS)]), Some(vec![]));
        assert_eq!(of(vec![privilege("", "", &ACTIONS)]), Some(vec![]));
        let any = doc! { "resource": { "anyResource": true }, "actions": ["anyAction"] };
        assert_eq!(of(vec![any]), Some(vec![]));
        let reader = privilege("shop", "", &["find", "listIndexes"]);
        assert_eq!(of(vec![reader.clone()]), Some(vec!["insert", "update", "createCollection"]));
        let one = privilege("shop", "users", &ACTIONS);
        assert_eq!(of(vec![reader, one]), Some(vec!["insert", "update", "createCollection"]), "devices");
        assert_eq!(of(vec![privilege("other", "", &ACTIONS)]), Some(ACTIONS.to_vec()));
        let nobody = doc! { "authenticatedUsers": [], "authenticatedUserPrivileges": [] };
        assert_eq!(forbidden(&nobody, "shop", &["users"]), None);
    }

    #[test]
    fn a_majority_is_counted_among_members_with_data() {
        let member = |state: i32, health: f64| doc! { "state": state, "health": health };
        let status = doc! { "members": [member(1, 1.0), member(2, 1.0), member(8, 0.0)], "writeMajorityCount": 2 };
        assert_eq!(members(&status), Some((2, 2)));
        let arbiter = doc! { "members": [member(1, 1.0), member(7, 1.0), member(8, 0.0)], "votingMembersCount": 3 };
        assert_eq!(members(&arbiter), Some((1, 2)));
        assert_eq!(members(&doc! {}), None);
    }
}
