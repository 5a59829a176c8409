//! What the conformance suite cannot ask of every store: damaged files, and what the process shares.

use super::*;
use millstream_model::key::Kind;
use std::io::{Read as _, Write as _};

fn key(number: u32) -> StateKey {
    StateKey::new(7, "acme", Kind::Node, &number.to_be_bytes())
}

fn open(folder: &Path, resources: &Resources) -> RocksState {
    RocksState::open(folder, resources).unwrap()
}

/// Entries that do not compress, at a position.
fn fill(store: &RocksState, entries: u32, position: u64) {
    let values: Vec<(StateKey, Vec<u8>)> = (0..entries).map(|number| (key(number), noise(number, position))).collect();
    let position = StatePosition { batch_number: position, ..StatePosition::default() };
    let mut entries = values.iter().map(|(key, value)| (key, Some(&value[..])));
    store.write(None, &mut entries, &position).unwrap();
}

fn noise(number: u32, position: u64) -> Vec<u8> {
    let mut state = u64::from(number) + position.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..500).map(next).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn is_damaged<T>(result: &Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Damaged(_)))
}

/// It says so until it is cleared, also when it is opened again; then it is a new store.
fn stays_damaged_until_cleared(folder: &Path, store: RocksState) {
    assert!(is_damaged(&store.position()) && is_damaged(&store.multi_get(&[&key(1)])));
    drop(store);
    let resources = Resources::new(1 << 20);
    let store = open(folder, &resources);
    assert!(is_damaged(&store.position()));
    store.clear().unwrap();
    assert_eq!((store.position().unwrap(), store.multi_get(&[&key(1)]).unwrap()), (None, vec![None]));
    assert_eq!(resources.figures().cleared, 1);
    fill(&store, 10, 2);
    drop(store);
    let store = open(folder, &resources);
    assert_eq!(store.multi_get(&[&key(3)]).unwrap(), [Some(noise(3, 2))]);
}

#[test]
fn a_key_outside_the_state_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &Resources::new(1 << 20));
    let (good, bad) = (StateKey::from_bytes(&[0x0f, 0xff]), StateKey::from_bytes(POSITION));
    let entries = [(&good, Some(&b"x"[..])), (&bad, Some(&b"x"[..]))];
    assert!(store.write(None, &mut entries.iter().copied(), &StatePosition::default()).is_err());
    assert_eq!((store.multi_get(&[&good]).unwrap(), store.position().unwrap()), (vec![None], None));
}

fn fill_sorted(store: &RocksState, entries: u32, position: u64) -> Result<(), StoreError> {
    let mut give = |each: &mut dyn FnMut(&StateKey, Option<&[u8]>)| {
        (0..entries).for_each(|number| each(&key(number), Some(&noise(number, position))));
    };
    let position = StatePosition { batch_number: position, ..StatePosition::default() };
    store.write_sorted(None, &mut give, &position)
}

/// Killed between taking a file and giving up its first name.
#[test]
fn a_file_that_was_taken_is_not_written_again_under_its_first_name() {
    let (folder, resources) = (tempfile::tempdir().unwrap(), Resources::new(1 << 20));
    let store = open(folder.path(), &resources);
    fill_sorted(&store, 1000, 1).unwrap();
    let taken = files(folder.path(), "sst").remove(0);
    std::fs::hard_link(&taken, folder.path().join(FLUSH)).unwrap();
    fill_sorted(&store, 10, 2).unwrap();
    assert!(!folder.path().join(FLUSH).exists());
    drop(store);
    let store = open(folder.path(), &Resources::new(1 << 20));
    assert_eq!(store.multi_get(&[&key(3), &key(900)]).unwrap(), [Some(noise(3, 2)), Some(noise(900, 1))]);
    assert!(resources.figures().flushed_bytes > 500_000);
}

#[test]
fn a_file_that_cannot_be_written_to_its_end_leaves_nothing() {
    let (folder, resources) = (tempfile::tempdir().unwrap(), Resources::new(1 << 20));
    let store = open(folder.path(), &resources);
    let mut give = |each: &mut dyn FnMut(&StateKey, Option<&[u8]>)| {
        [key(1), StateKey::from_bytes(POSITION)].iter().for_each(|key| each(key, Some(b"x")));
    };
    assert!(store.write_sorted(None, &mut give, &StatePosition::default()).is_err());
    assert!(!folder.path().join(FLUSH).exists());
    assert_eq!((store.multi_get(&[&key(1)]).unwrap(), store.position().unwrap()), (vec![None], None));
    fill_sorted(&store, 10, 1).unwrap();
    assert_eq!(store.multi_get(&[&key(3)]).unwrap(), [Some(noise(3, 1))]);
}

#[test]
fn a_folder_in_use_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let _store = open(folder.path(), &Resources::new(1 << 20));
    let error = RocksState::open(folder.path(), &Resources::new(1 << 20)).err().unwrap();
    assert!(matches!(error, StoreError::Failed(_)), "a rival is no damage: {error}");
    let error = error.to_string();
    assert!(error.contains(folder.path().to_str().unwrap()) && error.contains("LOCK"), "{error}");
}

#[test]
fn a_changed_byte_is_found_by_the_read_that_meets_it() {
    let folder = tempfile::tempdir().unwrap();
    fill(&open(folder.path(), &Resources::new(1 << 20)), 1000, 1);
    let file = files(folder.path(), "sst").remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let store = open(folder.path(), &Resources::new(1 << 20));
    assert_eq!(store.position().unwrap().unwrap().batch_number, 1, "the position lies in another block");
    let keys: Vec<StateKey> = (0..1000).map(key).collect();
    assert!(is_damaged(&store.multi_get(&keys.iter().collect::<Vec<_>>())));
    stays_damaged_until_cleared(folder.path(), store);
}

