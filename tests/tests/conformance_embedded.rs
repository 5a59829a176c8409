//! The conformance suites on the embedded stores, and what they promise beyond: `kill -9` of the process loses nothing that was acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_shard::documents::DocumentStore;
use millstream_shard::log::{Log, TopicPartition};
use millstream_shard::objects::{ObjectStore, Put, When};
use millstream_shard::state::StateStore;
use millstream_stores::embedded::SystemClock;
use millstream_stores::embedded::documents::EmbeddedDocuments;
use millstream_stores::embedded::log::{EmbeddedLog, LogOptions};
use millstream_stores::embedded::objects::FolderObjects;
use millstream_stores::rocks::{Bounds, Resources, RocksState};
use millstream_tests::conformance::{
    documents as document_suite, eventually, objects as object_suite, reader, state as state_suite,
};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tempfile::TempDir;

fn open_log(folder: &Path) -> EmbeddedLog {
    EmbeddedLog::open(folder, LogOptions::default(), Arc::new(SystemClock)).unwrap()
}

/// A folder of its own for each case.
struct Embedded {
    folder: TempDir,
    log: Mutex<Weak<EmbeddedLog>>,
    /// Of the process: it knows which copies of stores there are.
    resources: Resources,
}

fn subject() -> Embedded {
    Embedded { folder: tempfile::tempdir().unwrap(), log: Mutex::default(), resources: Resources::new(8 << 20) }
}

impl Embedded {
    fn log(&self) -> Arc<EmbeddedLog> {
        self.log.lock().unwrap().upgrade().unwrap()
    }
}

impl reader::Subject for Embedded {
    fn open(&self) -> Arc<dyn Log> {
        let log = Arc::new(open_log(self.folder.path()));
        *self.log.lock().unwrap() = Arc::downgrade(&log);
        log
    }

    fn trim(&self, _log: &Arc<dyn Log>, at: &TopicPartition, before: u64) {
        self.log().trim(at, before).unwrap();
    }

    fn delete_topic(&self, _log: &Arc<dyn Log>, topic: &str) {
        self.log().delete_topic(topic).unwrap();
    }

    fn has_open_messages(&self) -> bool {
        false
    }
}

impl document_suite::Subject for Embedded {
    fn open(&self) -> Arc<dyn DocumentStore> {
        Arc::new(EmbeddedDocuments::open(self.folder.path()).unwrap())
    }
}

impl state_suite::Subject for Embedded {
    fn open(&self) -> Arc<dyn StateStore> {
        Arc::new(RocksState::open(&self.folder.path().join("state"), &self.resources).unwrap())
    }
}

impl object_suite::Subject for Embedded {
    fn open(&self) -> Arc<dyn ObjectStore> {
        Arc::new(FolderObjects::open(self.folder.path()).unwrap())
    }
}

mod log {
    millstream_tests::log_conformance!(super::subject());
}

mod documents {
    millstream_tests::document_conformance!(super::subject());
}

mod objects {
    millstream_tests::object_conformance!(super::subject());
}

mod state {
    millstream_tests::state_conformance!(super::subject());
}

