//! The document store: can it be reached, does it take the credentials, can a majority acknowledge writes, may the user write, is something in the way.

use super::PATIENCE_MS;
use super::finding::Finding;
use crate::config::{Config, Documents, Log, without_credentials};
use crate::runtime::Role;
use crate::runtime::reaction::COLLECTIONS;
use millstream_shard::documents::DocumentError;
use millstream_stores::mongo::survey::{Collection, Found};
use millstream_stores::mongo::{MongoConfig, MongoDocuments};

/// MongoDB 4.2: the first whose updates may be pipelines, which guard each document.
const LEAST_WIRE: i64 = 8;
/// Clocks that differ by more than this, milliseconds, make times of events and logs hard to compare.
const CLOCKS_MS: i64 = 1_000;

/// Everything about the document store, unless `role` does without it.
pub(super) fn check(config: &Config, role: Option<Role>) -> Vec<Finding> {
    let writes = role.is_none_or(|role| role == Role::Reaction);
    match &config.documents {
        _ if !writes => vec![Finding::ok("documents", "this role does not use them")],
        Documents::Embedded if matches!(config.log, Log::Embedded) => {
            vec![Finding::ok("documents", "embedded, in data_dir: there is nobody to ask")]
        }
        Documents::Embedded => {
            let change = "configure `documents: {mongodb: {uri_file: ...}}` for the role reaction";
            let found = "embedded: the role reaction does not start with it, because others could not read them";
            let is_meant = role == Some(Role::Reaction);
            vec![if is_meant {
                Finding::problem("documents", found, change)
            } else {
                Finding::warning("documents", found, change)
            }]
        }
        Documents::Mongodb(mongodb) => {
            let mut store = mongodb.store();
            store.write_timeout_ms = store.write_timeout_ms.min(PATIENCE_MS);
            store.read_timeout_ms = PATIENCE_MS;
            let subject = format!("documents {}", without_credentials(&mongodb.uri));
            match look(store) {
                Ok(found) => judge(&subject, &mongodb.database, &found),
                Err(error) => vec![Finding::problem(subject, said(&error), advice(&error))],
            }
        }
    }
}

fn look(store: MongoConfig) -> Result<Found, DocumentError> {
    MongoDocuments::connect(store)?.survey(&COLLECTIONS)
}

/// What went wrong, without what the driver adds to each error.
fn said(error: &DocumentError) -> String {
    let (DocumentError::Unavailable(message) | DocumentError::Configuration(message)) = error;
    [", labels: {}", ", source: None", ", server response: None"]
        .iter()
        .fold(message.clone(), |said, part| said.replace(part, ""))
}

/// What to change, by what the server or the network said.
fn advice(error: &DocumentError) -> String {
    let DocumentError::Unavailable(said) = error else { return "correct documents.mongodb".to_owned() };
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let change = if has(&["uthentication", "SCRAM", "auth error"]) {
        "correct user and password in documents.mongodb.uri (or uri_file), and authSource in its options"
    } else if has(&["certificate", "TLS", "tls", "ssl"]) {
        "set tls and tlsCAFile in documents.mongodb.options as the server has it"
    } else if has(&["resolve", "lookup", "Name or service"]) {
        "correct the host's name in documents.mongodb.uri, or make it known to DNS here"
    } else {
        "start the server, correct host, port and replicaSet in documents.mongodb.uri, or open the network to it"
    };
    change.to_owned()
}

/// What a server's answers mean.
fn judge(subject: &str, database: &str, found: &Found) -> Vec<Finding> {
    let mut findings = vec![judge_server(subject, found)];
    findings.push(judge_majority(subject, found));
    findings.extend(judge_rights(subject, database, found));
    findings.extend(found.collections.iter().map(|(name, state)| judge_collection(database, name, state)));
    findings.extend(judge_clock(found));
    findings
}

fn judge_server(subject: &str, found: &Found) -> Finding {
    let version = found.version.as_deref().unwrap_or("unknown");
    if found.wire < LEAST_WIRE {
        return Finding::problem(subject, format!("version {version} is too old"), "run MongoDB 4.2 or later");
    }
    if !found.is_writable {
        let change = "name all members in documents.mongodb.uri, with replicaSet and without directConnection, so that the primary is found";
        return Finding::problem(subject, "answers, but takes no writes: it is not the primary", change);
    }
    Finding::ok(subject, format!("answers, takes the credentials, and takes writes (version {version})"))
}

