//! The resources on a real API server: they are installed as users install them, and each rule refuses what it must, with its message, before anything is stored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use millstream_tests::servers::{ApiServer, Kubectl};
use serde_json::{Value, json};

/// The API server with the resources installed by plain `kubectl apply`.
fn server() -> &'static Kubectl {
    ApiServer::shared().unwrap().kubectl()
}

fn pipeline(name: &str) -> Value {
    json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "image": "registry.example.com/millstream:0.1.0",
            "kafka": {"bootstrapServers": ["kafka:9092"]},
            "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}}},
        },
    })
}

/// The same with something else at a path such as `/spec/shards`; `null` takes it away.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    let (parent, member) = path.rsplit_once('/').unwrap();
    let parent = parent
        .split('/')
        .skip(1)
        .fold(&mut object, |at, name| at.as_object_mut().unwrap().entry(name).or_insert_with(|| json!({})));
    let members = parent.as_object_mut().unwrap();
    if value.is_null() {
        members.remove(member).map(drop).unwrap()
    } else {
        members.insert(member.to_owned(), value).map_or((), drop)
    }
    object
}

/// What the API server says of it, without storing it; `None` when it has nothing against it.
fn refused(object: &Value) -> Option<String> {
    let said = server()
        .try_run(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"], &object.to_string())
        .unwrap();
    (!said.status.success()).then(|| String::from_utf8_lossy(&said.stderr).into_owned())
}

fn apply(object: &Value) {
    server().run(&["apply", "--server-side", "-f", "-"], &object.to_string()).unwrap();
}

fn stored(kind: &str, name: &str) -> Value {
    serde_json::from_str(&server().run(&["get", kind, name, "-o", "json"], "").unwrap()).unwrap()
}

#[test]
fn what_is_wrong_is_refused_with_what_to_do() {
    let plain =
        |sasl: &str| json!({"mechanism": sasl, "username": "u", "password": {"name": "kafka", "key": "password"}});
    let cases = [
        ("/metadata/name", json!("a-name-that-is-longer-than-forty-characters"), "40 characters"),
        ("/metadata/name", json!("with.dots"), "take one without dots, such as orders"),
        ("/metadata/name", json!("1st"), "the name begins with a letter"),
        ("/spec/image", Value::Null, "spec.image: Required value"),
        ("/spec/image", json!("two words"), "spec.image"),
        ("/spec/shards", json!(0), "spec.shards"),
        ("/spec/shards", json!(4097), "spec.shards"),
        ("/spec/standbys", json!(3), "spec.standbys"),
        ("/spec/kafka/bootstrapServers", json!([]), "spec.kafka.bootstrapServers"),
        ("/spec/kafka/bootstrapServers", json!(["kafka"]), "spec.kafka.bootstrapServers[0]"),
        ("/spec/kafka/bootstrapServers", json!(["a:1", "a:1"]), "duplicate"),
        ("/spec/kafka/sasl", plain("PLAIN"), "sends the password in the clear"),
        ("/spec/kafka/properties", json!({"sasl.password": "secret"}), "set kafka.tls (instead of ssl.*, security.*)"),
        ("/spec/kafka/properties", json!({"client.id": "shop", "security.protocol": "sasl_plaintext"}), "kafka.sasl"),
        ("/spec/kafka/properties", json!({"ssl.key.pem": "key"}), "from Secrets"),
        ("/spec/kafka/properties", json!({"enable.ssl.certificate.verification": "false"}), "kafka.tls"),
        ("/spec/kafka/properties", json!({"enable.sasl.oauthbearer.unsecure.jwt": "true"}), "kafka.sasl"),
        ("/spec/kafka/properties", json!({"https.ca.pem": "ca"}), "kafka.tls"),
        ("/spec/kafka/topics", json!("Mine"), "Managed"),
        ("/spec/kafka/topics", json!("Strimzi"), "needs kafka.strimzi.cluster"),
        ("/spec/kafka/strimzi", json!({"cluster": "main"}), "set both, or neither"),
        ("/spec/kafka/retention/ingress", json!("a week"), "spec.kafka.retention.ingress"),
        ("/spec/kafka/retention/ingress", json!("0d"), "give a duration above 0"),
        ("/spec/kafka/retention/events", json!("00ms"), "give a duration above 0"),
        ("/spec/kafka/retention/rejects", json!("99999999d"), "at most 7 digits"),
        ("/spec/documentStore", json!({}), "exactly one document store"),
        ("/spec/objectStore", json!({}), "exactly one object store"),
        (
            "/spec/objectStore/s3",
            json!({"bucket": "checkpoints", "accessKeyId": {"name": "s3", "key": "id"}}),
            "or neither",
        ),
        ("/spec/objectStore/s3", json!({"bucket": "checkpoints", "kmsKeyId": "k"}), "kmsKeyId is for"),
        (
            "/spec/objectStore/s3",
            json!({"bucket": "checkpoints", "kmsKeyId": "k", "serverSideEncryption": "AES256"}),
            "kmsKeyId is for",
        ),
        (
            "/spec/objectStore/s3",
            json!({"bucket": "checkpoints", "ca": {"name": "s3", "key": "ca"}}),
            "endpoint: https://",
        ),
        ("/spec/objectStore/s3", json!({"bucket": "checkpoints", "prefix": "/data"}), "spec.objectStore.s3.prefix"),
        ("/spec/objectStore/s3", json!({"bucket": "checkpoints", "prefix": "team data"}), "spec.objectStore.s3.prefix"),
        ("/spec/objectStore/s3", json!({"bucket": "checkpoints", "prefix": "a/../b"}), "are no names in a bucket"),
        ("/spec/objectStore/s3", json!({"bucket": "checkpoints", "endpoint": "https://user@minio"}), "s3.endpoint"),
        ("/spec/checkpoints/uploadPerSecond", json!("100000000000000u"), "at least 100k"),
        ("/spec/checkpoints/interval", json!("500ms"), "from 1s to 24h"),
        ("/spec/checkpoints/interval", json!("1d"), "from 1s to 24h"),
        ("/spec/checkpoints/interval", json!("25h"), "from 1s to 24h"),
        ("/spec/checkpoints/minPause", json!("2d"), "24h at most"),
        ("/spec/checkpoints/retained", json!(0), "spec.checkpoints.retained"),
        ("/spec/checkpoints/maxConcurrent", json!(65), "spec.checkpoints.maxConcurrent"),
        ("/spec/checkpoints/uploadPerSecond", json!("1k"), "at least 100k"),
        ("/spec/checkpoints/uploadPerSecond", json!("fast"), "at least 100k"),
        ("/spec/stages/action/replicas", json!(0), "spec.stages.action.replicas"),
        (
            "/spec/stages/unify/storage",
            json!({"emptyDir": {}, "persistentVolumeClaim": {"size": "1Gi"}}),
            "at most one of",
        ),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("lots"), "size is a quantity above 0"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("20GB"), "such as 500Mi or 20Gi"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("0Gi"), "size is a quantity above 0"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("-1Gi"), "size is a quantity above 0"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!(0), "size is a quantity above 0"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("1".repeat(33)), "may not be more than 32"),
        ("/spec/checkpoints/uploadPerSecond", json!(format!("{}M", "1".repeat(32))), "may not be more than 32"),
        ("/spec/stages/action/storage/emptyDir", json!({"sizeLimit": "lots"}), "sizeLimit is a quantity above 0"),
        ("/spec/stages/action/storage/emptyDir", json!({"sizeLimit": 0}), "sizeLimit is a quantity above 0"),
        ("/spec/stages/action/storage/emptyDir", json!({"sizeLimit": "1".repeat(33)}), "may not be more than 32"),
        (
            "/spec/stages/unify/resources",
            json!({"limits": {"memory": "4GB"}}),
            "each of them is a quantity, not below 0",
        ),
        (
            "/spec/stages/unify/resources",
            json!({"requests": {"cpu": "two"}}),
            "each of them is a quantity, not below 0",
        ),
        ("/spec/stages/unify/resources", json!({"requests": {"cpu": -1}}), "each of them is a quantity, not below 0"),
        ("/spec/stages/unify/resources", json!({"limits": {"cpu": "1".repeat(33)}}), "may not be more than 32"),
        ("/spec/shard", json!(8), "field not declared in schema"),
    ];
    assert_eq!(refused(&pipeline("right")), None);
    for (path, value, expected) in cases {
        let said = refused(&with(pipeline("wrong"), path, value.clone())).unwrap_or_default();
        assert!(said.contains(expected), "{path} = {value}: {said:?} instead of {expected:?}");
    }
    for (path, value) in [
        ("/spec/kafka/sasl", plain("SCRAM-SHA-512")),
        ("/spec/shards", json!(4096)),
        ("/spec/kafka/tls", json!({})),
        ("/spec/checkpoints", json!({"interval": "24h", "minPause": "0s", "uploadPerSecond": 100_000})),
        (
            "/spec/objectStore/s3",
            json!({"bucket": "checkpoints", "endpoint": "https://minio:9000", "ca": {"name": "s3", "key": "ca"}, "serverSideEncryption": "aws:kms"}),
        ),
        ("/spec/kafka/properties", json!({"client.id": "shop", "socket.keepalive.enable": "true"})),
        ("/metadata/name", json!("o")),
        ("/metadata/name", json!("orders-2")),
        ("/spec/kafka/retention/ingress", json!("9999999d")),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("1.5Gi")),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!(1_000_000_000)),
        ("/spec/stages/action/storage/emptyDir", json!({"sizeLimit": "20Gi"})),
        (
            "/spec/stages/unify/resources",
            json!({"requests": {"cpu": "500m", "memory": 0}, "limits": {"memory": "4Gi"}}),
        ),
    ] {
        assert_eq!(refused(&with(pipeline("right"), path, value)), None, "{path}");
    }
}

