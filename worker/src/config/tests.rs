//! What a configuration file may say, and what its errors say.

use super::*;
use std::path::Path;

fn read(text: &str) -> Result<Config, String> {
    parse(text, Path::new("m.yaml")).map_err(|error| error.to_string())
}

const FULL: &str = r#"
pipeline: shop
shards: 4
generation: 2
worker: unify-0
listen: 0.0.0.0:80
admin_listen: "[::1]:81"
data_dir: /var/lib/millstream
owned: [0, 2]
log:
  kafka:
    brokers: [k1:9092, k2:9092]
    replication: 2
    security: {security.protocol: SASL_SSL, sasl.password: hunter2}
    properties: {client.id: shop}
    max_message_bytes: 4MiB
documents:
  mongodb: {uri: "mongodb://app:hunter2@db/?authSource=admin"}
tenants:
  - name: acme
    api_keys:
      - plain: hunter2
      - sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad
limits: {request_bytes: 2MB, records: 100}
gateway: {coalesce: 5ms}
unify:
  limits: {max_record_bytes: 300KiB, max_age: 2d, max_ahead: 5m}
  duplicate_window: 2d
  tenants: {acme: {forbidden_values: [nobody]}}
action: {max_devices: 5, max_bytes: 256KiB, max_merged_bytes: 1MiB}
batch: {max_time: 20ms, max_records: 500, max_bytes: 1MB}
state: {memory: 1GiB, compaction_threads: 4, write_per_second: 50MB}
reaction: {backlog_bytes: 8MiB}
embedded: {retention: 1d}
telemetry: {otlp_endpoint: "http://127.0.0.1:4318", sample_ratio: 1, log_format: json, log_filter: debug}
"#;

#[test]
fn every_field_is_read() {
    let config = read(FULL).unwrap();
    assert_eq!(config.pipeline.as_str(), "shop");
    assert_eq!((config.shards.0, config.generation), (4, 2));
    assert_eq!(config.owned_shards(), [0, 2]);
    assert_eq!(config.listen, "0.0.0.0:80".parse().unwrap());
    let Log::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
    assert_eq!((kafka.brokers.len(), kafka.replication), (2, 2));
    assert_eq!(kafka.store().max_message_bytes, 4 << 20);
    let Documents::Mongodb(mongodb) = &config.documents else { panic!("{:?}", config.documents) };
    assert!(mongodb.uri.contains("hunter2"));
    let keys = &config.tenants[0].api_keys;
    assert_eq!(keys[0].hash(), Some(KeyHash::of("hunter2")));
    assert_eq!(keys[1].hash(), Some(KeyHash::of("abc")));
    assert_eq!(config.limits.request_bytes.bytes(), 2_000_000);
    assert_eq!(config.limits.source().max_records, 100);
    let rules = config.unify.rules();
    assert_eq!((rules.duplicate_window_hours, rules.limits.max_record_bytes), (48, 300 << 10));
    assert_eq!((rules.limits.max_age_hours, rules.limits.max_ahead_minutes), (48, 5));
    assert_eq!(rules.tenants["acme"].forbidden_values, ["nobody"]);
    let limits = config.action.limits();
    assert_eq!((limits.max_devices, limits.max_bytes, limits.max_merged_bytes), (5, 256 << 10, 1 << 20));
    assert_eq!(config.batch.max_time.duration().as_millis(), 20);
    assert_eq!(config.state.memory.bytes(), 1 << 30);
    assert_eq!((config.state.compaction_threads, config.state.write_per_second), (4, Size(50_000_000)));
    assert_eq!(config.reaction.backlog_bytes.bytes(), 8 << 20);
    assert_eq!(config.embedded.retention, Millis(86_400_000));
    assert_eq!(config.telemetry.sample_ratio, Ratio(1.0));
}

#[test]
fn nothing_means_defaults() {
    for text in ["", "# nothing\n", "{}"] {
        assert_eq!(read(text).unwrap(), Config::default());
    }
    assert_eq!(Config::default().owned_shards().len(), 8);
    assert_eq!(Config::default().action.limits(), millstream_stages::action::ActionLimits::default());
    assert_eq!(Kafka::new(vec!["a:1".to_owned()]).store(), KafkaConfig::new("a:1"));
    assert_eq!(read("log: embedded\ndocuments: embedded\nowned: all").unwrap(), Config::default());
}

