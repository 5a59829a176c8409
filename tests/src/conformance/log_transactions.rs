//! The suite of [`Log`]: atomic visibility, open and aborted transactions, positions.

use super::reader::{Subject, contents, drain, message, poll, read, reader, send, send_all, topic, transact};
use super::{eventually, unique};
use millstream_shard::log::{Ends, Log, ORIGIN, Outgoing, Producer, Start, TopicPartition, Transactional, View};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Sends probes until an acknowledged one stays invisible: then a transaction is open in the partition and what it sent has reached the log.
/// Gives the probes' texts.
fn probe_until_held_back(log: &Arc<dyn Log>, producer: &dyn Producer, topic: &str, partition: u32) -> Vec<String> {
    let at = TopicPartition::new(topic, partition);
    let mut probes = Vec::new();
    eventually("the open transaction holds readers back", || {
        let probe = format!("probe {}", probes.len());
        let offset = send(producer, message(topic, partition, probe.as_bytes())).unwrap();
        probes.push(probe);
        let is_held_back = log.bounds(&at).unwrap().1 <= offset;
        // Whatever readers see.
        assert!(ends(log, &at).end > offset);
        is_held_back.then_some(())
    });
    probes
}

fn ends(log: &Arc<dyn Log>, at: &TopicPartition) -> Ends {
    log.ends(std::slice::from_ref(at)).unwrap()[0]
}

/// All partitions show the whole transaction, in order.
pub fn a_commit_is_visible_in_every_partition(subject: &dyn Subject) {
    let log = subject.open();
    let topics = [topic(&log, "atomic", 3), topic(&log, "atomic", 3)];
    let mut client = log.transactional(&unique("atomic")).unwrap();
    for round in ["1", "2", "3"] {
        client.begin().unwrap();
        for topic in &topics {
            for partition in 0..3 {
                client.send(message(topic, partition, round.as_bytes())).unwrap();
            }
        }
        client.commit().unwrap();
    }
    for topic in &topics {
        let all = read(&mut *reader(&log, topic, 3, Start::Earliest), 9);
        for partition in 0..3 {
            let texts: String =
                all.iter().filter(|read| read.assignment == partition).map(super::reader::Read::text).collect();
            assert_eq!(texts, "123");
        }
        assert_eq!(contents(&log, topic, 3), [["1", "2", "3"], ["1", "2", "3"], ["1", "2", "3"]]);
    }
}

/// Neither readers nor bounds show anything of an open transaction; readers made before and after see it when it is committed.
pub fn nothing_is_visible_before_the_commit(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "before", 2);
    let producer = log.producer().unwrap();
    let mut early = reader(&log, &topic, 2, Start::Earliest);
    let mut client = log.transactional(&unique("before")).unwrap();
    client.begin().unwrap();
    for partition in [0, 1] {
        client.send(message(&topic, partition, b"transaction")).unwrap();
    }
    let probes = probe_until_held_back(&log, &*producer, &topic, 0);
    let seen = drain(&log, &mut *early, &topic, 2);
    assert!(seen.iter().all(|read| read.text() != "transaction"), "{seen:?}");
    client.commit().unwrap();
    let rest = read(&mut *early, probes.len() + 2 - seen.len());
    assert_eq!(seen.iter().chain(&rest).filter(|read| read.text() == "transaction").count(), 2);
    assert_eq!(contents(&log, &topic, 2)[1], ["transaction"]);
}

