//! What the suite of object stores does not ask: who is not let in, a server that is away, answers that are lost, and what is seen from outside.

use super::minio;
use millstream_shard::objects::{ObjectError, ObjectStore, Put, When};
use millstream_stores::s3::survey::{Found, Trial};
use millstream_stores::s3::{Credentials, Encryption, Right, S3Config, S3Objects};
use millstream_tests::bucket::Bucket;
use millstream_tests::canned::{Answer, Canned};
use millstream_tests::conformance::{noise, unique};
use millstream_tests::proxy::CuttingProxy;
use millstream_tests::servers::Minio;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A server of the process's, and a folder of the case's.
fn config(what: &str) -> S3Config {
    S3Config { folder: unique(what), ..minio().0 }
}

fn open(config: S3Config) -> S3Objects {
    S3Objects::new(config).unwrap()
}

fn root(secret: &str) -> Credentials {
    let Credentials::Static { access_key_id, .. } = minio().0.credentials else { panic!("no static credentials") };
    Credentials::Static { access_key_id, secret_access_key: secret.to_owned(), session_token: None }
}

/// What every call says.
fn all_calls(store: &dyn ObjectStore) -> Vec<ObjectError> {
    let content = noise(9 << 20);
    [
        store.get("a").map(drop),
        store.read("a", 0, 1).map(drop),
        store.put("a", b"1", &When::Always).map(drop),
        store.put("a", b"1", &When::Absent).map(drop),
        store.put("a", b"1", &When::Is(millstream_shard::objects::Version("\"1\"".to_owned()))).map(drop),
        store.upload("a", 1, &mut &b"1"[..]),
        store.upload("a", content.len() as u64, &mut content.as_slice()),
        store.list("", None).map(drop),
        store.delete(&["a".to_owned()]),
    ]
    .into_iter()
    .map(Result::unwrap_err)
    .collect()
}

fn assert_configuration(store: &dyn ObjectStore, advice: &str) {
    for error in all_calls(store) {
        assert!(matches!(&error, ObjectError::Configuration(said) if said.contains(advice)), "{error}");
    }
}

#[test]
fn whoever_is_not_let_in_is_told_why() {
    let wrong = S3Config { credentials: root("wrong-secret"), ..config("secret") };
    assert_configuration(&open(wrong), "the secret access key does not belong to the access key id");
    let nobody = Credentials::Static {
        access_key_id: "nobody".to_owned(),
        secret_access_key: "nothing-at-all".to_owned(),
        session_token: None,
    };
    assert_configuration(
        &open(S3Config { credentials: nobody, ..config("id") }),
        "the store does not know this access key id",
    );
}

#[test]
fn a_bucket_that_is_not_there_is_told_of_and_is_no_missing_object() {
    let elsewhere = S3Config { bucket: "elsewhere".to_owned(), ..config("bucket") };
    assert_configuration(&open(elsewhere), "create the bucket");
}

#[test]
fn two_folders_of_a_bucket_do_not_see_each_other() {
    let outer = config("folders");
    let inner = S3Config { folder: format!("{}/inner", outer.folder), ..outer.clone() };
    let beside = S3Config { folder: format!("{}-2", outer.folder), ..outer.clone() };
    for (store, name) in [(open(inner.clone()), "in"), (open(beside.clone()), "beside")] {
        store.put(name, name.as_bytes(), &When::Absent).unwrap();
    }
    let names = |config: &S3Config| -> Vec<String> {
        open(config.clone()).list("", None).unwrap().into_iter().map(|listed| listed.name).collect()
    };
    assert_eq!(names(&inner), ["in"]);
    assert_eq!(names(&beside), ["beside"]);
    assert_eq!(names(&outer), ["inner/in"]);
    assert_eq!(open(inner).get("beside").unwrap(), None);
}

/// Also when they fill more than a page.
#[test]
fn what_others_have_put_into_the_folder_is_passed_over() {
    let config = config("others");
    let bucket = Bucket::of(&config).unwrap();
    for number in 0..1_001 {
        bucket.put(&format!("{}/not ours {number}", config.folder), b"").unwrap();
    }
    let store = open(config);
    assert_eq!(store.list("", None).unwrap(), []);
    store.put("ours", b"1", &When::Absent).unwrap();
    assert_eq!(store.list("", None).unwrap()[0].name, "ours");
    assert_eq!(store.list("", Some("ours")).unwrap(), []);
}

