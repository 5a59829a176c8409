//! The suite of [`StateStore`]: atomic writes, order, opening again (I5).

use millstream_model::key::{Kind, StateKey};
use millstream_model::proto::{Position, StatePosition};
use millstream_shard::state::{Forget, Snapshot, Staging, StateStore, StoreError};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A state store under test; each subject is one store of its own.
pub trait Subject: Send + Sync {
    /// Opens the store. A case that opens it again has dropped the former one before.
    fn open(&self) -> Arc<dyn StateStore>;
}

crate::suite!($ state_conformance, dyn Subject, [
    state::a_new_store_is_empty,
    state::multi_get_answers_in_the_order_of_the_keys,
    state::a_write_replaces_and_deletes,
    state::scan_gives_a_prefix_in_order,
    state::sorted_writes_and_others_lie_over_each_other,
    state::forgetting_takes_earlier_periods_of_its_groups_and_nothing_else,
    state::the_position_is_no_entry,
    state::entries_and_position_change_at_once,
    state::clear_leaves_nothing,
    state::everything_is_there_after_closing_and_opening,
    state::an_empty_store_has_no_copy,
    state::a_copy_stays_as_it_is_and_becomes_the_store,
    state::copies_share_what_did_not_change,
    state::a_restore_that_fails_leaves_the_store_as_it_was,
    state::what_is_no_file_of_a_store_is_refused,
]);

/// A key of the suite.
pub fn key(group: u16, rest: &str) -> StateKey {
    StateKey::new(group, "acme", Kind::User, rest.as_bytes())
}

/// A position that differs from others in every part.
pub fn position(number: u64) -> StatePosition {
    StatePosition {
        changelog_offset: number * 3,
        digest: u64::MAX - number,
        batch_number: number,
        time_ms: 1_700_000_000_000 + number,
        stamp_time_ms: 1_600_000_000_000 + number,
        inputs: vec![Position { topic: "actions".into(), partition: 3, offset: number * 7, topic_id: "t".into() }],
        epoch: 9,
        topic_id: "changelog-id".into(),
        ..StatePosition::default()
    }
}

/// Writes entries, `None` deletes.
pub fn write(store: &dyn StateStore, entries: &[(&StateKey, Option<&[u8]>)], number: u64) {
    store.write(None, &mut entries.iter().copied(), &position(number)).unwrap();
}

/// Writes entries in one sorted write, after it has forgotten.
pub fn write_sorted(
    store: &dyn StateStore,
    forget: Option<&Forget>,
    entries: &[(&StateKey, Option<&[u8]>)],
    number: u64,
) {
    let mut sorted = entries.to_vec();
    sorted.sort_unstable();
    let mut give = |each: &mut dyn FnMut(&StateKey, Option<&[u8]>)| {
        for (key, value) in &sorted {
            each(key, *value);
        }
    };
    store.write_sorted(forget, &mut give, &position(number)).unwrap();
}

/// All entries with a prefix.
pub fn scan(store: &dyn StateStore, prefix: &[u8]) -> Vec<(StateKey, Vec<u8>)> {
    let mut entries = Vec::new();
    store.scan(prefix, &mut |key, value| entries.push((key.clone(), value.to_vec()))).unwrap();
    entries
}

/// No position, no entries.
pub fn a_new_store_is_empty(subject: &dyn Subject) {
    let store = subject.open();
    assert_eq!(store.position().unwrap(), None);
    assert_eq!(scan(&*store, b""), []);
    assert_eq!(store.multi_get(&[&key(1, "a")]).unwrap(), [None]);
    assert_eq!(store.multi_get(&[]).unwrap(), []);
}

/// Missing keys, repeated keys, empty and large values.
pub fn multi_get_answers_in_the_order_of_the_keys(subject: &dyn Subject) {
    let store = subject.open();
    let (a, b, c, missing) = (key(1, "a"), key(4095, "b"), key(0, ""), key(1, "aa"));
    let large = super::noise(3_000_000);
    write(&*store, &[(&a, Some(b"A")), (&b, Some(b"")), (&c, Some(&large))], 1);
    let values = store.multi_get(&[&c, &missing, &b, &a, &c, &a]).unwrap();
    let expected = [Some(large.clone()), None, Some(vec![]), Some(b"A".to_vec()), Some(large), Some(b"A".to_vec())];
    assert!(values == expected);
}

