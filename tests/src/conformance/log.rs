//! The suite of [`Log`]: its list, and the cases about topics, order, positions, sizes and time stamps.

use super::reader::{Subject, contents, drain, message, poll, read, reader, send, send_all, spec, topic};
use super::{DEADLINE, eventually, noise, unique};
use millstream_shard::log::{Log, LogError, Outgoing, Start, TopicPartition, TopicSpec};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};

crate::suite!($ log_conformance, dyn Subject, [
    log::order_within_a_partition_is_the_senders,
    log::concurrent_producers_lose_and_double_nothing,
    log::every_send_is_acknowledged_once_even_when_the_producer_is_dropped,
    log::keys_and_empty_payloads_come_back,
    log::large_messages_pass_and_too_large_ones_are_refused,
    log::a_message_that_is_too_large_fails_its_transaction_only,
    log::earliest_latest_and_exact_starts,
    log::an_empty_poll_returns_and_a_waiting_one_wakes_up,
    log::poll_hands_over_at_most_what_was_asked_for,
    log::append_time_is_the_logs_and_never_decreases,
    log::without_append_time_the_time_is_the_senders,
    log::unknown_topics_and_partitions_are_errors,
    log::creating_topics_again_is_harmless_and_a_mismatch_is_an_error,
    log::a_topic_created_again_has_another_id,
    log::everything_acknowledged_is_there_after_opening_again,
    log_transactions::a_commit_is_visible_in_every_partition,
    log_transactions::nothing_is_visible_before_the_commit,
    log_transactions::an_open_transaction_holds_readers_back,
    log_transactions::an_open_transaction_holds_back_later_transactions_too,
    log_transactions::open_and_committed_transactions_can_be_read_whole,
    log_transactions::aborted_data_is_never_visible,
    log_transactions::positions_reach_the_bounds_behind_aborted_data,
    log_transactions::a_reader_that_starts_inside_aborted_data_skips_it,
    log_transactions::empty_transactions_are_fine,
    log_transactions::transactions_keep_their_order,
    log_transactions::large_transactions_are_whole,
    log_transactions::bounds_seen_after_a_new_owner_do_not_move_back,
    log_faults::a_new_producer_of_an_id_fences_the_former,
    log_faults::a_fenced_producer_between_transactions_cannot_begin_anew,
    log_faults::producers_of_different_ids_do_not_disturb_each_other,
    log_faults::twins_race_and_no_transaction_is_torn,
    log_faults::a_producer_dropped_in_mid_transaction_leaves_nothing,
    log_faults::an_open_transaction_is_gone_after_opening_again,
    log_faults::a_genesis_that_was_aborted_is_written_again,
    log_faults::below_the_start_is_out_of_range,
    log_faults::above_the_end_is_out_of_range,
    log_faults::a_reader_that_the_trim_overtook_never_jumps,
    log_faults::a_trim_moves_the_start_and_survives,
]);

/// Every message of one producer to one partition arrives in the order of the sends, offsets ascend.
pub fn order_within_a_partition_is_the_senders(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "order", 3);
    let producer = log.producer().unwrap();
    let texts: Vec<String> = (0..3000).map(|number| number.to_string()).collect();
    for (number, text) in texts.iter().enumerate() {
        producer.send(
            message(&topic, number as u32 % 3, text.as_bytes()),
            Box::new(|fate| assert!(fate.is_ok(), "{fate:?}")),
        );
    }
    let all = read(&mut *reader(&log, &topic, 3, Start::Earliest), texts.len());
    for partition in 0..3 {
        let mine: Vec<_> = all.iter().filter(|read| read.assignment == partition).collect();
        assert!(mine.is_sorted_by(|left, right| left.offset < right.offset), "offsets ascend");
        let numbers: Vec<usize> = mine.iter().map(|read| read.text().parse().unwrap()).collect();
        assert_eq!(numbers, (0..1000).map(|index| index * 3 + partition).collect::<Vec<_>>());
    }
}

/// Several producers on one partition: each keeps its order, every message is there once, under the offset that was acknowledged.
pub fn concurrent_producers_lose_and_double_nothing(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "concurrent", 1);
    let start = Barrier::new(4);
    let mut acknowledged: Vec<(u64, String)> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                scope.spawn({
                    let (log, topic, start) = (&log, &topic, &start);
                    move || {
                        let producer = log.producer().unwrap();
                        start.wait();
                        let texts: Vec<String> = (0..100).map(|number| format!("{writer}:{number:03}")).collect();
                        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                        let offsets = send_all(&*producer, topic, 0, &texts);
                        assert!(offsets.is_sorted_by(|left, right| left < right), "{offsets:?}");
                        offsets.into_iter().zip(texts.into_iter().map(str::to_owned)).collect::<Vec<_>>()
                    }
                })
            })
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    });
    acknowledged.sort();
    let all = read(&mut *reader(&log, &topic, 1, Start::Earliest), 400);
    let seen: Vec<(u64, String)> = all.iter().map(|read| (read.offset, read.text())).collect();
    assert_eq!(seen, acknowledged);
}

