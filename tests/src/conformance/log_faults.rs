//! The suite of `Log`: fencing, twins, clients that die, offsets outside the log.

use super::log::first_error;
use super::reader::{Subject, contents, drain, message, poll, read, reader, send_all, topic, transact};
use super::{eventually, unique};
use millstream_shard::log::{LogError, Start, TopicPartition};
use millstream_shard::ownership;
use millstream_shard::topics::Topics;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

fn assert_unknown(result: &Result<(), LogError>) {
    assert!(matches!(result, Err(LogError::Unknown(_))), "{result:?}");
}

/// I4: the former one commits nothing any more, in mid-transaction as well.
pub fn a_new_producer_of_an_id_fences_the_former(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "fenced", 2);
    let id = unique("fenced");
    let mut former = log.transactional(&id).unwrap();
    transact(&mut *former, &topic, &[(0, "kept"), (1, "kept")]).unwrap();
    former.begin().unwrap();
    former.send(message(&topic, 0, b"lost")).unwrap();
    former.send(message(&topic, 1, b"lost")).unwrap();
    let mut next = log.transactional(&id).unwrap();
    transact(&mut *next, &topic, &[(0, "next")]).unwrap();
    assert_unknown(&former.commit());
    transact(&mut *next, &topic, &[(1, "next")]).unwrap();
    assert_eq!(contents(&log, &topic, 2), [["kept", "next"], ["kept", "next"]]);
    drop(former);
    transact(&mut *next, &topic, &[(0, "more")]).unwrap();
    assert_eq!(contents(&log, &topic, 2), [vec!["kept", "next", "more"], vec!["kept", "next"]]);
}

/// A zombie that wakes up between two transactions gets nowhere.
pub fn a_fenced_producer_between_transactions_cannot_begin_anew(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "zombie", 1);
    let id = unique("zombie");
    let mut former = log.transactional(&id).unwrap();
    transact(&mut *former, &topic, &[(0, "kept")]).unwrap();
    let mut next = log.transactional(&id).unwrap();
    assert_unknown(&transact(&mut *former, &topic, &[(0, "lost")]));
    transact(&mut *next, &topic, &[(0, "next")]).unwrap();
    assert_eq!(contents(&log, &topic, 1), [["kept", "next"]]);
}

/// Fencing is by id only.
pub fn producers_of_different_ids_do_not_disturb_each_other(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "ids", 1);
    let id = unique("ids");
    let mut clients: Vec<_> = (0..3).map(|number| log.transactional(&format!("{id}.{number}")).unwrap()).collect();
    for client in &mut clients {
        client.begin().unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        client.send(message(&topic, 0, number.to_string().as_bytes())).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        if number == 1 { client.abort() } else { client.commit() }.unwrap();
    }
    let mut visible = contents(&log, &topic, 1).concat();
    visible.sort();
    assert_eq!(visible, ["0", "2"]);
}

/// A process that dies in its first transaction leaves a changelog with an end and without a record: the shard is as new (I6).
pub fn a_genesis_that_was_aborted_is_written_again(subject: &dyn Subject) {
    let log = subject.open();
    let topics = Topics::new(&unique("genesis"), 1, 1);
    log.create_topics(&topics.specs()).unwrap();
    let (changelog, id) = (topics.changelog("unify"), topics.transactional_id("unify", 0, 0));
    let at = TopicPartition::new(changelog.clone(), 0);
    for _ in 0..2 {
        let behind_it = [(at.clone(), Start::At(log.bounds(&at).unwrap().1 + 1))];
        let mut died = log.transactional(&id).unwrap();
        died.begin().unwrap();
        died.send(message(&changelog, 0, b"genesis")).unwrap();
        eventually("the message is in the log", || log.consumer(&behind_it).is_ok().then_some(()));
        drop(died);
        drop(log.transactional(&id).unwrap());
    }
    eventually("the mark of the aborted transaction", || (log.bounds(&at).unwrap().1 > 0).then_some(()));
    for _ in 0..2 {
        ownership::begin(&*log, &topics, "unify", 0, 0).unwrap();
        let mut reader = reader(&log, &changelog, 1, Start::Earliest);
        assert_eq!(drain(&log, &mut *reader, &changelog, 1).len(), 1);
    }
}

/// Processes that all believe to be the owner: a transaction is in both partitions or in none; what was reported as committed is there;
/// the partitions agree on the order.
pub fn twins_race_and_no_transaction_is_torn(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "twins", 2);
    let id = unique("twins");
    let (start, committed) = (Barrier::new(4), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for twin in 0..4 {
            let (log, topic, id, start, committed) = (&log, &topic, &id, &start, &committed);
            scope.spawn(move || {
                start.wait();
                for round in 0..3 {
                    // An initialisation that loses the race may fail too: the twin tries again, as a worker does.
                    let Ok(mut client) = log.transactional(id) else { continue };
                    for step in 0..5 {
                        let text = format!("{twin}.{round}.{step}");
                        match transact(&mut *client, topic, &[(0, &text), (1, &text), (0, &text)]) {
                            Ok(()) => committed.lock().unwrap().push(text),
                            Err(error) => {
                                assert!(matches!(error, LogError::Unknown(_)), "{error:?}");
                                break;
                            }
                        }
                    }
                }
            });
        }
    });
    let mut last = log.transactional(&id).unwrap();
    transact(&mut *last, &topic, &[(0, "last"), (1, "last"), (0, "last")]).unwrap();
    let visible = contents(&log, &topic, 2);
    let twice: Vec<&String> = visible[1].iter().flat_map(|text| [text, text]).collect();
    assert_eq!(visible[0].iter().collect::<Vec<_>>(), twice, "whole, and in one order");
    let committed = committed.into_inner().unwrap();
    assert!(!committed.is_empty(), "someone must have committed");
    for text in &committed {
        assert_eq!(visible[1].iter().filter(|seen| *seen == text).count(), 1, "{text}: {visible:?}");
    }
}