#[test]
fn an_upload_that_fails_leaves_no_parts() {
    let config = config("parts");
    let (store, bucket) = (open(config.clone()), Bucket::of(&config).unwrap());
    let (size, key) = (40_u64 << 20, format!("{}/a", config.folder));
    let error = store.upload("a", size, &mut noise(30 << 20).as_slice()).unwrap_err();
    assert!(matches!(error, ObjectError::Source { .. }), "{error}");
    let error = store.upload("a", size, &mut std::io::repeat(1)).unwrap_err();
    assert!(matches!(error, ObjectError::Source { .. }), "{error}");
    assert_eq!(bucket.unfinished_uploads(&key).unwrap(), 0);
    bucket.begin_upload(&key).unwrap();
    assert_eq!(bucket.unfinished_uploads(&key).unwrap(), 1, "they would be seen");
}

#[test]
fn what_is_written_is_encrypted_as_the_configuration_says() {
    for (encryption, algorithm, key) in [
        (Encryption::Bucket, None, None),
        (Encryption::Store, Some("AES256"), None),
        (Encryption::Kms { key: Some("tests".to_owned()) }, Some("aws:kms"), Some("arn:aws:kms:tests")),
        (Encryption::Kms { key: None }, Some("aws:kms"), Some("arn:aws:kms:tests")),
    ] {
        let config = S3Config { encryption, ..config("encrypted") };
        let (store, bucket) = (open(config.clone()), Bucket::of(&config).unwrap());
        store.put("put", b"1", &When::Absent).unwrap();
        store.upload("uploaded", 9 << 20, &mut noise(9 << 20).as_slice()).unwrap();
        for name in ["put", "uploaded"] {
            let (by, with) = bucket.encryption(&format!("{}/{name}", config.folder)).unwrap();
            assert_eq!((by.as_deref(), with.as_deref()), (algorithm, key), "{name} {:?}", config.encryption);
        }
    }
}

#[test]
fn a_key_for_encryption_that_is_not_there_is_told_of() {
    let config = S3Config { encryption: Encryption::Kms { key: Some("other".to_owned()) }, ..config("key") };
    let error = open(config).put("a", b"1", &When::Always).unwrap_err();
    assert!(matches!(&error, ObjectError::Configuration(said) if said.contains("key")), "{error}");
}

/// Everything that is under way fails in time, and works again by itself.
#[test]
fn a_server_that_is_away_is_unavailable_until_it_is_back() {
    let mut minio = Minio::start().unwrap();
    let config = S3Config {
        connect_timeout_ms: 500,
        attempt_timeout_ms: 1_000,
        operation_timeout_ms: 2_000,
        ..minio.config("away")
    };
    let store = open(config);
    let Put::Done(version) = store.put("a", b"before", &When::Absent).unwrap() else { panic!("refused") };
    let are_unavailable = |what: &str| {
        let began = Instant::now();
        let errors = all_calls(&store);
        assert!(errors.iter().all(|error| matches!(error, ObjectError::Unavailable(_))), "{what}: {errors:?}");
        assert!(began.elapsed() < Duration::from_secs(2 * errors.len() as u64 + 5), "{what}: {:?}", began.elapsed());
    };
    super::trouble::stop(minio.server());
    are_unavailable("hangs");
    minio.kill().unwrap();
    are_unavailable("killed");
    minio.start_again().unwrap();
    // What was on its way when it hung may have been written since, or not.
    let read = store.get("a").unwrap().unwrap();
    assert!(read.content == b"before" && read.version == version || read.content == b"1", "{read:?}");
    assert!(matches!(store.put("a", b"after", &When::Is(read.version)).unwrap(), Put::Done(_)));
    store.upload("b", 9 << 20, &mut noise(9 << 20).as_slice()).unwrap();
    assert_eq!(store.list("", None).unwrap().len(), 2);
}