/// The later of two entries of one key in a write counts.
pub fn a_write_replaces_and_deletes(subject: &dyn Subject) {
    let store = subject.open();
    let (a, b, c) = (key(1, "a"), key(1, "b"), key(1, "c"));
    write(&*store, &[(&a, Some(b"1")), (&b, Some(b"1"))], 1);
    write(&*store, &[(&a, Some(b"2")), (&b, None), (&c, None)], 2);
    assert_eq!(store.multi_get(&[&a, &b, &c]).unwrap(), [Some(b"2".to_vec()), None, None]);
    write(&*store, &[(&a, None), (&a, Some(b"3")), (&c, Some(b"3")), (&c, None)], 3);
    assert_eq!(scan(&*store, b""), [(a, b"3".to_vec())]);
    write(&*store, &[], 4);
    assert_eq!(store.position().unwrap(), Some(position(4)), "a batch may change nothing but the position");
}

/// Only what starts with the prefix; groups in order, bytes as bytes.
pub fn scan_gives_a_prefix_in_order(subject: &dyn Subject) {
    let store = subject.open();
    let mut keys: Vec<StateKey> = (0..500).map(|number| key(number % 5 * 255, &format!("{number:x}"))).collect();
    keys.push(StateKey::new(255, "acme", Kind::User, &[0xff, 0xff]));
    keys.push(StateKey::new(255, "acme", Kind::User, &[0xff]));
    keys.push(StateKey::new(255, "acme2", Kind::Node, b"x"));
    let entries: Vec<_> = keys.iter().map(|key| (key, Some(key.as_bytes()))).collect();
    write(&*store, &entries, 1);
    keys.sort();
    for prefix in
        [&b""[..], &255u16.to_be_bytes(), &[0], &[0xff], b"\x00\xffacme\0", b"\x00\xffacme\0\x03\xff", b"\x07"]
    {
        let expected: Vec<StateKey> = keys.iter().filter(|key| key.as_bytes().starts_with(prefix)).cloned().collect();
        let seen: Vec<StateKey> = scan(&*store, prefix)
            .into_iter()
            .map(|(key, value)| {
                assert_eq!(key.as_bytes(), value);
                key
            })
            .collect();
        assert_eq!(seen, expected, "prefix {prefix:?}");
    }
}

/// Whichever way an entry came, the newest counts, now and after opening again.
pub fn sorted_writes_and_others_lie_over_each_other(subject: &dyn Subject) {
    let keys: [StateKey; 6] = std::array::from_fn(|group| key(group as u16 * 700, "x"));
    let [a, b, c, d, e, f] = keys.each_ref();
    let store = subject.open();
    write_sorted(&*store, None, &[(f, Some(b"1")), (a, Some(b"1")), (b, Some(b"1")), (c, Some(b"1"))], 1);
    write(&*store, &[(a, Some(b"2")), (b, None), (d, Some(b"2")), (e, Some(b"2"))], 2);
    write_sorted(&*store, None, &[(a, None), (b, Some(b"3")), (d, Some(b"3"))], 3);
    write(&*store, &[(c, Some(b"4"))], 4);
    write_sorted(&*store, None, &[], 5);
    let expected =
        [None, Some(b"3".to_vec()), Some(b"4".to_vec()), Some(b"3".to_vec()), Some(b"2".to_vec()), Some(b"1".to_vec())];
    assert_eq!(
        (store.multi_get(&[a, b, c, d, e, f]).unwrap(), store.position().unwrap()),
        (expected.to_vec(), Some(position(5)))
    );
    drop(store);
    let store = subject.open();
    assert_eq!(
        (store.multi_get(&[a, b, c, d, e, f]).unwrap(), store.position().unwrap()),
        (expected.to_vec(), Some(position(5)))
    );
    let seen = |period| StateKey::in_period(8, Kind::Seen, period, "acme", b"x");
    let forget = Forget { groups: 8..9, before: 42 };
    write(&*store, &[(&seen(3), Some(b"x")), (&seen(4), Some(b"x"))], 6);
    write_sorted(&*store, Some(&forget), &[(&seen(4), Some(b"back")), (&seen(50), Some(b"x"))], 7);
    let left = [None, Some(b"back".to_vec()), Some(b"x".to_vec())];
    assert_eq!(store.multi_get(&[&seen(3), &seen(4), &seen(50)]).unwrap(), left);
}