/// Its transaction ends when the id's next producer is there, at the latest; readers go on then.
pub fn a_producer_dropped_in_mid_transaction_leaves_nothing(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "gone", 1);
    let id = unique("gone");
    let mut consumer = reader(&log, &topic, 1, Start::Earliest);
    let mut client = log.transactional(&id).unwrap();
    client.begin().unwrap();
    for _ in 0..100 {
        client.send(message(&topic, 0, b"lost")).unwrap();
    }
    drop(client);
    let mut client = log.transactional(&id).unwrap();
    transact(&mut *client, &topic, &[(0, "next")]).unwrap();
    assert_eq!(read(&mut *consumer, 1)[0].text(), "next");
    assert_eq!(contents(&log, &topic, 1), [["next"]]);
}

/// The same when the whole log was closed and opened in between.
pub fn an_open_transaction_is_gone_after_opening_again(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "crash", 2);
    let id = unique("crash");
    let mut client = log.transactional(&id).unwrap();
    transact(&mut *client, &topic, &[(0, "kept"), (1, "kept")]).unwrap();
    client.begin().unwrap();
    client.send(message(&topic, 0, b"lost")).unwrap();
    client.send(message(&topic, 1, b"lost")).unwrap();
    drop(client);
    drop(log);
    let log = subject.open();
    let mut client = log.transactional(&id).unwrap();
    assert_eq!(contents(&log, &topic, 2), [["kept"], ["kept"]]);
    transact(&mut *client, &topic, &[(0, "next"), (1, "next")]).unwrap();
    assert_eq!(contents(&log, &topic, 2), [["kept", "next"], ["kept", "next"]]);
}

/// I6: the error names the place, and nothing is read from anywhere else.
pub fn below_the_start_is_out_of_range(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "below", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    let offsets = send_all(&*log.producer().unwrap(), &topic, 0, &["a", "b", "c", "d"]);
    subject.trim(&log, &at, offsets[2]);
    for asked in &offsets[..2] {
        match first_error(&log, &at, Start::At(*asked)) {
            LogError::OutOfRange { at: named, offset, start, end } => {
                assert_eq!((named, offset, start), (at.clone(), *asked, offsets[2]));
                assert!(end > offsets[3], "{end}");
            }
            other => panic!("{other:?}"),
        }
    }
    let mut consumer = log.consumer(&[(at, Start::At(offsets[2]))]).unwrap();
    assert_eq!(read(&mut *consumer, 2)[0].text(), "c");
}

/// As much as an offset behind the end: the log was cut, or it is another one.
pub fn above_the_end_is_out_of_range(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "above", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    for round in 0..2 {
        match first_error(&log, &at, Start::At(1000)) {
            LogError::OutOfRange { at: named, offset, start, end } => {
                assert_eq!((named, offset, start, end), (at.clone(), 1000, 0, round));
            }
            other => panic!("{other:?}"),
        }
        send_all(&*log.producer().unwrap(), &topic, 0, &["a"]);
    }
}

/// A reader that is slower than retention gets what it had already, or the error; never what comes after a gap.
pub fn a_reader_that_the_trim_overtook_never_jumps(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "overtaken", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    let producer = log.producer().unwrap();
    let texts: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let offsets = send_all(&*producer, &topic, 0, &texts);
    let mut consumer = reader(&log, &topic, 1, Start::Earliest);
    let mut seen: Vec<String> = Vec::new();
    eventually("the first messages", || {
        seen.extend(poll(&mut *consumer, 10, Duration::from_millis(100)).unwrap().iter().map(|read| read.text()));
        (seen.len() >= 10).then_some(())
    });
    subject.trim(&log, &at, offsets[150]);
    let error = eventually("an error, or everything in order", || {
        if seen.len() == texts.len() {
            return Some(None);
        }
        match poll(&mut *consumer, 10, Duration::from_millis(100)) {
            Ok(read) => {
                seen.extend(read.iter().map(|read| read.text()));
                None
            }
            Err(error) => Some(Some(error)),
        }
    });
    assert_eq!(seen, texts[..seen.len()], "no jump");
    if let Some(error) = error {
        let next = offsets[seen.len()];
        assert!(matches!(&error, LogError::OutOfRange { offset, .. } if *offset == next), "{next}: {error:?}");
    }
}

/// The bounds show it, the earliest message is the first that is left, and opening again changes nothing.
pub fn a_trim_moves_the_start_and_survives(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "trim", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    let offsets = send_all(&*log.producer().unwrap(), &topic, 0, &["a", "b", "c"]);
    subject.trim(&log, &at, offsets[1]);
    assert_eq!(log.bounds(&at).unwrap(), (offsets[1], offsets[2] + 1));
    drop(log);
    let log = subject.open();
    assert_eq!(log.bounds(&at).unwrap(), (offsets[1], offsets[2] + 1));
    assert_eq!(contents(&log, &topic, 1), [["b", "c"]]);
    let end = log.bounds(&at).unwrap().1;
    subject.trim(&log, &at, end);
    assert_eq!(log.bounds(&at).unwrap(), (end, end));
    assert_eq!(send_all(&*log.producer().unwrap(), &topic, 0, &["d"]), [end]);
    assert_eq!(contents(&log, &topic, 1), [["d"]]);
}