/// Children are this test binary again, with the name of a `child_*` test and a folder in the environment; they are killed in the middle of
/// their work, after a number of lines of it.
mod killed {
    use super::*;
    use millstream_shard::log::{Start, TopicSpec};
    use millstream_tests::conformance::{eventually, reader as with};
    use std::collections::BTreeSet;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Command, Stdio};

    const FOLDER: &str = "MILLSTREAM_TEST_FOLDER";

    fn folder() -> Option<std::path::PathBuf> {
        std::env::var_os(FOLDER).map(Into::into)
    }

    fn say(line: &str) {
        let mut out = std::io::stdout().lock();
        writeln!(out, "SAID {line}").unwrap();
        out.flush().unwrap();
    }

    /// Runs a child until it has said `lines` lines, kills it; everything that it said.
    fn kill_after(child: &str, folder: &Path, lines: usize) -> Vec<String> {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("killed::{child}"), "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = Vec::new();
        let output = BufReader::new(process.stdout.take().unwrap());
        for line in output.lines() {
            let line = line.unwrap_or_default();
            said.extend(line.split_once("SAID ").map(|(_, text)| text.to_owned()));
            if said.len() == lines {
                process.kill().unwrap();
            }
        }
        process.wait().unwrap();
        assert!(said.len() >= lines, "the child ended by itself after {said:?}");
        said
    }

    #[test]
    #[ignore = "runs as a child of another test, which kills it"]
    fn child_log() {
        let Some(folder) = folder() else { return };
        let log: Arc<dyn Log> = Arc::new(open_log(&folder));
        let topic = |name: &str| TopicSpec { append_time: true, ..with::spec(name, 2) };
        log.create_topics(&[topic("plain"), topic("transactions")]).unwrap();
        let producer = log.producer().unwrap();
        let mut client = log.transactional("child").unwrap();
        let run = log.bounds(&TopicPartition::new("plain", 0)).unwrap().1;
        for number in 0.. {
            let text = format!("{run}.{number}");
            for copy in 0..20 {
                let text = format!("{text}.{copy}");
                let said = text.clone();
                producer.send(
                    with::message("plain", copy % 2, text.as_bytes()),
                    Box::new(move |fate| {
                        fate.unwrap();
                        say(&format!("plain {said}"));
                    }),
                );
            }
            client.begin().unwrap();
            for partition in [0, 1, 0] {
                client.send(with::message("transactions", partition, text.as_bytes())).unwrap();
            }
            client.commit().unwrap();
            say(&format!("transactions {text}"));
        }
    }

    /// Three times on one folder, at different points; the open transaction of the last moment never shows.
    #[test]
    fn everything_acknowledged_is_in_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut said = Vec::new();
        for lines in [50, 777, 3000] {
            said.extend(kill_after("child_log", folder.path(), lines));
            let log: Arc<dyn Log> = Arc::new(open_log(folder.path()));
            let plain: BTreeSet<String> = read(&log, "plain").concat().into_iter().collect();
            let transactions = read(&log, "transactions");
            for line in &said {
                let (topic, text) = line.split_once(' ').unwrap();
                let found =
                    if topic == "plain" { plain.contains(text) } else { transactions[1].contains(&text.to_owned()) };
                assert!(found, "{line} was acknowledged and is not there");
            }
            let whole: Vec<&String> = transactions[1].iter().flat_map(|text| [text, text]).collect();
            assert_eq!(transactions[0].iter().collect::<Vec<_>>(), whole, "no part of a transaction");
        }
    }

    fn read(log: &Arc<dyn Log>, topic: &str) -> Vec<Vec<String>> {
        let mut consumer = with::reader(log, topic, 2, Start::Earliest);
        let mut texts = vec![Vec::new(); 2];
        for message in with::drain(log, &mut *consumer, topic, 2) {
            texts[message.assignment].push(message.text());
        }
        texts
    }

    #[test]
    #[ignore = "runs as a child of another test, which kills it"]
    fn child_documents() {
        let Some(folder) = folder() else { return };
        let store = EmbeddedDocuments::open(&folder).unwrap();
        for revision in 1.. {
            let bulk: Vec<_> = (0..20).map(|id| mutation(id, revision)).collect();
            store.write(&bulk);
            say(&revision.to_string());
        }
    }

    fn mutation(id: u64, revision: u64) -> millstream_model::proto::Mutation {
        use millstream_model::proto::{Mutation, Operation, Value, operation::Op};
        let op = Some(Op::Set(Value::integer(revision as i64)));
        Mutation {
            tenant: "acme".into(),
            collection: "users".into(),
            id: id.to_string(),
            generation: 1,
            revision,
            operations: vec![Operation { path: "x".into(), op }],
            ..Mutation::default()
        }
    }

    #[test]
    fn every_applied_mutation_is_in_its_document() {
        let folder = tempfile::tempdir().unwrap();
        let said = kill_after("child_documents", folder.path(), 300);
        let last: u64 = said.last().unwrap().parse().unwrap();
        let store = EmbeddedDocuments::open(folder.path()).unwrap();
        for id in 0..20 {
            let document = store.get("acme", "users", &id.to_string()).unwrap().unwrap();
            assert!(document.revision >= last, "{} < {last}", document.revision);
        }
    }

    /// What an object has in it that was uploaded as this one.
    fn object(number: u64) -> Vec<u8> {
        number.to_le_bytes().repeat(50_000)
    }

    #[test]
    #[ignore = "runs as a child of another test, which kills it"]
    fn child_objects() {
        let Some(folder) = folder() else { return };
        let store = FolderObjects::open(&folder).unwrap();
        for number in 0.. {
            let content = object(number);
            store.upload(&format!("{}/{number}", number % 7), content.len() as u64, &mut content.as_slice()).unwrap();
            say(&number.to_string());
        }
    }

    #[test]
    fn every_object_is_there_as_a_whole_and_the_lock_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let said = kill_after("child_objects", folder.path(), 150);
        let store = FolderObjects::open(folder.path()).unwrap();
        let listed = store.list("", None).unwrap();
        assert!(listed.len() >= said.len(), "{} of {}", listed.len(), said.len());
        for listed in listed {
            let number = listed.name.rsplit('/').next().unwrap().parse().unwrap();
            assert!(store.get(&listed.name).unwrap().unwrap().content == object(number), "{}", listed.name);
        }
        for number in said {
            let name = format!("{}/{number}", number.parse::<u64>().unwrap() % 7);
            assert_eq!(store.put(&name, b"", &When::Absent).unwrap(), Put::Refused, "{name} was acknowledged");
        }
    }

    #[test]
    #[ignore = "runs as a child of another test, which kills it"]
    fn child_state() {
        let Some(folder) = folder() else { return };
        let resources = Resources::with(&Bounds { memtable_bytes: 64 << 10, ..Bounds::new(8 << 20) });
        let store = RocksState::open(&folder, &resources).unwrap();
        let keys: Vec<_> = (0..64).map(|group| state_suite::key(group * 64, "x")).collect();
        for number in 1..u64::MAX {
            let bytes = number.to_be_bytes().repeat(8);
            let touched = keys.iter().enumerate().filter(|(index, _)| number % (*index as u64 + 1) == 0);
            let entries: Vec<_> = touched.map(|(_, key)| (key, Some(&bytes[..]))).collect();
            if number % 50 == 0 {
                state_suite::write_sorted(&store, None, &entries, number);
            } else {
                state_suite::write(&store, &entries, number);
            }
            say(&number.to_string());
        }
    }

    /// The write-ahead log is off: an older position with exactly its entries.
    #[test]
    fn a_state_store_comes_back_at_some_position_with_exactly_its_entries() {
        let folder = tempfile::tempdir().unwrap();
        let said = kill_after("child_state", folder.path(), 20_000);
        let store = RocksState::open(folder.path(), &Resources::new(8 << 20)).unwrap();
        let position = store.position().unwrap().expect("many memtables were flushed").batch_number;
        assert!(position > 0 && position <= said.len() as u64 + 1, "{position}");
        for index in 0..64u64 {
            let newest = position - position % (index + 1);
            let value = store.multi_get(&[&state_suite::key(index as u16 * 64, "x")]).unwrap().remove(0);
            let expected = (newest > 0).then(|| newest.to_be_bytes().repeat(8));
            assert_eq!(value, expected, "key {index} at position {position}");
        }
    }

    /// RocksDB's LOCK, with words that say what to do.
    #[test]
    fn a_second_process_is_told_that_the_folder_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let _log = open_log(folder.path());
        let error = EmbeddedLog::open(folder.path(), LogOptions::default(), Arc::new(SystemClock)).err().unwrap();
        assert!(error.to_string().contains("another process uses it"), "{error}");
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child_log", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&child.stderr).into_owned() + &String::from_utf8_lossy(&child.stdout);
        assert!(!child.status.success() && text.contains("another process uses it"), "{text}");
    }

    /// How quick that is, it prints (`--nocapture`): a figure of a busy machine proves nothing.
    #[test]
    fn many_small_messages_are_acknowledged_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn Log> = Arc::new(open_log(folder.path()));
        log.create_topics(&[with::spec("quick", 4)]).unwrap();
        let producer = log.producer().unwrap();
        let begin = std::time::Instant::now();
        let acknowledged = Arc::new(std::sync::atomic::AtomicU32::new(0));
        for number in 0..200_000u32 {
            let acknowledged = acknowledged.clone();
            producer.send(
                with::message("quick", number % 4, &[7; 100]),
                Box::new(move |fate| {
                    fate.unwrap();
                    acknowledged.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }),
            );
        }
        eventually("all are acknowledged", || {
            (acknowledged.load(std::sync::atomic::Ordering::Relaxed) == 200_000).then_some(())
        });
        let sent = begin.elapsed();
        let mut consumer = with::reader(&log, "quick", 4, Start::Earliest);
        let mut count = 0;
        while count < 200_000 {
            count += consumer.poll(1000, Duration::from_secs(1), &mut |_| {}).unwrap();
        }
        let read = begin.elapsed() - sent;
        eprintln!("200,000 messages of 100 bytes: written in {sent:?}, read in {read:?}");
    }
}

