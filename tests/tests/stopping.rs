//! Ctrl-C, again and again under load: the process ends well, with every database closed, and nothing is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_tests::conformance::unique;
use millstream_tests::load::{Sending, check_with_repeats, generated, settings};
use millstream_tests::pipeline::{Pipeline, Process, until};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Rounds of start, load and Ctrl-C, as far as they fit into the time.
const ROUNDS: usize = 40;
const TIME: Duration = Duration::from_secs(25);

/// RocksDB's own log of each database below a folder.
fn logs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => logs(&path),
            false if path.file_name().is_some_and(|name| name == "LOG") => vec![path],
            false => Vec::new(),
        })
        .collect()
}

/// RocksDB says so as the last thing.
fn closed(log: &Path) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.contains("Shutdown complete"))
}

/// Who does not close a database before `main` ends leaves its threads to the last destructors, which abort the process now and then.
fn assert_closed(process: &Process) {
    let logs = logs(&process.data());
    assert!(logs.iter().any(|log| log.ends_with("documents/LOG")), "{logs:?}");
    assert!(logs.iter().any(|log| log.ends_with("log/LOG")), "{logs:?}");
    for log in logs {
        assert!(closed(&log), "{} was not closed:\n{}", log.display(), process.log());
    }
}

/// Somebody looks inside, too, and is cut off.
fn follow(process: &Process, path: &str) -> reqwest::blocking::Response {
    let url = format!("{}{path}", process.admin_url());
    let answer = reqwest::blocking::Client::new().get(url).send().unwrap();
    assert!(answer.status().is_success());
    answer
}

#[test]
fn ctrl_c_under_load_ends_well_every_time() {
    let load = generated(21, 1, 300).unwrap();
    let mut pipeline = Pipeline::local(&settings(&unique("ctrl-c"), &load)).unwrap();
    let mut sending = Sending::paced(&pipeline.processes[0].url(), &load, TIME);
    let began = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS && began.elapsed() < TIME {
        let process = &mut pipeline.processes[0];
        let _readers = (rounds % 3 == 0).then(|| {
            ["/v1/tail/events?follow=true", "/v1/documents?tenant=t&collection=users"].map(|path| follow(process, path))
        });
        process.signal("INT").unwrap();
        assert_eq!(process.ended().unwrap(), Some(0), "in round {rounds}:\n{}", process.log());
        assert_closed(process);
        rounds += 1;
        process.start().unwrap();
    }
    // How many there are is the speed of the machine.
    assert!(rounds >= 3, "only {rounds} rounds in {TIME:?}");
    sending.finish().unwrap();
    check_with_repeats(&pipeline, load).unwrap();
}

/// Before the public port is open, while shards are being opened.
#[test]
fn ctrl_c_at_the_start_ends_well() {
    let load = generated(22, 1, 1).unwrap();
    let mut pipeline = Pipeline::local(&settings(&unique("early"), &load)).unwrap();
    let process = &mut pipeline.processes[0];
    process.terminate().unwrap();
    for _ in 0..5 {
        process.launch().unwrap();
        // Opening a database begins its log anew.
        let opened = || Ok((!closed(&process.data().join("log/LOG"))).then_some(()));
        until("the first database is opened", opened).unwrap();
        process.signal("INT").unwrap();
        assert_eq!(process.ended().unwrap(), Some(0), "{}", process.log());
        assert_closed(process);
    }
}

/// What cannot go on ends with its threads joined: exit code 2 and a reason, whatever is open already.
#[test]
fn a_taken_port_is_said_and_nothing_is_left_open() {
    let load = generated(23, 1, 1).unwrap();
    let mut pipeline = Pipeline::local(&settings(&unique("port"), &load)).unwrap();
    let process = &mut pipeline.processes[0];
    process.terminate().unwrap();
    let taken = std::net::TcpListener::bind(("127.0.0.1", process.port)).unwrap();
    process.launch().unwrap();
    assert_eq!(process.ended().unwrap(), Some(2), "{}", process.log());
    assert!(process.log().contains("choose another address by `listen`"), "{}", process.log());
    assert_closed(process);
    drop(taken);
}