/// Before the entries of the same write, which may bring keys back.
pub fn forgetting_takes_earlier_periods_of_its_groups_and_nothing_else(subject: &dyn Subject) {
    let store = subject.open();
    let seen = |group, period| StateKey::in_period(group, Kind::Seen, period, "acme", b"x");
    let gone = [seen(8, 0), seen(8, 41), seen(10, 41)];
    let kept = [seen(7, 41), seen(8, 42), seen(10, u32::MAX), seen(11, 41), key(8, "user"), key(9, "user")];
    let entries: Vec<_> = gone.iter().chain(&kept).map(|key| (key, Some(&b"x"[..]))).collect();
    write(&*store, &entries, 1);
    let forget = Forget { groups: 8..11, before: 42 };
    let back = seen(9, 3);
    store.write(Some(&forget), &mut [(&back, Some(&b"back"[..]))].into_iter(), &position(2)).unwrap();
    assert_eq!(store.multi_get(&gone.each_ref()).unwrap(), [None, None, None]);
    assert!(store.multi_get(&kept.each_ref()).unwrap().iter().all(Option::is_some));
    drop(store);
    let store = subject.open();
    let mut left: Vec<StateKey> = kept.into_iter().chain([back]).collect();
    left.sort();
    assert_eq!(scan(&*store, b"").into_iter().map(|(key, _)| key).collect::<Vec<_>>(), left);
}

/// It cannot be read, written or deleted as one.
pub fn the_position_is_no_entry(subject: &dyn Subject) {
    let store = subject.open();
    write(&*store, &[], 7);
    assert_eq!(scan(&*store, b""), []);
    assert_eq!(scan(&*store, &[0xff]), []);
    let edges = [
        StateKey::from_bytes(&[0x0f, 0xff]),
        StateKey::from_bytes(&[0, 0]),
        StateKey::new(4095, "\u{10ffff}", Kind::Usage, &[0xff; 40]),
    ];
    let entries: Vec<_> = edges.iter().map(|key| (key, Some(&b"edge"[..]))).collect();
    write(&*store, &entries, 8);
    let deletes: Vec<_> = edges.iter().map(|key| (key, None)).collect();
    write(&*store, &deletes, 9);
    assert_eq!(store.position().unwrap(), Some(position(9)));
    assert_eq!(scan(&*store, b""), []);
}

/// A reader between two writes sees neither half.
pub fn entries_and_position_change_at_once(subject: &dyn Subject) {
    let store = subject.open();
    let (a, b) = (key(1, "a"), key(4000, "b"));
    write(&*store, &[(&a, Some(&0u64.to_be_bytes())), (&b, Some(&0u64.to_be_bytes()))], 0);
    let done = AtomicBool::new(false);
    let number = |value: &Option<Vec<u8>>| u64::from_be_bytes(value.as_deref().unwrap().try_into().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=2000u64 {
                let bytes = round.to_be_bytes();
                write(&*store, &[(&a, Some(&bytes)), (&b, Some(&bytes))], round);
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let before = number(&store.multi_get(&[&a]).unwrap()[0]);
            let position = store.position().unwrap().unwrap().batch_number;
            let after = number(&store.multi_get(&[&b]).unwrap()[0]);
            assert!(before <= position && position <= after, "{before} <= {position} <= {after}");
        }
    });
    assert_eq!(store.position().unwrap(), Some(position(2000)));
}

/// The position goes too, and the store can be used again.
pub fn clear_leaves_nothing(subject: &dyn Subject) {
    let store = subject.open();
    let keys: Vec<StateKey> = (0..4096).step_by(3).map(|group| key(group, "x")).collect();
    let entries: Vec<_> = keys.iter().map(|key| (key, Some(&b"x"[..]))).collect();
    write(&*store, &entries, 1);
    store.clear().unwrap();
    assert_eq!((store.position().unwrap(), scan(&*store, b"")), (None, vec![]));
    drop(store);
    let store = subject.open();
    assert_eq!((store.position().unwrap(), scan(&*store, b"")), (None, vec![]));
    write(&*store, &[(&keys[5], Some(b"again"))], 2);
    assert_eq!(scan(&*store, b""), [(keys[5].clone(), b"again".to_vec())]);
}

/// A clean restart keeps everything: entries, deletions, position.
pub fn everything_is_there_after_closing_and_opening(subject: &dyn Subject) {
    let mut store = subject.open();
    for round in 1..=5u64 {
        let (own, shared) = (key(round as u16, "own"), key(0, "shared"));
        let before = key(round as u16 - 1, "own");
        let bytes = round.to_be_bytes();
        write(&*store, &[(&own, Some(&bytes)), (&shared, Some(&bytes)), (&before, None)], round);
        drop(store);
        store = subject.open();
        assert_eq!(store.position().unwrap(), Some(position(round)));
        assert_eq!(scan(&*store, b""), [(shared, bytes.to_vec()), (own, bytes.to_vec())]);
    }
}

