//! What the operator writes: workers read the configurations, and a real API server takes the objects.

use millstream::config::{self, Documents, Log, Ownership};
use millstream_crds::IngestionPipeline;
use millstream_operator::build::{Objects, build};
use millstream_operator::{Prepared, SecretHashes};
use millstream_tests::scene::{kubernetes, least};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn prepared(spec: &Value) -> Prepared {
    let object = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "2f6c0f8e-0000-4000-8000-000000000000"},
        "spec": spec,
    });
    let pipeline: IngestionPipeline = serde_json::from_value(object).unwrap();
    Prepared {
        pipeline,
        replicas: BTreeMap::new(),
        secrets: SecretHashes::default(),
        document_ports: BTreeSet::from([27017]),
        operator_namespace: "millstream-system".to_owned(),
    }
}

fn full() -> Value {
    json!({
        "image": "registry.example.com/millstream:0.1.0",
        "imagePullSecrets": [{"name": "registry"}],
        "shards": 16,
        "kafka": {
            "bootstrapServers": ["kafka-0:9093", "kafka-1:9093"],
            "tls": {"ca": {"name": "kafka-ca", "key": "ca.crt"}, "certificate": {"name": "kafka-client"}},
            "sasl": {"username": "millstream", "password": {"name": "kafka", "key": "password"}},
            "prefix": "shop",
            "properties": {"client.id": "shop"},
        },
        "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}, "database": "customers", "options": {"maxPoolSize": "50"}}},
        "observability": {"otlpEndpoint": "http://otel:4318", "samplePercent": 5, "logFormat": "text", "logFilter": "debug"},
        "stages": {
            "gateway": {"config": {"limits": {"records": 100}}, "storage": {"emptyDir": {"sizeLimit": "1Gi"}}},
            "unify": {"config": {"unify": {"duplicate_window": "2d"}}},
            "action": {
                "replicas": 3,
                "resources": {"requests": {"cpu": 2}, "limits": {"memory": "4Gi"}},
                "storage": {"persistentVolumeClaim": {"size": "20Gi", "storageClassName": "fast", "whenDeleted": "Retain"}},
                "config": {"batch": {"max_time": "20ms"}},
                "podTemplate": {"metadata": {"labels": {"team": "data"}}, "spec": {"nodeSelector": {"pool": "fast"}}},
            },
        },
    })
}

/// The configurations, by stage, as a worker reads them whose Secrets lie in another folder.
fn configurations(objects: &Objects, folder: &Path) -> BTreeMap<String, config::Config> {
    let file = |path: &str, text: &str| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    file("kafka/password", "hunter2");
    file("mongodb/uri", "mongodb://app:hunter2@db:27017/");
    let read = |map: &k8s_openapi::api::core::v1::ConfigMap| {
        let stage = map.metadata.labels.as_ref().unwrap()["app.kubernetes.io/component"].clone();
        let text = map.data.as_ref().unwrap()["millstream.yaml"]
            .replace("/etc/millstream/secrets", &folder.display().to_string());
        (stage, config::parse(&text, Path::new("millstream.yaml")).unwrap_or_else(|error| panic!("{error}\n{text}")))
    };
    objects.config_maps.iter().map(read).collect()
}

#[test]
fn workers_understand_what_is_written_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let least = configurations(&build(&prepared(&least())).unwrap(), folder.path());
    assert_eq!(least.keys().collect::<Vec<_>>(), ["action", "gateway", "reaction", "unify"]);
    for (stage, config) in &least {
        assert_eq!((config.pipeline.as_str(), config.shards.0), ("shop.orders", 8), "{stage}");
        assert!(matches!(config.ownership, Ownership::Plan(_)), "{stage}");
        assert_eq!(matches!(config.documents, Documents::Mongodb(_)), stage == "reaction", "{stage}");
    }
    let full = configurations(&build(&prepared(&full())).unwrap(), folder.path());
    for config in full.values() {
        let Log::Kafka(kafka) = &config.log else { panic!("{:?}", config.log) };
        let security = kafka.store().security;
        assert_eq!(security["security.protocol"], "SASL_SSL");
        assert_eq!(
            (security["sasl.mechanism"].as_str(), security["sasl.password"].as_str()),
            ("SCRAM-SHA-512", "hunter2")
        );
        assert_eq!((kafka.replication, kafka.properties["client.id"].as_str()), (3, "shop"));
        assert_eq!((config.telemetry.sample_ratio.0, config.telemetry.log_filter.as_str()), (0.05, "debug"));
    }
    assert_eq!(full["gateway"].limits.records, 100);
    assert_eq!(full["unify"].unify.duplicate_window.duration().as_secs(), 2 * 86_400);
    assert_eq!((full["action"].batch.max_time.0, full["action"].state.memory.0), (20, 2 << 30));
    let Documents::Mongodb(mongodb) = &full["reaction"].documents else { panic!("{:?}", full["reaction"].documents) };
    assert_eq!((mongodb.database.as_str(), mongodb.options["maxPoolSize"].as_str()), ("customers", "50"));
}

/// In a namespace that warns of Pods that do not satisfy the standard `restricted`; anything that is warned of fails.
#[test]
fn the_api_server_takes_the_objects_without_a_warning() {
    let server = kubernetes();
    let labels =
        json!({"pod-security.kubernetes.io/warn": "restricted", "pod-security.kubernetes.io/enforce": "restricted"});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}});
    server.run(&["apply", "-f", "-"], &namespace.to_string()).unwrap();
    for spec in [least(), full()] {
        let items = build(&prepared(&spec)).unwrap().to_json().unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        let said = server
            .try_run(&["apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-"], &list.to_string())
            .unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(String::from_utf8_lossy(&said.stdout).lines().count(), items.len());
    }
}