/// Dropping a producer does not lose the fate of what it took.
pub fn every_send_is_acknowledged_once_even_when_the_producer_is_dropped(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "dropped", 1);
    let calls: Arc<Vec<AtomicUsize>> = Arc::new((0..500).map(|_| AtomicUsize::new(0)).collect());
    let written = Arc::new(AtomicUsize::new(0));
    let producer = log.producer().unwrap();
    for number in 0..calls.len() {
        let (calls, written) = (calls.clone(), written.clone());
        let text = number.to_string();
        producer.send(
            message(&topic, 0, text.as_bytes()),
            Box::new(move |fate| {
                written.fetch_add(usize::from(fate.is_ok()), Ordering::SeqCst);
                calls[number].fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    drop(producer);
    eventually("every send has its fate", || calls.iter().all(|call| call.load(Ordering::SeqCst) > 0).then_some(()));
    let visible = contents(&log, &topic, 1).concat();
    assert!(calls.iter().all(|call| call.load(Ordering::SeqCst) == 1));
    assert!(visible.len() >= written.load(Ordering::SeqCst), "what was acknowledged is there");
}

/// Keys come back, and a payload may be empty.
pub fn keys_and_empty_payloads_come_back(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "keys", 1);
    let producer = log.producer().unwrap();
    let messages: [(&[u8], &[u8]); 5] =
        [(b"key", b"payload"), (b"", b"no key"), (b"no payload", b""), (b"", b""), (&[0, 255, 0], &[0, 254, 0])];
    let headers = [("ce_id", "1"), ("traceparent", "00-1-2-01")];
    for (key, payload) in messages {
        send(&*producer, Outgoing { topic: &topic, partition: 0, key, payload, headers: &headers }).unwrap();
    }
    let all = read(&mut *reader(&log, &topic, 1, Start::Earliest), messages.len());
    let seen: Vec<(&[u8], &[u8])> = all.iter().map(|read| (&read.key[..], &read.payload[..])).collect();
    assert_eq!(seen, messages);
}

/// A frame of the largest size passes with and without a transaction; what no log takes is an error that says so.
pub fn large_messages_pass_and_too_large_ones_are_refused(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "large", 1);
    let large = noise(900_100);
    let producer = log.producer().unwrap();
    send(&*producer, message(&topic, 0, &large)).unwrap();
    let refused = send(&*producer, message(&topic, 0, &vec![0; 20_000_000])).unwrap_err();
    assert!(
        matches!(&refused, LogError::TooLarge { topic: named, size } if *named == topic && *size >= 20_000_000),
        "{refused:?}"
    );
    send(&*producer, message(&topic, 0, b"after")).unwrap();
    let mut client = log.transactional(&unique("large")).unwrap();
    client.begin().unwrap();
    client.send(message(&topic, 0, &large)).unwrap();
    client.commit().unwrap();
    let all = read(&mut *reader(&log, &topic, 1, Start::Earliest), 3);
    assert!(all[0].payload == large && all[1].payload == b"after" && all[2].payload == large);
}

/// Nothing of the transaction is visible, and the id's next producer works.
pub fn a_message_that_is_too_large_fails_its_transaction_only(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "huge", 1);
    let id = unique("huge");
    let mut client = log.transactional(&id).unwrap();
    client.begin().unwrap();
    client.send(message(&topic, 0, b"small")).unwrap();
    let refused = client.send(message(&topic, 0, &vec![0; 20_000_000])).unwrap_err();
    assert!(matches!(refused, LogError::TooLarge { .. }), "{refused:?}");
    drop(client);
    let mut client = log.transactional(&id).unwrap();
    super::reader::transact(&mut *client, &topic, &[(0, "next")]).unwrap();
    assert_eq!(contents(&log, &topic, 1), [["next"]]);
}