fn judge_majority(subject: &str, found: &Found) -> Finding {
    let subject = format!("{subject}: majority");
    match (&found.replica_set, found.members) {
        (Some(set), Some((well, majority))) if well < majority => Finding::problem(
            subject,
            format!(
                "of the replica set {set}, {well} members with data are well, and a majority is {majority}: no write is acknowledged"
            ),
            "start the members that are away",
        ),
        (Some(set), Some((well, _))) if well < 3 => Finding::warning(
            subject,
            format!(
                "the replica set {set} has {well} members with data that are well: with the next loss documents stop or are lost"
            ),
            "for production, use a replica set of 3 members with data",
        ),
        (Some(set), Some((well, majority))) => Finding::ok(
            subject,
            format!("replica set {set}: {well} members with data are well, a majority is {majority}"),
        ),
        (Some(set), None) => Finding::ok(subject, format!("replica set {set}; its members are not told to this user")),
        (None, _) if found.is_router => Finding::ok(subject, "a sharded cluster, whose shards are replica sets"),
        (None, _) => Finding::warning(
            subject,
            "a server by itself, no replica set: its majority is itself, and what it acknowledged is lost with it",
            "for production, use a replica set of 3 members",
        ),
    }
}

fn judge_rights(subject: &str, database: &str, found: &Found) -> Option<Finding> {
    let subject = format!("{subject}: rights");
    match found.forbidden.as_deref()? {
        [] => Some(Finding::ok(subject, format!("the user may read and write in {database}"))),
        actions => Some(Finding::problem(
            subject,
            format!("the user may not {} in {database}", actions.join(", ")),
            format!(
                "grant the role readWrite: db.grantRolesToUser(USER, [{{role: \"readWrite\", db: \"{database}\"}}])"
            ),
        )),
    }
}

fn judge_collection(database: &str, name: &str, state: &Collection) -> Finding {
    let subject = format!("collection {database}.{name}");
    match state {
        Collection::Absent => Finding::ok(subject, "not there yet; a worker creates it. It needs no index"),
        Collection::Good => Finding::ok(subject, "no index is missing, and none is in the way"),
        Collection::Unique(keys) => Finding::problem(
            subject,
            format!(
                "it has the unique index {keys}: a write that it refuses could never be applied, so that workers refuse it"
            ),
            format!("drop it: db.{name}.dropIndex({keys})"),
        ),
        Collection::Unknown(error) => Finding::warning(
            subject,
            format!("it cannot be looked at: {error}"),
            "allow the user listIndexes on it: workers ask for them when they start",
        ),
    }
}

/// MongoDB tells its time, brokers do not.
fn judge_clock(found: &Found) -> Option<Finding> {
    let (ahead, doubt) = (found.clock_ahead_ms?, found.round_trip_ms);
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    let said = format!("the document store's is {} ms {side} this machine's, give or take {doubt} ms", ahead.abs());
    if ahead.abs() > doubt.saturating_add(CLOCKS_MS) {
        return Some(Finding::warning("clock", said, "set both clocks by NTP (chrony, systemd-timesyncd)"));
    }
    Some(Finding::ok("clock", said))
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn good() -> Found {
        Found {
            version: Some("8.0.4".into()),
            wire: 25,
            replica_set: Some("rs0".into()),
            is_writable: true,
            members: Some((3, 2)),
            clock_ahead_ms: Some(-20),
            round_trip_ms: 2,
            forbidden: Some(Vec::new()),
            collections: vec![("users".into(), Collection::Good), ("devices".into(), Collection::Absent)],
            ..Found::default()
        }
    }

    #[test]
    fn a_good_replica_set_is_well() {
        let findings = judge("documents m", "shop", &good());
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        assert_eq!(findings.len(), 6);
    }

    #[test]
    fn each_fact_has_its_weight() {
        let (problem, warning) = (Level::Problem, Level::Warning);
        let unique = vec![("users".to_owned(), Collection::Unique("{ \"email\": 1 }".into()))];
        for (found, level, words) in [
            (Found { wire: 7, ..good() }, problem, "too old"),
            (Found { is_writable: false, ..good() }, problem, "not the primary"),
            (Found { members: Some((1, 2)), ..good() }, problem, "no write is acknowledged"),
            (Found { members: Some((2, 2)), ..good() }, warning, "next loss"),
            (Found { replica_set: None, ..good() }, warning, "no replica set"),
            (Found { forbidden: Some(vec!["insert", "update"]), ..good() }, problem, "may not insert, update in shop"),
            (Found { collections: unique, ..good() }, problem, "unique index"),
            (Found { clock_ahead_ms: Some(1_003), ..good() }, warning, "1003 ms ahead"),
        ] {
            let findings = judge("documents m", "shop", &found);
            let amiss: Vec<_> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
            assert!(
                amiss.len() == 1 && amiss[0].level == level && amiss[0].found.contains(words),
                "{words}: {amiss:?}"
            );
            assert!(amiss[0].change.is_some());
        }
        let sharded = Found { replica_set: None, members: None, is_router: true, ..good() };
        assert_eq!(judge_majority("documents m", &sharded).level, Level::Ok);
    }

    #[test]
    fn what_a_server_says_leads_to_what_to_change() {
        for (said, change) in [
            ("cannot reach MongoDB: SCRAM failure: Authentication failed.", "authSource"),
            ("Server selection timeout: Connection refused (os error 111)", "start the server"),
            ("failed to lookup address information", "host's name"),
        ] {
            let error = DocumentError::Unavailable(said.to_owned());
            assert!(advice(&error).contains(change), "{said}");
        }
    }
}
