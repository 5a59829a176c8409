//! The suite of [`ObjectStore`]: atomic, conditional, in order.

use super::{noise, unique};
use millstream_shard::objects::{LONGEST_NAME, LONGEST_SEGMENT, Listed, ObjectError, ObjectStore, Put, Version, When};
use std::io::Read;
use std::sync::{Arc, Barrier};

/// An object store under test.
pub trait Subject: Send + Sync {
    /// Opens the store.
    fn open(&self) -> Arc<dyn ObjectStore>;
}

crate::suite!($ object_conformance, dyn Subject, [
    objects::what_is_not_there_is_none,
    objects::what_was_put_is_read,
    objects::a_part_is_read,
    objects::only_one_of_racing_writers_creates,
    objects::only_who_has_read_the_newest_replaces_it,
    objects::every_racing_update_builds_on_the_one_before,
    objects::a_large_object_is_uploaded_in_parts,
    objects::what_was_uploaded_is_replaced_by_who_has_read_it,
    objects::an_upload_that_is_cut_short_leaves_what_was_there,
    objects::a_list_is_in_order_and_in_pages,
    objects::what_is_beside_and_below_a_folder_is_another_thing,
    objects::deleted_is_gone_and_deleting_again_is_no_error,
    objects::the_longest_names_are_names,
    objects::what_is_no_name_is_refused,
]);

/// Objects of one case.
struct Place {
    store: Arc<dyn ObjectStore>,
    folder: String,
}

impl Place {
    fn new(subject: &dyn Subject, what: &str) -> Place {
        Place { store: subject.open(), folder: unique(what) }
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    fn put(&self, name: &str, content: &[u8], when: &When) -> Put {
        self.store.put(&self.name(name), content, when).unwrap()
    }

    /// Puts what must not be refused.
    fn done(&self, name: &str, content: &[u8], when: &When) -> Version {
        match self.put(name, content, when) {
            Put::Done(version) => version,
            Put::Refused => panic!("{name} is refused, {when:?}"),
        }
    }

    /// Puts many, each with its name as its content.
    fn put_all(&self, names: &[String]) {
        let put = |part: &[String]| part.iter().for_each(|name| drop(self.done(name, name.as_bytes(), &When::Absent)));
        std::thread::scope(|scope| {
            names.chunks(names.len().div_ceil(8)).for_each(|part| drop(scope.spawn(|| put(part))))
        });
    }

    fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.store.get(&self.name(name)).unwrap().map(|object| object.content)
    }

    /// Everything in a folder of it, page by page, without the folder.
    fn all(&self, prefix: &str) -> Vec<String> {
        let (prefix, start) = (self.name(prefix), self.name(""));
        let mut found: Vec<Listed> = Vec::new();
        loop {
            let page = self.store.list(&prefix, found.last().map(|last| last.name.as_str())).unwrap();
            if page.is_empty() {
                return found.iter().map(|listed| listed.name.strip_prefix(&start).unwrap().to_owned()).collect();
            }
            found.extend(page);
        }
    }
}

/// Neither an object nor a part of it, and no list has it.
pub fn what_is_not_there_is_none(subject: &dyn Subject) {
    let place = Place::new(subject, "none");
    let name = place.name("a");
    assert_eq!(place.store.get(&name).unwrap(), None);
    assert_eq!(place.store.read(&name, 0, 10).unwrap(), None);
    assert_eq!(place.store.read(&name, 0, 0).unwrap(), None);
    assert_eq!(place.all(""), Vec::<String>::new());
}

/// Nothing, some, and any bytes; with the version that the write gave.
pub fn what_was_put_is_read(subject: &dyn Subject) {
    let place = Place::new(subject, "put");
    for content in [&b""[..], b"one", &[0, 255, 13, 10]] {
        let version = place.done("a", content, &When::Always);
        let read = place.store.get(&place.name("a")).unwrap().unwrap();
        assert_eq!((read.content.as_slice(), read.version), (content, version));
        // Somebody else sees it, too.
        assert_eq!(subject.open().read(&place.name("a"), 0, 10).unwrap().as_deref(), Some(content));
    }
}