#[test]
fn what_is_fixed_cannot_be_changed() {
    let claim = |class: &str| json!({"persistentVolumeClaim": {"size": "1Gi", "storageClassName": class}});
    let kafka = json!({"bootstrapServers": ["kafka:9092"], "prefix": "mine", "topics": "Strimzi", "strimzi": {"cluster": "main"}});
    let first = with(with(pipeline("fixed"), "/spec/stages/action/storage", claim("fast")), "/spec/kafka", kafka);
    apply(&first);
    let cases = [
        ("/spec/shards", json!(16), "shards is fixed"),
        ("/spec/kafka/prefix", json!("other"), "prefix is fixed"),
        ("/spec/kafka/prefix", Value::Null, "prefix is fixed"),
        ("/spec/kafka/strimzi/cluster", json!("other"), "kafka.strimzi is fixed"),
        ("/spec/kafka/strimzi/namespace", json!("other"), "kafka.strimzi is fixed"),
        ("/spec/kafka", json!({"bootstrapServers": ["kafka:9092"], "prefix": "mine"}), "kafka.strimzi is fixed"),
        ("/spec/stages/action/storage", json!({"emptyDir": {}}), "kind of storage is fixed"),
        ("/spec/stages/action/storage", claim("slow"), "storageClassName is fixed"),
        ("/spec/stages/action/storage/persistentVolumeClaim/size", json!("2Gi"), "size is fixed"),
        ("/spec/stages/unify/storage", claim("fast"), "kind of storage is fixed"),
    ];
    for (path, value, expected) in cases {
        let said = refused(&with(first.clone(), path, value.clone())).unwrap_or_default();
        assert!(said.contains(expected), "{path} = {value}: {said:?} instead of {expected:?}");
    }
    for (path, value) in
        [("/spec/image", json!("other:1")), ("/spec/standbys", json!(2)), ("/spec/suspend", json!(true))]
    {
        assert_eq!(refused(&with(first.clone(), path, value)), None, "{path}");
    }
}