/// What others sent behind an open transaction waits for its end, then comes in the order of offsets; other partitions do not wait.
pub fn an_open_transaction_holds_readers_back(subject: &dyn Subject) {
    for commit in [true, false] {
        let log = subject.open();
        let topic = topic(&log, "held", 2);
        let producer = log.producer().unwrap();
        let mut client = log.transactional(&unique("held")).unwrap();
        client.begin().unwrap();
        client.send(message(&topic, 0, b"transaction")).unwrap();
        let probes = probe_until_held_back(&log, &*producer, &topic, 0);
        let at = TopicPartition::new(topic.as_str(), 0);
        let held_at = log.bounds(&at).unwrap().1;
        send_all(&*producer, &topic, 0, &["behind"]);
        send_all(&*producer, &topic, 1, &["elsewhere"]);
        let mut consumer = reader(&log, &topic, 2, Start::Earliest);
        let seen = drain(&log, &mut *consumer, &topic, 2);
        assert!(seen.iter().any(|read| read.text() == "elsewhere"));
        assert!(seen.iter().all(|read| read.assignment == 1 || read.offset < held_at), "{held_at}: {seen:?}");
        assert!(poll(&mut *consumer, 10, Duration::from_millis(20)).unwrap().is_empty());
        if commit { client.commit() } else { client.abort() }.unwrap();
        let mut texts: Vec<String> = Vec::new();
        eventually("the reader is released", || {
            texts.extend(poll(&mut *consumer, 100, Duration::from_millis(100)).unwrap().iter().map(|read| read.text()));
            texts.iter().any(|text| text == "behind").then_some(())
        });
        let seen = seen.iter().filter(|read| read.assignment == 0).map(super::reader::Read::text);
        let order: Vec<String> = seen.chain(texts).filter(|text| text != "transaction").collect();
        assert_eq!(order, probes.iter().map(String::as_str).chain(["behind"]).collect::<Vec<_>>());
        assert!(!ends(&log, &at).is_held_back(), "{:?}", ends(&log, &at));
        let end = log.bounds(&at).unwrap().1;
        let both = [TopicPartition::new(topic.as_str(), 1), at];
        assert_eq!(log.ends(&both).unwrap()[1], Ends { visible: end, end }, "in their order");
        let visible = contents(&log, &topic, 1).concat();
        assert_eq!(visible.contains(&"transaction".to_owned()), commit, "{visible:?}");
    }
}

/// A committed transaction behind an open one waits too, whole in the partition that they share.
pub fn an_open_transaction_holds_back_later_transactions_too(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "queue", 1);
    let producer = log.producer().unwrap();
    let mut first = log.transactional(&unique("queue")).unwrap();
    let mut second = log.transactional(&unique("queue")).unwrap();
    first.begin().unwrap();
    first.send(message(&topic, 0, b"first")).unwrap();
    probe_until_held_back(&log, &*producer, &topic, 0);
    let held_at = log.bounds(&TopicPartition::new(topic.as_str(), 0)).unwrap().1;
    transact(&mut *second, &topic, &[(0, "second")]).unwrap();
    let mut consumer = reader(&log, &topic, 1, Start::Earliest);
    let seen = drain(&log, &mut *consumer, &topic, 1);
    assert!(seen.iter().all(|read| read.text().starts_with("probe")), "{seen:?}");
    assert_eq!(log.bounds(&TopicPartition::new(topic.as_str(), 0)).unwrap().1, held_at);
    first.commit().unwrap();
    let visible = contents(&log, &topic, 1).concat();
    let place = |what: &str| visible.iter().position(|text| text == what);
    assert!(place("first") < place("second") && place("first").is_some(), "{visible:?}");
}

/// Not to readers that were there, not to later ones, not after opening again.
pub fn aborted_data_is_never_visible(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "aborted", 2);
    let id = unique("aborted");
    let mut early = reader(&log, &topic, 2, Start::Earliest);
    let mut client = log.transactional(&id).unwrap();
    transact(&mut *client, &topic, &[(0, "1"), (1, "1")]).unwrap();
    client.begin().unwrap();
    for number in 0..50 {
        client.send(message(&topic, number % 2, b"aborted")).unwrap();
    }
    client.abort().unwrap();
    transact(&mut *client, &topic, &[(0, "2"), (1, "2")]).unwrap();
    let texts: Vec<String> = read(&mut *early, 4).iter().map(super::reader::Read::text).collect();
    assert!(texts.iter().all(|text| text != "aborted"), "{texts:?}");
    assert_eq!(contents(&log, &topic, 2), [["1", "2"], ["1", "2"]]);
    drop((client, early));
    drop(log);
    assert_eq!(contents(&subject.open(), &topic, 2), [["1", "2"], ["1", "2"]]);
}