/// From any byte on, as far as it goes.
pub fn a_part_is_read(subject: &dyn Subject) {
    let place = Place::new(subject, "part");
    place.put("a", b"0123456789", &When::Always);
    let read = |at, size| place.store.read(&place.name("a"), at, size).unwrap().unwrap();
    assert_eq!(read(0, 3), b"012");
    assert_eq!(read(7, 3), b"789");
    assert_eq!(read(7, 100), b"789", "as many as there are");
    assert_eq!(read(10, 5), b"", "nothing is behind its end");
    assert_eq!(read(1_000, 5), b"");
    assert_eq!(read(3, 0), b"");
    assert_eq!(read(3, usize::MAX), b"3456789");
}

/// Of eight who write where nothing is, one is taken, and its content is there.
pub fn only_one_of_racing_writers_creates(subject: &dyn Subject) {
    let place = Place::new(subject, "create");
    for round in 0..10 {
        let (name, barrier) = (format!("a{round}"), Barrier::new(8));
        let put = |writer: u8| {
            barrier.wait();
            matches!(place.put(&name, &[writer], &When::Absent), Put::Done(_)).then_some(writer)
        };
        let winners: Vec<u8> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8).map(|writer| scope.spawn(move || put(writer))).collect();
            writers.into_iter().filter_map(|writer| writer.join().unwrap()).collect()
        });
        let [winner] = winners[..] else { panic!("{winners:?}") };
        assert_eq!(place.get(&name), Some(vec![winner]));
    }
}

/// A version is good for one write, whoever comes in between.
pub fn only_who_has_read_the_newest_replaces_it(subject: &dyn Subject) {
    let place = Place::new(subject, "replace");
    let first = place.done("a", b"one", &When::Absent);
    assert_eq!(place.put("a", b"other", &When::Absent), Put::Refused);
    let second = place.done("a", b"two", &When::Is(first.clone()));
    assert_ne!(first, second);
    assert_eq!(place.put("a", b"late", &When::Is(first.clone())), Put::Refused);
    assert_eq!(place.get("a"), Some(b"two".to_vec()));
    assert_eq!(place.put("b", b"late", &When::Is(first)), Put::Refused, "it is not there");
    assert_eq!(place.get("b"), None);
    let third = place.done("a", b"three", &When::Always);
    assert_eq!(place.put("a", b"late", &When::Is(second)), Put::Refused, "somebody has replaced it without asking");
    place.done("a", b"four", &When::Is(third));
}

/// Four count together: no count is lost.
pub fn every_racing_update_builds_on_the_one_before(subject: &dyn Subject) {
    let place = Place::new(subject, "update");
    place.put("a", b"0", &When::Absent);
    let add = || {
        for _ in 0..10 {
            loop {
                let read = place.store.get(&place.name("a")).unwrap().unwrap();
                let next = std::str::from_utf8(&read.content).unwrap().parse::<u64>().unwrap() + 1;
                if matches!(place.put("a", next.to_string().as_bytes(), &When::Is(read.version)), Put::Done(_)) {
                    break;
                }
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(add))));
    assert_eq!(place.get("a"), Some(b"40".to_vec()));
}

/// Of every size it is read as it was written, as a whole, in part, and in lists.
pub fn a_large_object_is_uploaded_in_parts(subject: &dyn Subject) {
    let place = Place::new(subject, "upload");
    let name = place.name("a");
    // Empty, of one part, of exactly two, and of several of which the last one is short; each replaces the one before.
    for size in [0_usize, 1, 1 << 20, 16 << 20, (20 << 20) + 17] {
        let content = noise(size);
        place.store.upload(&name, size as u64, &mut content.as_slice()).unwrap();
        let read = place.store.get(&name).unwrap().unwrap().content;
        assert!(read == content, "{size}: {} bytes", read.len());
        let middle = place.store.read(&name, (size / 2) as u64, 100).unwrap().unwrap();
        assert_eq!(middle, &content[size / 2..(size / 2 + 100).min(size)]);
        let listed = place.store.list(&name, None).unwrap();
        assert_eq!(listed.iter().map(|listed| listed.size).collect::<Vec<_>>(), [size as u64]);
    }
}