/// It was written, and refusing it would say that somebody else was quicker.
#[test]
fn a_conditional_write_whose_answer_is_lost_is_unknown_and_never_refused() {
    let config = config("lost");
    let behind = || {
        let proxy = CuttingProxy::start(Minio::shared().unwrap().port()).unwrap();
        let endpoint = Some(format!("http://127.0.0.1:{}", proxy.port));
        (open(S3Config { endpoint, ..config.clone() }), proxy)
    };
    let beside = open(config.clone());
    // Cut is every second connection, from the first on.
    let (store, proxy) = behind();
    let lost = store.put("a", b"1", &When::Absent);
    assert!(matches!(lost, Err(ObjectError::Unavailable(_))), "{lost:?}");
    assert_eq!(proxy.cuts.load(Ordering::Relaxed), 1);
    let written = beside.get("a").unwrap().unwrap();
    assert_eq!(written.content, b"1");
    let (store, _proxy) = behind();
    let lost = store.put("a", b"2", &When::Is(written.version));
    assert!(matches!(lost, Err(ObjectError::Unavailable(_))), "{lost:?}");
    assert_eq!(beside.get("a").unwrap().unwrap().content, b"2");
    // All others are sent again.
    let (store, proxy) = behind();
    assert!(matches!(store.put("a", b"3", &When::Always).unwrap(), Put::Done(_)));
    assert_eq!(proxy.cuts.load(Ordering::Relaxed), 1);
}

#[test]
fn tls_is_trusted_by_the_authority_that_is_given_and_no_other() {
    let minio = Minio::start_secure().unwrap();
    let store = open(minio.config("tls"));
    store.put("a", b"1", &When::Absent).unwrap();
    assert_eq!(store.get("a").unwrap().unwrap().content, b"1");
    let other = millstream_tests::servers::certificates::Authority::new().unwrap();
    let distrusting = open(S3Config { ca_file: Some(other.path()), ..minio.config("tls") });
    let error = distrusting.get("a").unwrap_err();
    assert!(
        matches!(&error, ObjectError::Configuration(said) if said.contains("name the file of the authority")),
        "{error}"
    );
}

#[test]
fn a_survey_finds_a_good_bucket_good_and_leaves_nothing() {
    let config = config("survey");
    let found = open(config.clone()).survey().unwrap();
    assert!(found.is_good(), "{found:?}");
    assert_eq!(open(config).list("", None).unwrap(), []);
}

#[test]
fn a_survey_names_the_rights_that_are_missing() {
    const ALL: [(Right, &str); 5] = [
        (Right::List, "s3:ListBucket"),
        (Right::Get, "s3:GetObject"),
        (Right::Put, "s3:PutObject"),
        (Right::Delete, "s3:DeleteObject"),
        (Right::Abort, "s3:AbortMultipartUpload"),
    ];
    let config = config("rights");
    let bucket = Bucket::of(&config).unwrap();
    let survey = |actions: &[&str]| {
        let credentials = bucket.credentials(actions).unwrap();
        open(S3Config { credentials, ..config.clone() }).survey().unwrap()
    };
    let all: Vec<&str> = ALL.iter().map(|(_, name)| *name).collect();
    assert!(survey(&all).is_good());
    for (right, name) in ALL {
        let others: Vec<&str> = all.iter().copied().filter(|other| *other != name).collect();
        let found = survey(&others);
        assert_eq!((right.to_string().as_str(), &found.forbidden[..]), (name, &[right][..]), "{found:?}");
        let untried = if right == Right::Put { vec![Trial::Read, Trial::Condition, Trial::Parts] } else { vec![] };
        assert_eq!((&found.unable[..], found.untried), (&[][..], untried), "without {name}");
    }
}

#[test]
fn a_survey_of_what_cannot_be_surveyed_says_why() {
    let error = open(S3Config { credentials: root("wrong-secret"), ..config("survey") }).survey().unwrap_err();
    assert!(matches!(&error, ObjectError::Configuration(said) if said.contains("secret access key")), "{error}");
    let nowhere = S3Config { endpoint: Some("http://127.0.0.1:9".to_owned()), ..config("survey") };
    assert!(matches!(open(nowhere).survey(), Err(ObjectError::Unavailable(_))));
}