/// Messages with their headers can be read of everything that is open, and of what readers see.
pub fn open_and_committed_transactions_can_be_read_whole(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "origins", 2);
    let at = TopicPartition::new(topic.as_str(), 1);
    let producer = log.producer().unwrap();
    let mut client = log.transactional(&unique("origins")).unwrap();
    let say = |client: &mut dyn Transactional, origins: &[&str]| {
        client.begin().unwrap();
        for origin in origins {
            let headers = [("other", "header"), (ORIGIN, *origin)];
            client.send(Outgoing { headers: &headers, ..message(&topic, 1, b"with") }).unwrap();
            client.send(Outgoing { headers: &[("other", "header")], ..message(&topic, 1, b"without") }).unwrap();
        }
    };
    let part = |offsets: Range<u64>, view: View| {
        let mut all = Vec::new();
        let of = [(TopicPartition::new(topic.as_str(), 0), 0..u64::MAX), (at.clone(), offsets)];
        log.read(&of, view, &mut |place, whole| {
            assert_eq!(place, 1, "the other one is empty");
            assert!(whole.payload.starts_with(b"with") || whole.payload.starts_with(b"probe"), "{whole:?}");
            assert_eq!(whole.header("other").is_some(), whole.payload.starts_with(b"with"), "{whole:?}");
            all.extend(whole.header(ORIGIN).map(|origin| (whole.offset, origin.to_owned())));
        })
        .unwrap();
        all
    };
    let all = |from: u64, view: View| part(from..u64::MAX, view);
    let texts = |all: &[(u64, String)]| all.iter().map(|(_, origin)| origin.clone()).collect::<Vec<_>>();
    assert_eq!(all(0, View::Everything), []);
    say(&mut *client, &["a/1", "a/2"]);
    client.commit().unwrap();
    say(&mut *client, &["a/3"]);
    client.abort().unwrap();
    let behind = log.bounds(&at).unwrap().1;
    say(&mut *client, &["a/4", "a/5"]);
    probe_until_held_back(&log, &*producer, &topic, 1);
    let seen = all(0, View::Committed);
    assert_eq!(texts(&seen), ["a/1", "a/2"]);
    assert_eq!(all(seen[0].0 + 1, View::Committed), seen[1..]);
    assert_eq!(part(seen[0].0..seen[1].0, View::Committed), seen[..1]);
    if subject.has_open_messages() {
        let open = eventually("all of it is in the log", || {
            let open = all(log.bounds(&at).unwrap().1, View::Everything);
            (open.len() == 2).then_some(open)
        });
        assert_eq!(texts(&open), ["a/4", "a/5"]);
        assert!(open[0].0 >= behind && open[1].0 > open[0].0, "{open:?} {behind}");
        assert_eq!(all(open[1].0, View::Everything), open[1..]);
    }
    assert_eq!(all(u64::MAX, View::Everything), []);
    client.commit().unwrap();
    eventually("the commit shows", || (texts(&all(behind, View::Committed)) == ["a/4", "a/5"]).then_some(()));
}

/// A takeover compares a position with the bounds: control records and aborted data must not keep it short of them.
pub fn positions_reach_the_bounds_behind_aborted_data(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "position", 2);
    let mut client = log.transactional(&unique("position")).unwrap();
    let mut consumer = reader(&log, &topic, 2, Start::Earliest);
    assert!(drain(&log, &mut *consumer, &topic, 2).is_empty());
    transact(&mut *client, &topic, &[(0, "committed")]).unwrap();
    assert_eq!(read(&mut *consumer, 1).len(), 1);
    assert!(drain(&log, &mut *consumer, &topic, 2).is_empty());
    for _ in 0..3 {
        client.begin().unwrap();
        client.send(message(&topic, 0, b"aborted")).unwrap();
        client.send(message(&topic, 1, b"aborted")).unwrap();
        client.abort().unwrap();
    }
    assert!(drain(&log, &mut *consumer, &topic, 2).is_empty());
    let positions = consumer.positions();
    drop(consumer);
    let assignments = [0, 1]
        .map(|partition| (TopicPartition::new(topic.as_str(), partition), Start::At(positions[partition as usize])));
    let mut again = log.consumer(&assignments).unwrap();
    transact(&mut *client, &topic, &[(0, "next"), (1, "next")]).unwrap();
    assert!(read(&mut *again, 2).iter().all(|read| read.text() == "next"));
}