/// As the README has it, but that nothing is stored: there is nobody here who would see to it.
#[test]
fn the_example_is_taken_as_it_stands() {
    server()
        .run(&["apply", "-f", "-"], r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#)
        .unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/pipeline.yaml");
    let said = server().run(&["apply", "--dry-run=server", "--validate=strict", "-f", example], "").unwrap();
    let said: Vec<&str> = said.lines().collect();
    let expected = [
        "secret/mongodb",
        "ingestionpipeline.ingestion.millstream.dev/orders",
        "secret/acme",
        "tenant.ingestion.millstream.dev/acme",
    ];
    assert_eq!(said, expected.map(|name| format!("{name} created (server dry run)")));
}

#[test]
fn defaults_are_shown() {
    apply(&pipeline("defaults"));
    let spec = &stored("mip", "defaults")["spec"];
    let shown = [
        ("/shards", json!(8)),
        ("/standbys", json!(1)),
        ("/suspend", json!(false)),
        ("/topicDeletionPolicy", json!("Retain")),
        ("/imagePullPolicy", json!("IfNotPresent")),
        ("/kafka/replication", json!(3)),
        ("/kafka/topics", json!("Managed")),
        ("/kafka/retention/rejects", json!("14d")),
        ("/documentStore/mongodb/database", json!("millstream")),
        ("/stages/reaction/replicas", json!(2)),
        ("/observability/logFormat", json!("json")),
    ];
    for (path, expected) in shown {
        assert_eq!(spec.pointer(path), Some(&expected), "{path} in {spec}");
    }
}

#[test]
fn a_free_form_field_keeps_everything() {
    let template = json!({"spec": {"priorityClassName": "high", "containers": [{"name": "millstream", "env": [{"name": "A", "value": "b"}]}]}});
    apply(&with(pipeline("free-form"), "/spec/stages/gateway/podTemplate", template.clone()));
    assert_eq!(stored("mip", "free-form").pointer("/spec/stages/gateway/podTemplate"), Some(&template));
}

#[test]
fn people_see_the_columns_that_matter() {
    apply(&pipeline("columns"));
    let status = json!({"status": {
        "shards": "16/16", "freshness": "0.4s", "version": "0.1.0",
        "conditions": [{"type": "Ready", "status": "True", "reason": "AllShardsOwned", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    server()
        .run(&["patch", "mip", "columns", "--subresource=status", "--type=merge", "-p", &status.to_string()], "")
        .unwrap();
    let table = server().run(&["get", "millstream"], "").unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        lines.iter().any(|line| line.starts_with(&[
            "NAME",
            "READY",
            "UPGRADE",
            "SHARDS",
            "FRESHNESS",
            "VERSION",
            "AGE"
        ])),
        "{table}"
    );
    // What has no value is left empty.
    assert!(
        lines.iter().any(|line| line.ends_with(&["columns", "True", "16/16", "0.4s", "0.1.0"])
            || line.windows(5).any(|part| part[1..] == ["True", "16/16", "0.4s", "0.1.0"])),
        "{table}"
    );
    let spec = json!({"spec": {"suspend": true}, "status": {"shards": "0/16"}});
    server().run(&["patch", "mip", "columns", "--type=merge", "-p", &spec.to_string()], "").unwrap();
    assert_eq!(
        stored("mip", "columns").pointer("/status/shards"),
        Some(&json!("16/16")),
        "status is written by its own subresource only"
    );
}

#[test]
fn a_stage_is_scaled_as_a_deployment_is() {
    let scale = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1",
        "kind": "StageScale",
        "metadata": {"name": "orders-action", "namespace": "default"},
        "spec": {"pipelineRef": {"name": "orders"}, "stage": "action", "replicas": 2},
    });
    apply(&scale);
    let status =
        json!({"status": {"replicas": 2, "readyReplicas": 2, "selector": "app.kubernetes.io/component=action"}});
    server()
        .run(&["patch", "mss", "orders-action", "--subresource=status", "--type=merge", "-p", &status.to_string()], "")
        .unwrap();
    server().run(&["scale", "stagescale/orders-action", "--replicas=4"], "").unwrap();
    let read = server().run(&["get", "mss", "orders-action", "--subresource=scale", "-o", "json"], "").unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    assert_eq!((&read["spec"]["replicas"], &read["status"]["replicas"]), (&json!(4), &json!(2)));
    assert_eq!(read["status"]["selector"], json!("app.kubernetes.io/component=action"));
    for (path, value, expected) in [
        ("/spec/stage", json!("unify"), "pipelineRef and stage are fixed"),
        ("/spec/pipelineRef/name", json!("other"), "pipelineRef and stage are fixed"),
        ("/spec/replicas", json!(0), "spec.replicas"),
        ("/spec/stage", json!("sink"), "gateway"),
        ("/metadata/name", json!("orders"), "the name is the pipeline's and the stage's"),
        ("/metadata/name", json!("orders-unify"), "the name is the pipeline's and the stage's"),
    ] {
        let said = refused(&with(scale.clone(), path, value)).unwrap_or_default();
        assert!(said.contains(expected), "{path}: {said:?} instead of {expected:?}");
    }
}

#[test]
fn terms_of_a_tenant_that_cannot_be_are_refused_with_what_to_do() {
    let tenant = |terms: Value| {
        let mut spec = json!({"pipelineRef": {"name": "orders"}, "apiKeys": [{"name": "acme", "key": "one"}]});
        spec.as_object_mut().unwrap().extend(terms.as_object().unwrap().clone());
        json!({"apiVersion": "ingestion.millstream.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": "acme", "namespace": "default"}, "spec": spec})
    };
    let values = |count: usize| (0..count).map(|number| format!("v{number}")).collect::<Vec<_>>();
    let least =
        json!({"maxRecordBytes": 1024, "maxProperties": 1, "maxStringChars": 16, "maxIdentifiers": 1, "maxActions": 1});
    let most = json!({"maxRecordBytes": 900_000, "maxProperties": 1000, "maxStringChars": 65_536, "maxIdentifiers": 1000, "maxActions": 1000});
    let right = [
        json!({"limits": least, "rate": {"recordsPerSecond": 1}, "identity": {"forbiddenValues": ["x"]}}),
        json!({"limits": most, "rate": {"bytesPerSecond": 100_000_000_000_i64}, "identity": {"forbiddenValues": values(256)}}),
        json!({"limits": {}, "rate": {"recordsPerSecond": 10_000_000, "bytesPerSecond": 1024}, "identity": {}}),
    ];
    for terms in right {
        assert_eq!(refused(&tenant(terms.clone())), None, "{terms}");
        let spec: millstream_crds::TenantSpec = serde_json::from_value(tenant(terms)["spec"].clone()).unwrap();
        assert_eq!(spec.problems(), Vec::<String>::new());
    }
    // Whoever reads a file without an API server says the same.
    let wrong = [
        (json!({"limits": {"maxRecordBytes": 1023}}), "spec.limits.maxRecordBytes"),
        (json!({"limits": {"maxRecordBytes": 900_001}}), "spec.limits.maxRecordBytes"),
        (json!({"limits": {"maxProperties": 0}}), "spec.limits.maxProperties"),
        (json!({"limits": {"maxProperties": 1001}}), "spec.limits.maxProperties"),
        (json!({"limits": {"maxStringChars": 15}}), "spec.limits.maxStringChars"),
        (json!({"limits": {"maxStringChars": 65_537}}), "spec.limits.maxStringChars"),
        (json!({"limits": {"maxIdentifiers": 0}}), "spec.limits.maxIdentifiers"),
        (json!({"limits": {"maxIdentifiers": 1001}}), "spec.limits.maxIdentifiers"),
        (json!({"limits": {"maxActions": 0}}), "spec.limits.maxActions"),
        (json!({"limits": {"maxActions": 1001}}), "spec.limits.maxActions"),
        (
            json!({"limits": {"maxStringChars": 1025, "maxRecordBytes": 1024}}),
            "because a string is part of a record: lower it",
        ),
        (json!({"rate": {}}), "give rate.recordsPerSecond, rate.bytesPerSecond or both"),
        (json!({"rate": {"recordsPerSecond": 0}}), "spec.rate.recordsPerSecond"),
        (json!({"rate": {"recordsPerSecond": 10_000_001}}), "spec.rate.recordsPerSecond"),
        (json!({"rate": {"bytesPerSecond": 1023}}), "spec.rate.bytesPerSecond"),
        (json!({"rate": {"bytesPerSecond": 100_000_000_001_i64}}), "spec.rate.bytesPerSecond"),
        (json!({"identity": {"forbiddenValues": values(257)}}), "spec.identity.forbiddenValues"),
        (json!({"identity": {"forbiddenValues": [""]}}), "spec.identity.forbiddenValues[0]"),
        (json!({"identity": {"forbiddenValues": ["x".repeat(257)]}}), "spec.identity.forbiddenValues[0]"),
        (json!({"identity": {"forbiddenValues": ["x", "y "]}}), "must not begin or end with blanks"),
        (json!({"identity": {"forbiddenValues": ["x", "x"]}}), ".identity.forbiddenValues"),
    ];
    for (terms, expected) in wrong {
        let said = refused(&tenant(terms.clone())).unwrap_or_default();
        assert!(said.contains(expected), "{terms}: {said:?} instead of {expected:?}");
        let spec: millstream_crds::TenantSpec = serde_json::from_value(tenant(terms.clone())["spec"].clone()).unwrap();
        assert!(spec.problems().concat().contains(expected), "{terms}: {:?}", spec.problems());
    }
    assert!(
        refused(&tenant(json!({"limits": {"maxSize": 1}})))
            .unwrap_or_default()
            .contains("field not declared in schema")
    );
    let mut named = tenant(json!({}));
    named["metadata"]["name"] = "a".repeat(63).into();
    assert_eq!(refused(&named), None);
    named["metadata"]["name"] = "a".repeat(64).into();
    let said = refused(&named).unwrap_or_default();
    assert!(said.contains("the name may have 63 characters at most"), "{said}");
    apply(&tenant(json!({})));
    let said = refused(&tenant(json!({"pipelineRef": {"name": "returns"}}))).unwrap_or_default();
    assert!(said.contains("pipelineRef is fixed") && said.contains("create another Tenant"), "{said}");
}