/// Each start means what it says, and is resolved when the consumer is made.
pub fn earliest_latest_and_exact_starts(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "starts", 1);
    let at = TopicPartition::new(topic.as_str(), 0);
    let producer = log.producer().unwrap();
    assert_eq!(log.bounds(&at).unwrap(), (0, 0));
    let offsets = send_all(&*producer, &topic, 0, &["a", "b", "c"]);
    let (start, end) = log.bounds(&at).unwrap();
    assert_eq!((start, end), (offsets[0], offsets[2] + 1));
    let mut consumers = [Start::Earliest, Start::At(offsets[1]), Start::At(end), Start::Latest]
        .map(|start| log.consumer(&[(at.clone(), start)]).unwrap());
    let positions: Vec<u64> = consumers.iter().flat_map(|consumer| consumer.positions()).collect();
    assert_eq!(positions, [start, offsets[1], end, end]);
    send_all(&*producer, &topic, 0, &["d"]);
    let seen = consumers.each_mut().map(|consumer| drain(&log, &mut **consumer, &topic, 1));
    let texts = seen.map(|all| all.iter().map(super::reader::Read::text).collect::<String>());
    assert_eq!(texts, ["abcd", "bcd", "d", "d"]);
}

/// A poll without messages ends after its time-out; one that waits returns when a message comes, long before it.
pub fn an_empty_poll_returns_and_a_waiting_one_wakes_up(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "wake", 2);
    let mut consumer = reader(&log, &topic, 2, Start::Earliest);
    let begin = Instant::now();
    assert_eq!(poll(&mut *consumer, 10, Duration::from_millis(50)).unwrap(), []);
    assert!(begin.elapsed() >= Duration::from_millis(40), "it waited only {:?}", begin.elapsed());
    let ready = Barrier::new(2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            ready.wait();
            let begin = Instant::now();
            let mut all = Vec::new();
            while all.is_empty() && begin.elapsed() < DEADLINE {
                all = poll(&mut *consumer, 10, DEADLINE).unwrap();
            }
            (all, begin.elapsed())
        });
        ready.wait();
        send_all(&*log.producer().unwrap(), &topic, 1, &["wake"]);
        let (all, waited) = waiting.join().unwrap();
        assert_eq!((all.len(), all[0].assignment), (1, 1));
        assert!(waited < DEADLINE / 2, "it woke up after {waited:?}");
    });
}

/// The bound of a poll holds, and the rest comes with the next ones.
pub fn poll_hands_over_at_most_what_was_asked_for(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "max", 2);
    let producer = log.producer().unwrap();
    for partition in [0, 1] {
        send_all(&*producer, &topic, partition, &["a", "b", "c", "d", "e"]);
    }
    let mut consumer = reader(&log, &topic, 2, Start::Earliest);
    let mut texts = vec![String::new(); 2];
    eventually("ten messages by three", || {
        for read in poll(&mut *consumer, 3, Duration::from_millis(100)).unwrap() {
            texts[read.assignment] += &read.text();
        }
        (texts.concat().len() == 10).then_some(())
    });
    assert_eq!(texts, ["abcde", "abcde"]);
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The log's time, between the send and its acknowledgement, in order (I7).
pub fn append_time_is_the_logs_and_never_decreases(subject: &dyn Subject) {
    timestamps(subject, true);
}

/// The time is that of the send.
pub fn without_append_time_the_time_is_the_senders(subject: &dyn Subject) {
    timestamps(subject, false);
}

fn timestamps(subject: &dyn Subject, append_time: bool) {
    let log = subject.open();
    let topic = unique("time");
    log.create_topics(&[TopicSpec { append_time, ..spec(&topic, 1) }]).unwrap();
    let producer = log.producer().unwrap();
    let mut windows = Vec::new();
    for _ in 0..20 {
        let before = now_ms();
        send(&*producer, message(&topic, 0, b"x")).unwrap();
        windows.push((before, now_ms()));
    }
    let all = read(&mut *reader(&log, &topic, 1, Start::Earliest), windows.len());
    for (read, (before, after)) in all.iter().zip(windows) {
        assert!((before..=after).contains(&read.timestamp_ms), "{} is not in {before}..={after}", read.timestamp_ms);
    }
    assert!(all.is_sorted_by_key(|read| read.timestamp_ms));
}