#[test]
fn what_is_printed_can_be_read_and_tells_no_secret() {
    let config = read(FULL).unwrap();
    let printed = config.to_yaml();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(!format!("{:?}", config.tenants).contains("hunter2"));
    let error = read(&printed).unwrap_err();
    assert!(error.contains("only stands for a secret"), "{error}");
    let again = read(&printed.replace("(redacted)", "another")).unwrap();
    assert_eq!(again.to_yaml(), printed);
    assert_eq!(again.limits, config.limits);
    let default = Config::default();
    assert_eq!(read(&default.to_yaml()).unwrap(), default);
}

#[test]
fn errors_name_the_place_and_what_is_allowed() {
    let cases = [
        ("shards: 8\nshard: 4\n", "m.yaml:2:1: ", "unknown field `shard`, expected one of `pipeline`, `shards`"),
        ("limits:\n  request_bytes: 5 potatoes\n", "m.yaml:2:18: ", "write a whole number with B, KB, MB"),
        ("limits:\n  request_bytes: 5000000\n", "m.yaml:2:18: ", "write a whole number with B, KB, MB"),
        ("gateway:\n  body_timeout: soon\n", "m.yaml:2:17: ", "ms, s, m, h or d"),
        ("gateway:\n  body_timeuot: 5s\n", "m.yaml:2:3: ", "expected one of `body_timeout`"),
        ("shards: 0\n", "m.yaml:1:9: ", "from 1 to 4096"),
        ("shards: 5000\n", "m.yaml:1:9: ", "from 1 to 4096"),
        ("shards: many\n", "m.yaml:1:9: ", "from 1 to 4096"),
        ("owned: [0, x]\n", "m.yaml:1:12: ", "expected u32"),
        ("owned: some\n", "m.yaml:1:8: ", "neither `all` nor a list"),
        ("listen: nowhere\n", "m.yaml:1:9: ", "invalid socket address"),
        ("pipeline: My Shop\n", "m.yaml:1:11: ", "lower-case letters"),
        ("tenants:\n- name: acme\n  apikeys: []\n", "m.yaml:3:3: ", "expected `name` or `api_keys`"),
        ("tenants:\n- api_keys: []\n", "m.yaml:2:3: ", "missing field `name`"),
        ("tenants:\n- name: acme\n  api_keys: [{sha256: abc}]\n", "m.yaml:3:23: ", "64 hexadecimal digits"),
        ("log: pulsar\n", "m.yaml:1:6: ", "expected `embedded` or `kafka`"),
        ("log:\n  kafka:\n    broker: [x]\n", "m.yaml:3:5: ", "expected one of `brokers`"),
        ("telemetry: {sample_ratio: 2}\n", "m.yaml:1:27: ", "a number from 0 to 1"),
        ("telemetry: {log_format: xml}\n", "m.yaml:1:25: ", "expected `text` or `json`"),
        ("shards: 1\nshards: 2\n", "m.yaml:1:1: ", "duplicate field `shards`"),
        ("listen: \"x\nshards: 2\n", "m.yaml:", "while scanning a quoted scalar"),
    ];
    let mut wrong = Vec::new();
    for (text, place, message) in cases {
        let error = read(text).unwrap_err();
        if !error.starts_with(place) || !error.contains(message) {
            wrong.push(format!("{text:?}: `{error}` is not {place}...{message}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_does_not_fit_together_is_named() {
    let key = "api_keys: [{plain: k}]";
    let cases = [
        ("owned: [8]".to_owned(), "owned: there is no shard 8: with shards: 8 they are 0 to 7"),
        ("owned: [1, 0, 1]".to_owned(), "owned: shard 1 is listed twice"),
        ("tenants: [{name: a}, {name: a}]".to_owned(), "tenants[1].name: `a` is also the name of tenants[0]"),
        (
            format!("tenants: [{{name: a, {key}}}, {{name: b, {key}}}]"),
            "tenants[1].api_keys[0]: is the same key as tenants[0]",
        ),
        ("tenants: [{name: a, api_keys: [{}]}]".to_owned(), "tenants[0].api_keys[0]: write either"),
        ("log: {kafka: {brokers: []}}".to_owned(), "log.kafka.brokers: name at least one"),
        ("log: {kafka: {brokers: [a], properties: {acks: '1'}}}".to_owned(), "`acks` is fixed"),
        ("documents: {mongodb: {uri: 'http://x'}}".to_owned(), "documents.mongodb.uri: must start with mongodb://"),
        ("telemetry: {otlp_endpoint: 'localhost:4318'}".to_owned(), "must start with http://"),
        ("limits: {record_bytes: 2MB}".to_owned(), "must not exceed 900KB"),
        ("limits: {depth: 0}".to_owned(), "limits.depth: must be more than 0"),
        (
            "log: {kafka: {brokers: [a], max_message_bytes: 1MiB}}".to_owned(),
            "max_message_bytes must be at least 2097152",
        ),
        ("log: {kafka: {brokers: [a], max_message_bytes: 9GiB}}".to_owned(), "max_message_bytes must be at most"),
        (
            "log: {kafka: {brokers: [a], max_message_bytes: 2MiB}}\naction: {max_bytes: 1025KiB}".to_owned(),
            "action.max_bytes: two users of this size can become one, which must fit into a message of the log: at most half of 2MiB",
        ),
        ("action: {max_bytes: 5MiB}".to_owned(), "at most half of 8MiB"),
        (
            "action: {max_merged_bytes: 511KiB}".to_owned(),
            "action.max_merged_bytes: must be at least action.max_bytes, 512KiB",
        ),
        ("action: {max_merged_bytes: 5MiB}".to_owned(), "action.max_merged_bytes: a document has as much"),
        (
            "log: {kafka: {brokers: [a], max_message_bytes: 2MiB}}".to_owned(),
            "at most half of 2MiB (log.kafka.max_message_bytes)",
        ),
        ("action: {max_bytes: 63KiB}".to_owned(), "action.max_bytes: must be at least 64KiB"),
        (
            "action: {max_identifiers: 49}".to_owned(),
            "action.max_identifiers: must be at least unify.limits.max_identifiers, 50",
        ),
        ("limits: {id_chars: 79}".to_owned(), "limits.id_chars: must be at least 80"),
        ("unify: {duplicate_window: 0ms}".to_owned(), "unify.duplicate_window: must be whole hours, at least 1h"),
        ("unify: {duplicate_window: 90m}".to_owned(), "unify.duplicate_window: must be whole hours"),
        ("unify: {limits: {max_age: 90m}}".to_owned(), "unify.limits.max_age: must be whole hours"),
        ("unify: {limits: {max_ahead: 90s}}".to_owned(), "unify.limits.max_ahead: must be whole minutes"),
        (
            "unify: {limits: {max_record_bytes: 255KiB}}".to_owned(),
            "unify.limits.max_record_bytes: must be at least limits.record_bytes, 256KiB",
        ),
        ("unify: {limits: {max_depth: 9}}".to_owned(), "unify.limits.max_depth: must be at least limits.depth, 10"),
        ("tenants: [{name: a}]\nunify: {tenants: {b: {}}}".to_owned(), "unify.tenants.b: is no tenant"),
        ("action: {max_devices: 0}".to_owned(), "action.max_devices: must be more than 0"),
        ("gateway: {in_flight_bytes: 48MB}".to_owned(), "the largest request, 48520000 bytes"),
    ];
    for (text, message) in cases {
        let error = read(&text).unwrap_err();
        assert!(error.starts_with("m.yaml: ") && error.contains(message), "{text}: {error}");
    }
}

#[test]
fn flags_override_single_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.yaml");
    std::fs::write(&path, FULL).unwrap();
    let args = ConfigArgs {
        config: Some(path.clone()),
        listen: Some("127.0.0.1:0".parse().unwrap()),
        owned: Some("1,3".parse().unwrap()),
        kafka_brokers: vec!["other:9092".to_owned()],
        mongodb_uri: Some("mongodb://other".to_owned()),
        ..ConfigArgs::default()
    };
    let config = load(&args).unwrap();
    assert_eq!((config.listen.port(), config.shards.0), (0, 4));
    assert_eq!(config.owned_shards(), [1, 3]);
    let Log::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
    assert_eq!((kafka.brokers.as_slice(), kafka.replication), (&["other:9092".to_owned()][..], 2));
    let error = load(&ConfigArgs { shards: Some(0), ..args }).unwrap_err();
    assert!(error.to_string().contains("shards: 0 is not a number from 1 to 4096"), "{error}");
    let missing = ConfigArgs { config: Some(path.with_extension("none")), ..ConfigArgs::default() };
    assert!(load(&missing).unwrap_err().to_string().contains("m.none"));
}

#[test]
fn flags_and_environment_are_one_table() {
    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        config: ConfigArgs,
    }
    let command = <Program as clap::CommandFactory>::command();
    let without: Vec<_> =
        command.get_arguments().filter(|arg| arg.get_env().is_none()).map(|arg| arg.get_id().as_str()).collect();
    assert_eq!(without, ["print_config"]);
    let program =
        <Program as clap::Parser>::try_parse_from(["m", "--kafka-brokers", "a:1,b:2", "--sample-ratio", "0.5"])
            .unwrap();
    assert_eq!(program.config.kafka_brokers, ["a:1", "b:2"]);
    assert_eq!(program.config.sample_ratio, Some(Ratio(0.5)));
    assert!(<Program as clap::Parser>::try_parse_from(["m", "--sample-ratio", "7"]).is_err());
}

#[test]
fn the_defaults_of_unify_are_the_stage_s() {
    assert_eq!(Unify::default().rules(), millstream_stages::unify::UnifyConfig::default());
}

#[test]
fn secrets_are_read_from_files_and_printed_as_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (password, uri) = (file("password", "hunter2\n"), file("uri", "mongodb://app:hunter2@db/\r\n"));
    let text = format!(
        "log: {{kafka: {{brokers: [a], security: {{sasl.mechanism: PLAIN}}, security_files: {{sasl.password: {password}}}}}}}
documents: {{mongodb: {{uri_file: {uri}}}}}"
    );
    let config = read(&text).unwrap();
    let Log::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
    assert_eq!(kafka.store().security["sasl.password"], "hunter2");
    let Documents::Mongodb(mongodb) = &config.documents else { panic!("{:?}", config.documents) };
    assert_eq!(mongodb.store().uri, "mongodb://app:hunter2@db/");
    let printed = config.to_yaml();
    assert!(!printed.contains("hunter2"), "{printed}");
    let again = read(&printed.replace("(redacted)", "PLAIN")).unwrap();
    assert_eq!(again, config, "what is printed reads the same files");

    let (missing, empty) = (folder.path().join("missing").display().to_string(), file("empty", "\n"));
    let kafka = |more: &str| format!("log: {{kafka: {{brokers: [a], {more}}}}}");
    let mongodb = |more: &str| format!("documents: {{mongodb: {{{more}}}}}");
    let cases = [
        (
            kafka(&format!("security_files: {{sasl.password: {missing}}}")),
            "security_files.sasl.password: ",
            "cannot be read",
        ),
        (
            kafka(&format!("security_files: {{sasl.password: {empty}}}")),
            "security_files.sasl.password: ",
            "must not be empty",
        ),
        (
            kafka(&format!("security: {{sasl.password: x}}, security_files: {{sasl.password: {password}}}")),
            "security_files.sasl.password: ",
            "write it in one of them",
        ),
        (kafka(&format!("security_files: {{acks: {password}}}")), "log.kafka: ", "acks"),
        (mongodb(&format!("uri: 'mongodb://x', uri_file: {uri}")), "documents.mongodb.uri_file: ", "write one of them"),
        (mongodb(&format!("uri_file: {missing}")), "documents.mongodb.uri_file: ", "cannot be read"),
        (mongodb("database: d"), "documents.mongodb.uri: ", "or leave it out, and give `uri_file`"),
    ];
    for (text, field, message) in cases {
        let error = read(&text).unwrap_err();
        assert!(error.contains(field) && error.contains(message) && !error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn zone_and_node_come_from_flags_for_workers_that_follow_a_plan() {
    let with = |zone: &str, node: &str, text: &str| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.yaml");
        std::fs::write(&file, text).unwrap();
        let args = ConfigArgs {
            config: Some(file),
            zone: Some(zone.to_owned()),
            node: Some(node.to_owned()),
            ..ConfigArgs::default()
        };
        load(&args).map_err(|error| error.to_string())
    };
    let planned = "ownership: {plan: {zone: written}}";
    let place = |config: &Config| match &config.ownership {
        Ownership::Plan(plan) => [&plan.zone, &plan.node].map(|place| place.as_ref().map(ToString::to_string)),
        Ownership::Static => panic!("{config:?}"),
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        place(&with("eu_1", "ip-10-0-0-1.compute.internal", planned).unwrap()),
        [some("eu_1"), some("ip-10-0-0-1.compute.internal")]
    );
    assert_eq!(place(&with("", "", planned).unwrap()), [some("written"), None]);
    assert!(with("a zone", "", planned).unwrap_err().contains("ownership.plan.zone: `a zone` is not the name"));
    assert!(
        with("eu", "", "shards: 2")
            .unwrap_err()
            .contains("ownership: zone and node are for workers that follow a plan")
    );
    assert!(with("", "", "shards: 2").is_ok());
}

#[test]
fn an_object_store_is_a_folder_or_a_bucket_whose_keys_are_not_shown() {
    let config = read("objects: {folder: {path: /mnt/shared}}\ncheckpoints: {interval: 30s, retained: 5}").unwrap();
    assert_eq!(config.objects, Objects::Folder(ObjectFolder { path: "/mnt/shared".into() }));
    let policy = config.checkpoints.policy();
    assert_eq!((policy.interval_ms, policy.retained, policy.min_pause_ms), (30_000, 5, 10_000));
    assert_eq!(read("objects: none").unwrap(), Config::default());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (id, secret) = (file("id", "AKIA1\n"), file("secret", "hunter2\n"));
    let text = format!(
        "objects: {{s3: {{bucket: b, endpoint: 'https://minio:9000', prefix: a/b, encryption: {{kms: k}}, access_key_id_file: {id}, secret_access_key_file: {secret}}}}}"
    );
    let path = file("m.yaml", &text);
    let config = load(&ConfigArgs { config: Some(path.into()), ..ConfigArgs::default() }).unwrap();
    let Objects::S3(s3) = &config.objects else { panic!("{:?}", config.objects) };
    let store = s3.store();
    assert_eq!((store.bucket.as_str(), store.folder.as_str(), store.path_style), ("b", "a/b", true));
    assert!(!format!("{config:?}{store:?}").contains("hunter2"));
    let shown = config.to_yaml();
    assert!(
        !shown.contains("hunter2") && !shown.contains("AKIA1") && shown.contains("secret_access_key_file"),
        "{shown}"
    );
    let again = load(&ConfigArgs { config: Some(file("again.yaml", &shown).into()), ..ConfigArgs::default() });
    assert_eq!(again.unwrap(), config, "what is printed can be used");
}

#[test]
fn what_checkpoints_cannot_be_is_said_by_its_field() {
    for (text, said) in [
        ("objects: {s3: {bucket: b, access_key_id: x}}", "objects.s3: give both the access key and its secret"),
        ("objects: {s3: {bucket: b, endpoint: 'minio:9000'}}", "objects.s3"),
        ("objects: {s3: {region: x}}", "missing field `bucket`"),
        ("objects: {folder: {}}", "missing field `path`"),
        ("checkpoints: {interval: 10ms}", "checkpoints.interval: must be from 1s to 1d"),
        ("checkpoints: {retained: 0}", "checkpoints.retained: must be a number from 1 to 100"),
        ("checkpoints: {upload_per_second: 1KB}", "checkpoints.upload_per_second: must be 0B"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.yaml");
        std::fs::write(&path, text).unwrap();
        let error = load(&ConfigArgs { config: Some(path), ..ConfigArgs::default() }).unwrap_err().to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}