/// Conditions hold for what was uploaded, in parts too.
pub fn what_was_uploaded_is_replaced_by_who_has_read_it(subject: &dyn Subject) {
    let place = Place::new(subject, "uploaded");
    for size in [10, 9 << 20] {
        let name = place.name(&size.to_string());
        place.store.upload(&name, size as u64, &mut noise(size).as_slice()).unwrap();
        assert_eq!(place.store.put(&name, b"other", &When::Absent).unwrap(), Put::Refused);
        let read = place.store.get(&name).unwrap().unwrap().version;
        assert!(matches!(place.store.put(&name, b"next", &When::Is(read.clone())).unwrap(), Put::Done(_)));
        assert_eq!(place.store.put(&name, b"late", &When::Is(read)).unwrap(), Put::Refused);
    }
}

/// Fails behind so many bytes.
struct Breaks(usize);

impl Read for Breaks {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(std::io::Error::other("the disk broke"));
        }
        let size = into.len().min(self.0);
        self.0 -= size;
        Ok(size)
    }
}

/// A source that fails or has another length is the caller's affair; nothing has changed.
pub fn an_upload_that_is_cut_short_leaves_what_was_there(subject: &dyn Subject) {
    let place = Place::new(subject, "cut");
    let name = place.name("a");
    let upload = |size: u64, content: &mut dyn Read, why: &str| {
        let said = place.store.upload(&name, size, content).unwrap_err();
        assert!(matches!(&said, ObjectError::Source { name: of, .. } if *of == name), "{said:?}");
        assert!(said.to_string().contains(why), "{said}");
    };
    for there in [None, Some(b"there".to_vec())] {
        if let Some(content) = &there {
            place.put("a", content, &When::Absent);
        }
        upload(30 << 20, &mut Breaks(20 << 20), "the disk broke");
        upload(30 << 20, &mut std::io::repeat(7).take(20 << 20), "it has 20971520 bytes, and not 31457280");
        upload(20 << 20, &mut std::io::repeat(7), "it has more than 20971520 bytes");
        upload(10, &mut Breaks(5), "the disk broke");
        upload(10, &mut &b"123"[..], "it has 3 bytes, and not 10");
        upload(2, &mut &b"123"[..], "it has more than 2 bytes");
        upload(0, &mut &b"123"[..], "it has more than 0 bytes");
        assert_eq!(place.get("a"), there);
        assert_eq!(place.all("").len(), there.iter().len());
    }
}

/// Many names: what is told is where they differ.
fn assert_same(found: &[String], expected: &[String]) {
    let differ = found.iter().zip(expected).find(|(one, other)| one != other);
    assert!(differ.is_none() && found.len() == expected.len(), "{differ:?}, {} of {}", found.len(), expected.len());
}

/// Names in order of bytes, across folders, from anywhere on.
pub fn a_list_is_in_order_and_in_pages(subject: &dyn Subject) {
    let place = Place::new(subject, "list");
    let mut names: Vec<String> = (0..1_020).map(|number| format!("b/{number:04}")).collect();
    names.extend(["a", "b-1", "b.1", "b/0500-x", "b/0500.d/x", "b0", "c/d/e"].map(str::to_owned));
    place.put_all(&names);
    names.sort_unstable();
    assert_same(&place.all(""), &names);
    let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).cloned().collect::<Vec<_>>();
    for prefix in ["b", "b/", "b/05", "c/d/", "c/d/e", "d"] {
        assert_same(&place.all(prefix), &of(prefix));
    }
    // From anywhere, also from what is not there.
    for after in ["b/0499", "b/0500", "b/0500-", "b/0500/x", "b/0500a", "b/0999", "c"] {
        let first = place.store.list(&place.name(""), Some(&place.name(after))).unwrap().swap_remove(0).name;
        let next = names.iter().find(|name| name.as_str() > after).unwrap();
        assert_eq!(first, place.name(next), "after {after}");
    }
    let listed = place.store.list(&place.name("c"), None).unwrap();
    assert_eq!(listed.iter().map(|listed| listed.size).collect::<Vec<_>>(), [5]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(now.abs_diff(listed[0].modified_ms) < 3_600_000, "{} is no time of today", listed[0].modified_ms);
}