fn copy_to(snapshot: &dyn Snapshot, staging: &dyn Staging) {
    for file in snapshot.files() {
        let (mut from, mut into) = (snapshot.open(&file.name).unwrap(), staging.create(&file.name).unwrap());
        assert_eq!(std::io::copy(&mut from, &mut into).unwrap(), file.size);
        into.flush().unwrap();
    }
}

/// Nothing was written yet.
pub fn an_empty_store_has_no_copy(subject: &dyn Subject) {
    assert!(subject.open().snapshot().unwrap().is_none());
}

/// Whatever is written, cleared or opened meanwhile.
pub fn a_copy_stays_as_it_is_and_becomes_the_store(subject: &dyn Subject) {
    let store = subject.open();
    let (a, b) = (key(1, "a"), key(2, "b"));
    write(&*store, &[(&a, Some(b"1"))], 1);
    write_sorted(&*store, None, &[(&a, Some(b"one")), (&b, Some(b"two"))], 2);
    let snapshot = store.snapshot().unwrap().unwrap();
    assert_eq!(*snapshot.position(), position(2));
    write(&*store, &[(&a, None), (&key(3, "c"), Some(b"three"))], 3);
    store.clear().unwrap();
    drop(store);
    let store = subject.open();
    write(&*store, &[(&key(4, "d"), Some(b"four"))], 4);
    for _ in 0..2 {
        store
            .restore(&mut |staging| {
                copy_to(&*snapshot, &*staging);
                Ok(())
            })
            .unwrap();
        assert_eq!(store.position().unwrap(), Some(position(2)));
        assert_eq!(scan(&*store, &[]), [(a.clone(), b"one".to_vec()), (b.clone(), b"two".to_vec())]);
        write(&*store, &[(&a, None)], 5);
        assert_eq!(scan(&*store, &[]), [(b.clone(), b"two".to_vec())]);
    }
    drop((snapshot, store));
    let store = subject.open();
    assert_eq!(store.position().unwrap(), Some(position(5)));
    assert_eq!(scan(&*store, &[]), [(b, b"two".to_vec())]);
}

/// Files that are said never to change are the same in the next copy.
pub fn copies_share_what_did_not_change(subject: &dyn Subject) {
    let store = subject.open();
    let immutable = |snapshot: &dyn Snapshot| {
        let files = snapshot.files().iter().filter(|file| file.is_immutable);
        let content = |name: &str| {
            let mut bytes = Vec::new();
            snapshot.open(name).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        files.map(|file| (file.name.clone(), content(&file.name))).collect::<BTreeMap<_, _>>()
    };
    write_sorted(&*store, None, &[(&key(1, "a"), Some(b"one"))], 1);
    let first = store.snapshot().unwrap().unwrap();
    write_sorted(&*store, None, &[(&key(2, "b"), Some(b"two"))], 2);
    let second = store.snapshot().unwrap().unwrap();
    let (first, second) = (immutable(&*first), immutable(&*second));
    assert!(!first.is_empty());
    let shared: Vec<_> = first.iter().filter(|(name, _)| second.contains_key(*name)).collect();
    assert!(!shared.is_empty(), "{:?} {:?}", first.keys(), second.keys());
    assert!(shared.iter().all(|(name, content)| second[*name] == **content));
}

/// Also when some files were written.
pub fn a_restore_that_fails_leaves_the_store_as_it_was(subject: &dyn Subject) {
    let store = subject.open();
    let a = key(1, "a");
    write(&*store, &[(&a, Some(b"1"))], 1);
    let snapshot = store.snapshot().unwrap().unwrap();
    write(&*store, &[(&a, Some(b"2"))], 2);
    let failed = store.restore(&mut |staging| {
        copy_to(&*snapshot, &*staging);
        Err(StoreError::Failed("the object store is away".into()))
    });
    assert!(matches!(failed, Err(StoreError::Failed(why)) if why.contains("is away")));
    assert_eq!(store.position().unwrap(), Some(position(2)));
    assert_eq!(scan(&*store, &[]), [(a, b"2".to_vec())]);
}

/// Names lead nowhere else.
pub fn what_is_no_file_of_a_store_is_refused(subject: &dyn Subject) {
    let store = subject.open();
    let failed = store.restore(&mut |staging| {
        for name in ["", "..", "../x", "a/b", "/etc/x", ".x"] {
            assert!(staging.create(name).is_err(), "{name}");
        }
        Err(StoreError::Failed("no".into()))
    });
    assert!(failed.is_err());
    assert_eq!(store.position().unwrap(), None);
}