/// A reader may start in the middle of a transaction that was aborted, at an offset that it never sees.
pub fn a_reader_that_starts_inside_aborted_data_skips_it(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "inside", 1);
    let mut client = log.transactional(&unique("inside")).unwrap();
    client.begin().unwrap();
    for _ in 0..10 {
        client.send(message(&topic, 0, b"aborted")).unwrap();
    }
    client.abort().unwrap();
    transact(&mut *client, &topic, &[(0, "a"), (0, "b")]).unwrap();
    for offset in [0, 5, 10, 11] {
        let mut consumer = reader(&log, &topic, 1, Start::At(offset));
        let texts: String = drain_until(&mut *consumer, "b");
        assert_eq!(texts, "ab", "from {offset}");
    }
}

fn drain_until(consumer: &mut dyn millstream_shard::log::Consumer, last: &str) -> String {
    let mut texts = String::new();
    eventually(last, || {
        let read = poll(consumer, 100, Duration::from_millis(100)).unwrap();
        texts.extend(read.iter().map(super::reader::Read::text));
        texts.ends_with(last).then_some(())
    });
    texts
}

/// A transaction without a message commits and aborts, and the producer goes on.
pub fn empty_transactions_are_fine(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "empty", 1);
    let mut client = log.transactional(&unique("empty")).unwrap();
    client.begin().unwrap();
    client.commit().unwrap();
    client.begin().unwrap();
    client.abort().unwrap();
    transact(&mut *client, &topic, &[(0, "a")]).unwrap();
    assert_eq!(contents(&log, &topic, 1), [["a"]]);
}

/// Committed and aborted ones in turn: what is visible has the order of the commits.
pub fn transactions_keep_their_order(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "turns", 2);
    let mut client = log.transactional(&unique("turns")).unwrap();
    let mut expected = Vec::new();
    for round in 0..30 {
        client.begin().unwrap();
        for index in 0..4 {
            let text = format!("{round}.{index}");
            client.send(message(&topic, index % 2, text.as_bytes())).unwrap();
        }
        if round % 3 == 1 {
            client.abort().unwrap();
        } else {
            client.commit().unwrap();
            expected.push(round);
        }
    }
    let texts = |partition: u32| {
        let both = |round: &u32| [format!("{round}.{partition}"), format!("{round}.{}", partition + 2)];
        expected.iter().flat_map(both).collect::<Vec<_>>()
    };
    assert_eq!(contents(&log, &topic, 2), [texts(0), texts(1)]);
}

/// Many messages and many bytes, all or nothing.
pub fn large_transactions_are_whole(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "whole", 2);
    let mut client = log.transactional(&unique("whole")).unwrap();
    let filler = "x".repeat(4000);
    for commit in [false, true] {
        client.begin().unwrap();
        for number in 0..2000u32 {
            let text = format!("{number} {filler}");
            client.send(message(&topic, number % 2, text.as_bytes())).unwrap();
        }
        if commit { client.commit() } else { client.abort() }.unwrap();
    }
    let all = contents(&log, &topic, 2);
    for (partition, texts) in all.iter().enumerate() {
        let numbers: Vec<usize> = texts.iter().map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers, (0..1000).map(|index| index * 2 + partition).collect::<Vec<_>>());
    }
}

/// What a takeover relies on: after the next producer of an id is there, the end of what its former committed is visible in the bounds, and nothing
/// of the former can appear behind it (DESIGN 4, "read to the end").
pub fn bounds_seen_after_a_new_owner_do_not_move_back(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "takeover", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    let id = unique("takeover");
    for round in 0..3u32 {
        let mut former = log.transactional(&id).unwrap();
        transact(&mut *former, &topic, &[(0, &format!("committed {round}"))]).unwrap();
        former.begin().unwrap();
        former.send(message(&topic, 0, b"open")).unwrap();
        let _next = log.transactional(&id).unwrap();
        let end = log.bounds(&at).unwrap().1;
        let mut consumer = reader(&log, &topic, 1, Start::Earliest);
        let mut texts = Vec::new();
        eventually("the end", || {
            texts.extend(poll(&mut *consumer, 100, Duration::from_millis(50)).unwrap().iter().map(|read| read.text()));
            (consumer.positions()[0] >= end).then_some(())
        });
        assert_eq!(texts, (0..=round).map(|round| format!("committed {round}")).collect::<Vec<_>>());
        assert!(former.commit().is_err());
        assert_eq!(log.bounds(&at).unwrap().1, end);
    }
}