/// Nothing is created by accident, and nothing hangs.
pub fn unknown_topics_and_partitions_are_errors(subject: &dyn Subject) {
    let log = subject.open();
    let known = topic(&log, "known", 1);
    let unknown = unique("unknown");
    let producer = log.producer().unwrap();
    for (topic, partition) in [(unknown.as_str(), 0), (known.as_str(), 7)] {
        let at = TopicPartition::new(topic, partition);
        let names = |what: &str, error: LogError| match error {
            LogError::Topic { topic: named, .. } => assert_eq!(named, topic, "{what}"),
            other => panic!("{what} of {at}: {other:?}"),
        };
        names("bounds", log.bounds(&at).unwrap_err());
        names("send", send(&*producer, message(topic, partition, b"x")).unwrap_err());
        names("read", first_error(&log, &at, Start::Earliest));
        let mut client = log.transactional(&unique("unknown")).unwrap();
        assert!(super::reader::transact(&mut *client, topic, &[(partition, "x")]).is_err(), "transaction to {at}");
    }
    assert!(matches!(log.topic_id(&unknown).unwrap_err(), LogError::Topic { .. }));
}

/// The error that a consumer gives, when it is made or when it is polled.
pub(super) fn first_error(log: &Arc<dyn Log>, at: &TopicPartition, start: Start) -> LogError {
    let mut consumer = match log.consumer(&[(at.clone(), start)]) {
        Ok(consumer) => consumer,
        Err(error) => return error,
    };
    eventually("an error", || match poll(&mut *consumer, 10, Duration::from_millis(100)) {
        Ok(read) => {
            assert_eq!(read, [], "an error, not a jump to somewhere else");
            None
        }
        Err(error) => Some(error),
    })
}

/// The same again is fine; another number of partitions or kind of time stamp is refused, and changes nothing.
pub fn creating_topics_again_is_harmless_and_a_mismatch_is_an_error(subject: &dyn Subject) {
    let log = subject.open();
    let (first, second) = (unique("first"), unique("second"));
    log.create_topics(&[spec(&first, 2)]).unwrap();
    let id = log.topic_id(&first).unwrap();
    send_all(&*log.producer().unwrap(), &first, 1, &["kept"]);
    log.create_topics(&[spec(&first, 2), spec(&second, 1)]).unwrap();
    assert_eq!(log.bounds(&TopicPartition::new(second.as_str(), 0)).unwrap(), (0, 0));
    for wrong in [spec(&first, 3), spec(&first, 1), TopicSpec { append_time: true, ..spec(&first, 2) }] {
        let error = log.create_topics(std::slice::from_ref(&wrong)).unwrap_err();
        assert!(matches!(&error, LogError::Topic { topic, .. } if *topic == first), "{wrong:?}: {error:?}");
    }
    assert_eq!(log.topic_id(&first).unwrap(), id);
    assert_eq!(contents(&log, &first, 2), [vec![], vec!["kept"]]);
    assert_ne!(log.topic_id(&second).unwrap(), id);
}

/// A topic's id survives opening again; deletion and creation under the same name is another topic, and empty.
pub fn a_topic_created_again_has_another_id(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "again", 1);
    send_all(&*log.producer().unwrap(), &topic, 0, &["old"]);
    let id = log.topic_id(&topic).unwrap();
    drop(log);
    let log = subject.open();
    assert_eq!(log.topic_id(&topic).unwrap(), id);
    subject.delete_topic(&log, &topic);
    log.create_topics(&[spec(&topic, 1)]).unwrap();
    assert_ne!(log.topic_id(&topic).unwrap(), id);
    assert_eq!(log.bounds(&TopicPartition::new(topic.as_str(), 0)).unwrap(), (0, 0));
    assert_eq!(contents(&log, &topic, 1), [[""; 0]]);
}

/// Sends and commits survive; offsets go on where they were.
pub fn everything_acknowledged_is_there_after_opening_again(subject: &dyn Subject) {
    let log = subject.open();
    let topic = topic(&log, "reopen", 2);
    let at = TopicPartition::new(topic.as_str(), 0);
    let id = unique("reopen");
    let first = send_all(&*log.producer().unwrap(), &topic, 0, &["a", "b"]);
    let mut client = log.transactional(&id).unwrap();
    super::reader::transact(&mut *client, &topic, &[(0, "c"), (1, "d")]).unwrap();
    drop(client);
    drop(log);
    let log = subject.open();
    let (start, end) = log.bounds(&at).unwrap();
    let last = send_all(&*log.producer().unwrap(), &topic, 0, &["e"]);
    assert!(start == first[0] && last[0] >= end, "{start} {end} {first:?} {last:?}");
    let mut client = log.transactional(&id).unwrap();
    super::reader::transact(&mut *client, &topic, &[(1, "f")]).unwrap();
    assert_eq!(contents(&log, &topic, 2), [vec!["a", "b", "c", "e"], vec!["d", "f"]]);
}