/// A reader of plan and reports whose topic was deleted does not come back by itself; opened again, it goes on with what it had heard.
#[test]
fn a_listener_that_has_failed_for_good_hears_again() {
    use millstream_plan::plan::{Plan, Version};
    use millstream_plan::view::Bounds;
    use millstream_shard::control::{Listener, Publisher};
    use millstream_shard::log::LogError;
    use millstream_shard::topics::Topics;
    let folder = tempfile::tempdir().unwrap();
    let (log, topics) = (open_log(folder.path()), Topics::new("listener", 1, 1));
    log.create_topics(&topics.specs()).unwrap();
    let mut listener = Listener::open(&log, &topics, Bounds::default(), 0).unwrap();
    let publish = |number| {
        let plan = Plan { version: Version { term: 1, number }, generation: 1, ..Plan::default() };
        Publisher::open(&log, &topics).unwrap().publish(plan).unwrap();
    };
    let number = |listener: &Listener| listener.view().plan().map(|plan| plan.version.number);
    publish(1);
    eventually("the plan is heard", || listener.listen(Duration::ZERO, 1).map(|_| number(&listener)).unwrap());
    log.delete_topic(&topics.control).unwrap();
    let error = eventually("the reader fails", || listener.listen(Duration::ZERO, 2).err());
    assert!(!matches!(error, LogError::Unavailable(_)), "{error}");
    assert!(listener.open_again(&log).is_err(), "there is no such topic");
    log.create_topics(&topics.specs()).unwrap();
    publish(2);
    listener.open_again(&log).unwrap();
    assert_eq!(number(&listener), Some(1), "what was heard stays");
    eventually("the new plan is heard", || {
        listener.listen(Duration::ZERO, 3).unwrap();
        (number(&listener) == Some(2)).then_some(())
    });
}