#[test]
fn a_changed_byte_of_a_file_that_was_taken_is_found_too() {
    let (folder, resources) = (tempfile::tempdir().unwrap(), Resources::new(1 << 20));
    fill_sorted(&open(folder.path(), &resources), 100, 1).unwrap();
    let file = files(folder.path(), "sst").remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let store = open(folder.path(), &resources);
    let keys: Vec<StateKey> = (0..100).map(key).collect();
    assert!(is_damaged(&store.multi_get(&keys.iter().collect::<Vec<_>>())));
}

#[test]
fn a_file_that_is_gone_or_cut_is_found_at_opening() {
    let truncate = |path: &Path| std::fs::write(path, b"").unwrap();
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harms: [Harm<'_>; 4] = [
        ("a table is gone", &|folder| remove(&files(folder, "sst")[0])),
        ("a table is cut", &|folder| truncate(&files(folder, "sst")[0])),
        ("the list of tables is gone", &|folder| {
            let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.to_string_lossy().contains("MANIFEST")).for_each(|path| remove(&path));
        }),
        ("its name is cut", &|folder| truncate(&folder.join("CURRENT"))),
    ];
    for (what, harm) in harms {
        let folder = tempfile::tempdir().unwrap();
        fill(&open(folder.path(), &Resources::new(1 << 20)), 100, 1);
        harm(folder.path());
        let store = open(folder.path(), &Resources::new(1 << 20));
        assert!(is_damaged(&store.position()), "{what}");
        stays_damaged_until_cleared(folder.path(), store);
    }
}

#[test]
fn a_position_that_cannot_be_read_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &Resources::new(1 << 20));
    store.with(|db| db.put(POSITION, b"\xff\xff\xff").map_err(failed("write"))).unwrap();
    assert!(is_damaged(&store.position()));
    stays_damaged_until_cleared(folder.path(), store);
}

#[test]
fn stores_share_one_cache_whose_use_stays_within_its_bound() {
    let folder = tempfile::tempdir().unwrap();
    let resources = Resources::new(4 << 20);
    let names = ["unify-0", "unify-1", "action-0"];
    let stores = names.map(|name| open(&folder.path().join(name), &resources));
    for store in &stores {
        fill(store, 20_000, 1);
        store.sync().unwrap();
        let keys: Vec<StateKey> = (0..20_000).map(key).collect();
        store.multi_get(&keys.iter().collect::<Vec<_>>()).unwrap();
    }
    let figures = resources.figures();
    assert!(figures.cache_bytes > 1 << 20 && figures.cache_bytes <= (4 << 20) + (1 << 20), "{figures:?}");
    assert!(figures.block_misses > 0 && figures.flushed_bytes > 30_000_000, "{figures:?}");
    let seen = resources.stores();
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(seen.iter().map(|store| store.name.as_str()).collect::<Vec<_>>(), sorted);
    assert!(seen.iter().all(|store| store.file_bytes > 5_000_000 && !store.is_stopped), "{seen:?}");
    drop(stores);
    assert_eq!(resources.stores(), []);
}

/// What lies beside a store.
fn beside(store: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(store.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn copies_that_a_killed_process_has_left_go_and_those_in_use_stay() {
    let (folder, resources) = (tempfile::tempdir().unwrap(), Resources::new(1 << 20));
    let (path, other) = (folder.path().join("unify-1"), folder.path().join("unify-11"));
    for of in [&path, &other] {
        std::fs::create_dir_all(folder.path().join(format!("{}~copy-7", of.display()))).unwrap();
    }
    std::fs::create_dir_all(folder.path().join("unify-1~restoring")).unwrap();
    let store = open(&path, &resources);
    fill(&store, 10, 1);
    assert_eq!(beside(&path), ["unify-1", "unify-11~copy-7"]);
    let copy = store.snapshot().unwrap().unwrap();
    drop(store);
    let store = open(&path, &resources);
    assert_eq!(beside(&path), ["unify-1", "unify-11~copy-7", "unify-1~copy-1"]);
    assert!(copy.files().iter().all(|file| copy.open(&file.name).is_ok()));
    drop(copy);
    assert_eq!(beside(&path), ["unify-1", "unify-11~copy-7"]);
    drop(store);
}

#[test]
fn a_damaged_store_is_restored_and_has_no_copy() {
    let (folder, resources) = (tempfile::tempdir().unwrap(), Resources::new(1 << 20));
    let path = folder.path().join("state");
    let store = open(&path, &resources);
    fill(&store, 10, 1);
    let copy = store.snapshot().unwrap().unwrap();
    drop(store);
    std::fs::write(path.join("CURRENT"), b"nonsense").unwrap();
    let store = open(&path, &resources);
    assert!(is_damaged(&store.position()) && is_damaged(&store.snapshot()));
    let files: Vec<(String, Vec<u8>)> = copy
        .files()
        .iter()
        .map(|file| {
            let mut bytes = Vec::new();
            copy.open(&file.name).unwrap().read_to_end(&mut bytes).unwrap();
            (file.name.clone(), bytes)
        })
        .collect();
    let restore = |harm: &dyn Fn(&str) -> bool| {
        store.restore(&mut |staging| {
            for (name, bytes) in files.iter().filter(|(name, _)| !harm(name)) {
                let mut into = staging.create(name)?;
                into.write_all(bytes).and_then(|()| into.flush()).unwrap();
            }
            Ok(())
        })
    };
    assert!(is_damaged(&restore(&|name| name.ends_with(".sst"))), "tables are missing");
    restore(&|_| false).unwrap();
    assert_eq!(store.multi_get(&[&key(3)]).unwrap(), [Some(noise(3, 1))]);
}