/// Names that are alike up to a slash go one by one.
pub fn what_is_beside_and_below_a_folder_is_another_thing(subject: &dyn Subject) {
    let place = Place::new(subject, "both");
    let names = ["a-b/c", "a/b-1", "a/b/c", "a/b/c1", "ab/c"].map(str::to_owned);
    place.put_all(&names);
    let mut left = names.to_vec();
    for name in &names {
        place.store.delete(&[place.name(name)]).unwrap();
        left.retain(|other| other != name);
        assert_eq!(place.all(""), left);
        assert_eq!(place.get(name), None);
        assert!(left.iter().all(|other| place.get(other).as_deref() == Some(other.as_bytes())), "without {name}");
    }
}

/// More than a server deletes at once, some of them not there; a name is free again.
pub fn deleted_is_gone_and_deleting_again_is_no_error(subject: &dyn Subject) {
    let place = Place::new(subject, "delete");
    let names: Vec<String> = (0..1_010).map(|number| format!("{number:04}")).collect();
    place.put_all(&names);
    let all: Vec<String> = names.iter().map(|name| place.name(name)).collect();
    let (kept, deleted) = all.split_last().unwrap();
    place.store.delete(deleted).unwrap();
    assert_eq!(place.all(""), ["1009"]);
    place.store.delete(&all).unwrap();
    place.store.delete(std::slice::from_ref(kept)).unwrap();
    place.store.delete(&[]).unwrap();
    assert_eq!(place.all(""), Vec::<String>::new());
    assert_eq!(place.get("1009"), None);
    place.done("1009", b"again", &When::Absent);
}

/// In each segment, and in all.
pub fn the_longest_names_are_names(subject: &dyn Subject) {
    let place = Place::new(subject, "long");
    let segment = "s".repeat(LONGEST_SEGMENT);
    let mut name = place.name(&[segment.as_str(); 3].join("/"));
    name.extend(["/", "e".repeat(LONGEST_NAME).as_str()].concat().chars().take(LONGEST_NAME - name.len()));
    assert_eq!(name.len(), LONGEST_NAME);
    assert!(matches!(place.store.put(&name, b"1", &When::Absent).unwrap(), Put::Done(_)));
    assert_eq!(place.store.list(&place.name(""), None).unwrap()[0].name, name);
    assert_eq!(place.store.get(&name).unwrap().unwrap().content, b"1");
    place.store.delete(&[name]).unwrap();
    assert_eq!(place.all(""), Vec::<String>::new());
}

/// By every call, before anything is done.
pub fn what_is_no_name_is_refused(subject: &dyn Subject) {
    let place = Place::new(subject, "names");
    let kept = place.name("kept");
    place.put("kept", b"", &When::Absent);
    let refused = |said: Result<(), ObjectError>| matches!(said, Err(ObjectError::Configuration(_)));
    for name in ["", "/", "a/", "/a", "a//b", "a/../b", "./a", "a b", "a~", "ü", &"x".repeat(LONGEST_SEGMENT + 1)] {
        assert!(refused(place.store.put(name, b"", &When::Always).map(drop)), "{name}");
        assert!(refused(place.store.get(name).map(drop)) && refused(place.store.read(name, 0, 1).map(drop)), "{name}");
        assert!(refused(place.store.upload(name, 0, &mut &b""[..])), "{name}");
        assert!(refused(place.store.delete(&[kept.clone(), name.to_owned()])), "{name}");
    }
    assert_eq!(place.get("kept"), Some(Vec::new()), "a name that is none is seen before anything is deleted");
}
