//! Whole pipelines as processes: the same records through `local` and through four roles on real Kafka and a MongoDB-compatible server, killed and
//! started again in the middle, come to exactly what the generator's truth says (I1, I2, I8, I9).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream::cli::verify::differences;
use millstream::cli::{Admin, snapshot};
use millstream_tests::conformance::unique;
use millstream_tests::load::{Sending, check, check_with_repeats, generated, settings};
use millstream_tests::pipeline::{Pipeline, until};
use millstream_tests::proxy::CuttingProxy;
use millstream_tests::servers::{Kafka, Mongo};
use std::sync::atomic::Ordering;

#[test]
fn local_survives_kill_9_in_mid_load() {
    let load = generated(12, 2, 150).unwrap();
    let mut pipeline = Pipeline::local(&settings(&unique("local-kill"), &load)).unwrap();
    let mut sending = Sending::held(&pipeline, &load);
    for quarter in 1..=3 {
        sending.wait_for_share(quarter, 4).unwrap();
        kill_in_mid_load(&mut pipeline, 0, &sending);
    }
    sending.finish().unwrap();
    assert!(sending.repeated() > 0, "no request was hit");
    check_with_repeats(&pipeline, load.clone()).unwrap();
    pipeline.processes[0].terminate().unwrap();
    pipeline.processes[0].start().unwrap();
    check_with_repeats(&pipeline, load).unwrap();
}

/// One load, through one process on embedded stores and through four on real ones: both come to the truth, and to the same, field by field.
#[test]
fn local_and_four_roles_on_real_servers_come_to_the_same_truth() {
    let load = generated(11, 3, 60).unwrap();
    let local = Pipeline::local(&settings(&unique("local"), &load)).unwrap();
    Sending::start(&local, &load).finish().unwrap();
    let one = check(&local, &load).unwrap();
    drop(local);
    let mut settings = settings(&unique("roles"), &load);
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    let mut roles = Pipeline::roles(&settings).unwrap();
    Sending::start(&roles, &load).finish().unwrap();
    let other = check(&roles, &load).unwrap();
    let differences = differences(&load.truth, &one, &other);
    assert!(differences.is_empty(), "{differences:#?}");
    for process in &mut roles.processes {
        process.terminate().unwrap();
    }
}

#[test]
fn each_role_survives_kill_9_in_mid_load() {
    let load = generated(13, 2, 200).unwrap();
    let mut settings = settings(&unique("roles-kill"), &load);
    settings.kafka = Some(Kafka::shared().unwrap().bootstrap().to_owned());
    settings.mongodb = Some(Mongo::shared().unwrap().uri().to_owned());
    let mut pipeline = Pipeline::roles(&settings).unwrap();
    let mut sending = Sending::held(&pipeline, &load);
    for role in 0..pipeline.processes.len() {
        sending.wait_for_share(role as u64 + 1, 6).unwrap();
        kill_in_mid_load(&mut pipeline, role, &sending);
    }
    sending.finish().unwrap();
    assert!(sending.repeated() > 0, "no request of the gateway was hit");
    check_with_repeats(&pipeline, load).unwrap();
}

#[test]
fn an_answer_that_is_lost_on_its_way_doubles_nothing() {
    let load = generated(14, 1, 60).unwrap();
    let pipeline = Pipeline::local(&settings(&unique("lost-answer"), &load)).unwrap();
    let proxy = CuttingProxy::start(pipeline.gateway().unwrap().port).unwrap();
    let mut sending = Sending::start_to(&format!("http://127.0.0.1:{}", proxy.port), &load);
    sending.finish().unwrap();
    assert!(proxy.cuts.load(Ordering::Relaxed) > 0, "no answer was cut");
    assert!(sending.repeated() > 0, "nothing was sent again");
    check_with_repeats(&pipeline, load).unwrap();
}

#[test]
fn what_the_configuration_says_of_unify_reaches_the_stage() {
    let load = generated(1, 1, 10).unwrap();
    let mut settings = settings(&unique("rules"), &load);
    settings.more = "unify:\n  forbidden_values: [spamuser]\n".to_owned();
    let pipeline = Pipeline::local(&settings).unwrap();
    let (tenant, key) = &settings.tenants[0];
    let answer = reqwest::blocking::Client::new()
        .post(format!("{}/v1/batch", pipeline.gateway().unwrap().url()))
        .bearer_auth(key)
        .header("content-type", "application/json")
        .body(r#"{"batch":[{"type":"event","message_id":"m","event":"Opened","identifiers":{"user_id":"spamuser"}}]}"#)
        .send()
        .unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().unwrap());
    let admin = Admin::new(&pipeline.admins()[0]).unwrap();
    let rejects = until("the reject", || {
        let seen = snapshot::fetch(std::slice::from_ref(&admin), [tenant.as_str()].into_iter())?;
        Ok((!seen.rejects.is_empty()).then_some(seen.rejects))
    })
    .unwrap();
    assert_eq!(rejects[0].reason, "forbidden_identifier");
}

/// `kill -9` and a new start, while records are still to be sent.
fn kill_in_mid_load(pipeline: &mut Pipeline, number: usize, sending: &Sending) {
    let process = &mut pipeline.processes[number];
    process.kill().unwrap();
    assert!(sending.left() > 0, "everything was sent before {} was killed", process.role);
    process.start().unwrap();
}