/// Answers of servers that are not as they should be, or not today.
mod canned {
    use super::*;

    fn start(answer: impl Fn(usize, &str) -> Answer + Send + 'static) -> (S3Objects, Canned) {
        let canned = Canned::start(answer).unwrap();
        let config = S3Config { endpoint: Some(canned.endpoint.clone()), folder: "f".to_owned(), ..minio().0 };
        (open(config), canned)
    }

    fn done() -> Answer {
        Answer::new(200, "").with("etag", "\"1\"")
    }

    #[test]
    fn a_write_that_another_came_into_is_written_again_and_refused_in_the_end() {
        let conflict = || Answer::error(409, "ConditionalRequestConflict");
        let (store, canned) = start(move |number, _| if number < 2 { conflict() } else { done() });
        assert!(matches!(store.put("a", b"1", &When::Absent).unwrap(), Put::Done(_)));
        assert_eq!(canned.requests().len(), 3);
        let (store, canned) = start(move |_, _| conflict());
        assert_eq!(store.put("a", b"1", &When::Absent).unwrap(), Put::Refused);
        assert_eq!(canned.requests().len(), 4);
    }

    #[test]
    fn a_conditional_write_is_sent_once_all_else_as_often_as_is_configured() {
        for code in ["SlowDown", "InternalError"] {
            let (store, canned) = start(move |_, _| Answer::error(503, code));
            let error = store.put("a", b"1", &When::Absent).unwrap_err();
            assert!(matches!(&error, ObjectError::Unavailable(said) if said.contains(code)), "{error}");
            assert_eq!(canned.requests().len(), 1);
            assert!(canned.requests()[0].to_lowercase().contains("if-none-match: *"), "{:?}", canned.requests());
            assert!(matches!(store.put("a", b"1", &When::Always), Err(ObjectError::Unavailable(_))));
            assert_eq!(canned.requests().len(), 1 + 3);
            assert!(matches!(store.get("a"), Err(ObjectError::Unavailable(_))));
            assert_eq!(canned.requests().len(), 1 + 3 + 3);
        }
    }

    #[test]
    fn content_that_breaks_off_is_asked_for_again() {
        let broken = || Answer { missing: 5, ..Answer { body: "01234".to_owned(), ..done() } };
        let (store, _canned) = start(move |number, _| match number {
            0 => broken(),
            _ => Answer { body: "0123456789".to_owned(), ..done() },
        });
        assert_eq!(store.get("a").unwrap().unwrap().content, b"0123456789");
        let (store, canned) = start(move |_, _| broken());
        assert!(matches!(store.get("a"), Err(ObjectError::Unavailable(_))));
        assert_eq!(canned.requests().len(), 3);
    }

    #[test]
    fn a_list_that_breaks_off_is_unavailable() {
        let (store, canned) = start(|_, _| Answer { missing: 99, ..Answer::new(200, "<ListBucketResult>") });
        let error = store.list("", None).unwrap_err();
        assert!(matches!(error, ObjectError::Unavailable(_)), "{error}");
        assert_eq!(canned.requests().len(), 3);
    }

    #[test]
    fn content_that_is_not_what_its_checksum_says_is_damaged() {
        let (store, _canned) =
            start(|_, _| Answer { body: "1".to_owned(), ..done() }.with("x-amz-checksum-crc32", "AAAAAA=="));
        let error = store.get("a").unwrap_err();
        assert!(matches!(&error, ObjectError::Damaged { name, .. } if name == "a"), "{error}");
    }

    #[test]
    fn a_server_that_knows_no_ranges_gives_parts_all_the_same() {
        let (store, _canned) = start(|_, _| Answer { body: "0123456789".to_owned(), ..done() });
        assert_eq!(store.read("a", 3, 4).unwrap().unwrap(), b"3456");
        assert_eq!(store.read("a", 8, 4).unwrap().unwrap(), b"89");
        assert_eq!(store.read("a", 80, 4).unwrap().unwrap(), b"");
    }

    #[test]
    fn what_is_no_s3_at_all_is_a_matter_of_configuration() {
        for (status, body) in [(404, "<html>not found</html>"), (200, "<html>welcome</html>"), (403, "")] {
            let (store, _canned) = start(move |_, _| Answer::new(status, body));
            for error in [store.list("", None).unwrap_err(), store.get("a").map(|got| panic!("{got:?}")).unwrap_err()] {
                assert!(matches!(&error, ObjectError::Configuration(_)), "{status} {body}: {error}");
            }
        }
    }

    /// It keeps no conditions, and cannot delete.
    #[test]
    fn a_survey_finds_a_store_out_that_takes_everything() {
        let (store, _canned) = start(|_, head| match head.split(' ').collect::<Vec<_>>()[..2] {
            ["GET", path] if path.contains("list-type") => Answer::new(200, "<ListBucketResult></ListBucketResult>"),
            ["GET", _] => Answer { body: "1".to_owned(), ..done() },
            ["POST", path] if path.contains("uploads") => {
                let result = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";
                Answer::new(200, result)
            }
            ["POST", path] if path.contains("uploadId") => {
                Answer::new(200, "<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
            }
            ["POST", _] => Answer::error(501, "NotImplemented"),
            _ => done(),
        });
        let Found { forbidden, unable, untried, .. } = store.survey().unwrap();
        assert_eq!((forbidden.len(), untried.len()), (0, 0));
        for (said, expected) in unable.iter().zip(["If-None-Match", "If-Match", "NotImplemented"]) {
            assert!(said.contains(expected), "{unable:?}");
        }
        assert_eq!(unable.len(), 3, "{unable:?}");
    }
}

/// Credentials that a process finds where it runs. The children are this test binary again, with the environment of a machine that has some, or none.
mod ambient {
    use super::*;

    const ENDPOINT: &str = "MILLSTREAM_TEST_ENDPOINT";

    #[test]
    #[ignore = "runs as a child of another test"]
    fn child_asks() {
        let Ok(endpoint) = std::env::var(ENDPOINT) else { return };
        let folder = unique("ambient");
        let config =
            S3Config { endpoint: Some(endpoint), path_style: true, folder, ..S3Config::new("us-east-1", "millstream") };
        match open(config).put("a", b"1", &When::Absent) {
            Ok(put) => println!("SAID {put:?}"),
            Err(error) => println!("SAID {error:?}"),
        }
    }

    fn said(environment: &[(&str, &str)]) -> String {
        let mut command = Command::new(std::env::current_exe().unwrap());
        for (known, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(known);
        }
        let endpoint = minio().0.endpoint.unwrap();
        let output = command
            .args(["--exact", "s3::ambient::child_asks", "--ignored", "--nocapture"])
            .env(ENDPOINT, endpoint)
            // Nobody but a test's own server is asked.
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find_map(|line| line.split_once("SAID ")).unwrap_or_else(|| panic!("{output:?}")).1.to_owned()
    }

    #[test]
    fn they_come_from_the_environment_or_from_the_container_or_are_told_to_be_missing() {
        let rights = ["s3:PutObject"];
        let Credentials::Static { access_key_id: id, secret_access_key: secret, session_token: Some(token) } =
            Bucket::of(&minio().0).unwrap().credentials(&rights).unwrap()
        else {
            panic!("no static credentials")
        };
        let variables =
            [("AWS_ACCESS_KEY_ID", &*id), ("AWS_SECRET_ACCESS_KEY", &*secret), ("AWS_SESSION_TOKEN", &*token)];
        assert!(said(&variables).starts_with("Done"), "{}", said(&variables));

        let answer = serde_json::json!({
            "AccessKeyId": id, "SecretAccessKey": secret, "Token": token, "Expiration": "2099-01-01T00:00:00Z",
        });
        let agent = Canned::start(move |_, _| Answer::new(200, &answer.to_string())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("token"), "of-this-pod").unwrap();
        let (address, file) = (format!("{}/v1/credentials", agent.endpoint), folder.path().join("token"));
        let container = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*address),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
        ];
        assert!(said(&container).starts_with("Done"), "{}", said(&container));
        assert!(agent.requests()[0].contains("of-this-pod"), "{:?}", agent.requests());

        let none = said(&[]);
        assert!(none.starts_with("Configuration") && none.contains("give credentials"), "{none}");
    }
}
