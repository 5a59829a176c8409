//! The objects, as they should be.

use super::*;
use crate::SecretHashes;
use crate::validate::validate;
use millstream_crds::IngestionPipeline;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A pipeline as the API server has it, with this spec beside the least.
fn pipeline(more: &Value) -> IngestionPipeline {
    let mut object = json!({
        "apiVersion": "ingestion.millstream.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "2f6c"},
        "spec": {
            "image": "registry.example.com/millstream:0.1.0",
            "kafka": {"bootstrapServers": ["kafka-0:9092", "kafka-1:9093"]},
            "documentStore": {"mongodb": {"uri": {"name": "mongodb", "key": "uri"}}},
        },
    });
    overlay::lay_over(&mut object, &json!({ "spec": more }));
    serde_json::from_value(object).unwrap()
}

fn prepared(more: &Value) -> Prepared {
    let hashes =
        [("mongodb", "uri", "aa"), ("kafka", "password", "bb"), ("kafka-ca", "ca.crt", "cc"), ("s3", "secret", "dd")];
    let hashes = hashes.map(|(name, key, hash)| ((name.to_owned(), key.to_owned()), hash.to_owned()));
    Prepared {
        pipeline: pipeline(more),
        replicas: BTreeMap::new(),
        secrets: SecretHashes(BTreeMap::from(hashes)),
        document_ports: BTreeSet::from([27017]),
        operator_namespace: "millstream-system".to_owned(),
    }
}

fn full() -> Value {
    json!({
        "shards": 16,
        "imagePullSecrets": [{"name": "registry"}],
        "kafka": {
            "tls": {"ca": {"name": "kafka-ca", "key": "ca.crt"}, "certificate": {"name": "kafka-client"}},
            "sasl": {"username": "millstream", "password": {"name": "kafka", "key": "password"}},
            "prefix": "shop",
            "properties": {"client.id": "shop"},
        },
        "objectStore": {"s3": {
            "bucket": "checkpoints",
            "prefix": "teams/data",
            "endpoint": "https://minio:9000",
            "ca": {"name": "s3", "key": "ca.crt"},
            "accessKeyId": {"name": "s3", "key": "id"},
            "secretAccessKey": {"name": "s3", "key": "secret"},
            "serverSideEncryption": "aws:kms",
            "kmsKeyId": "alias/data",
        }},
        "checkpoints": {"interval": "30s", "retained": 5, "uploadPerSecond": "50M"},
        "observability": {"otlpEndpoint": "http://otel:4318", "samplePercent": 5},
        "stages": {
            "action": {
                "replicas": 3,
                "resources": {"requests": {"cpu": 2}, "limits": {"memory": "4Gi"}},
                "storage": {"persistentVolumeClaim": {"size": "20Gi", "storageClassName": "fast"}},
                "config": {"batch": {"max_time": "20ms"}},
                "podTemplate": {"metadata": {"labels": {"team": "data"}}, "spec": {"priorityClassName": "high"}},
            },
        },
    })
}

fn stateful_set(objects: &Objects, stage: StageName) -> &StatefulSet {
    let name = format!("orders-{}", stage.as_str());
    objects.stateful_sets.iter().find(|it| it.metadata.name.as_deref() == Some(&name)).unwrap()
}

/// What makes Pods be replaced.
fn templates(prepared: &Prepared) -> Vec<Value> {
    let objects = build(prepared).unwrap();
    StageName::ALL.iter().map(|stage| json!(stateful_set(&objects, *stage).spec.as_ref().unwrap().template)).collect()
}

/// Which stages' Pods a change would replace.
fn replaced(before: &Prepared, after: &Prepared) -> Vec<&'static str> {
    let (before, after) = (templates(before), templates(after));
    StageName::ALL
        .iter()
        .zip(before.iter().zip(&after))
        .filter(|(_, (a, b))| a != b)
        .map(|(stage, _)| stage.as_str())
        .collect()
}

#[test]
fn the_objects_are_those_of_the_golden_files() {
    for (name, spec) in [("least", json!({})), ("full", full())] {
        let text = serde_yaml::to_string(&build(&prepared(&spec)).unwrap().to_json().unwrap()).unwrap();
        let file = format!("{}/golden/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap();
        assert!(
            text == golden,
            "{file} is not what is built: workers would be restarted by an upgrade of the operator. If that is meant, UPDATE_GOLDEN=1, and say so in the changelog"
        );
    }
}

#[test]
fn pods_satisfy_the_restricted_standard() {
    let objects = build(&prepared(&full())).unwrap();
    for set in &objects.stateful_sets {
        let pod = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let context = pod.security_context.as_ref().unwrap();
        assert_eq!(
            (context.run_as_non_root, context.seccomp_profile.as_ref().unwrap().type_.as_str()),
            (Some(true), "RuntimeDefault")
        );
        assert_eq!(pod.automount_service_account_token, Some(false));
        for container in &pod.containers {
            let context = container.security_context.as_ref().unwrap();
            assert_eq!(
                (context.allow_privilege_escalation, context.read_only_root_filesystem),
                (Some(false), Some(true))
            );
            assert_eq!(context.capabilities.as_ref().unwrap().drop.as_deref(), Some(&["ALL".to_owned()][..]));
        }
    }
}

#[test]
fn scaling_replaces_no_pod() {
    let before = prepared(&full());
    let mut after = before.clone();
    after.replicas = StageName::ALL.map(|stage| (stage, 7)).into();
    assert_eq!(replaced(&before, &after), [""; 0]);
    assert_eq!(stateful_set(&build(&after).unwrap(), StageName::Action).spec.as_ref().unwrap().replicas, Some(7));
}

#[test]
fn a_secret_that_changes_replaces_the_pods_that_see_it() {
    let before = prepared(&full());
    let with = |name: &str, key: &str| {
        let mut after = before.clone();
        after.secrets.0.insert((name.to_owned(), key.to_owned()), "other".to_owned());
        after
    };
    assert_eq!(replaced(&before, &with("mongodb", "uri")), ["reaction"]);
    assert_eq!(replaced(&before, &with("kafka", "password")), ["gateway", "unify", "action", "reaction"]);
    assert_eq!(replaced(&before, &with("kafka-client", "tls.key")), ["gateway", "unify", "action", "reaction"]);
    assert_eq!(replaced(&before, &with("unrelated", "key")), [""; 0]);
}

#[test]
fn what_concerns_one_stage_replaces_only_its_pods() {
    let before = prepared(&json!({}));
    let with = |stages: Value| prepared(&json!({ "stages": stages }));
    assert_eq!(
        replaced(&before, &with(json!({"unify": {"config": {"unify": {"duplicate_window": "2d"}}}}))),
        ["unify"]
    );
    assert_eq!(replaced(&before, &with(json!({"action": {"resources": {"limits": {"memory": "2Gi"}}}}))), ["action"]);
    assert_eq!(
        replaced(&before, &prepared(&json!({"paused": true, "standbys": 2, "topicDeletionPolicy": "Delete"}))),
        [""; 0]
    );
}

#[test]
fn a_suspended_pipeline_has_no_pods_and_keeps_everything_else() {
    let objects = build(&prepared(&json!({"suspend": true}))).unwrap();
    assert!(objects.stateful_sets.iter().all(|set| set.spec.as_ref().unwrap().replicas == Some(0)));
    assert_eq!(objects.scales.iter().map(|scale| scale.spec.replicas).collect::<Vec<_>>(), [2; 4]);
    assert_eq!(replaced(&prepared(&json!({})), &prepared(&json!({"suspend": true}))), [""; 0]);
}

#[test]
fn no_stage_sees_secrets_that_it_does_not_need() {
    let objects = build(&prepared(&full())).unwrap();
    for stage in StageName::ALL {
        let sees = json!(stateful_set(&objects, stage)).to_string().contains("mongodb");
        assert_eq!(sees, stage == StageName::Reaction, "{stage:?}");
    }
    assert!(!serde_json::to_string(&objects.to_json().unwrap()).unwrap().contains("hunter2"));
}

#[test]
fn everything_goes_with_the_pipeline_and_says_whose_it_is() {
    for object in build(&prepared(&full())).unwrap().to_json().unwrap() {
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"], &owner["controller"]),
            (&json!("IngestionPipeline"), &json!("2f6c"), &json!(true)),
            "{object}"
        );
        assert_eq!(object["metadata"]["namespace"], json!("shop"));
        assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/managed-by"], json!("millstream-operator"));
    }
}

#[test]
fn a_template_that_is_none_any_more_is_named() {
    let wrong = json!({"stages": {"unify": {"podTemplate": {"spec": {"containers": "none"}}}}});
    let error = build(&prepared(&wrong)).unwrap_err().to_string();
    assert!(error.starts_with("spec.stages.unify.podTemplate: "), "{error}");
}

#[test]
fn what_a_schema_cannot_say_is_said() {
    let said = |more: Value| validate(&prepared(&more)).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(said(json!({})), [""; 0]);
    assert_eq!(said(full()), [""; 0]);
    let cases = [
        (
            json!({"stages": {"unify": {"config": {"listen": "x"}}}}),
            "spec.stages.unify.config.listen: follows from the rest",
        ),
        (
            json!({"stages": {"action": {"resources": {"limits": {"memory": "4GB"}}}}}),
            "spec.stages.action.resources.limits.memory: `4GB` is not a quantity",
        ),
        (
            json!({"stages": {"gateway": {"podTemplate": {"kind": "Pod"}}}}),
            "spec.stages.gateway.podTemplate.kind: a Pod's template has",
        ),
        (
            json!({"stages": {"gateway": {"podTemplate": {"metadata": {"labels": {"app.kubernetes.io/name": "x"}}}}}}),
            "spec.stages.gateway.podTemplate.metadata.labels[app.kubernetes.io/name]: Services and budgets",
        ),
        (
            json!({"stages": {"action": {"podTemplate": {"spec": {"nodeSelektor": {"pool": "fast"}, "hostAliases": null}}}}}),
            "spec.stages.action.podTemplate.spec.nodeSelektor: is no field of a Pod's template: correct its name",
        ),
        (
            json!({"stages": {"unify": {"podTemplate": {"spec": {"containers": [{"name": "sidecar", "image": "i", "livenessProbe": {"httpGet": {"port": 1, "uri": "/"}}}]}}}}}),
            "spec.stages.unify.podTemplate.spec.containers[sidecar].livenessProbe.httpGet.uri: is no field",
        ),
        (
            json!({"stages": {"unify": {"podTemplate": {"metadata": {"label": {"team": "data"}}}}}}),
            "spec.stages.unify.podTemplate.metadata.label: is no field",
        ),
        (
            json!({"stages": {"unify": {"podTemplate": {"spec": {"containers": "none"}}}}}),
            "spec.stages.unify.podTemplate: is no Pod's template with this: ",
        ),
    ];
    for (more, expected) in cases {
        let said = said(more);
        assert!(said.len() == 1 && said[0].starts_with(expected), "{said:?} instead of {expected}");
    }
    let mut long = prepared(&json!({}));
    long.pipeline.metadata.namespace = Some("n".repeat(60));
    assert!(validate(&long)[0].to_string().starts_with("spec.kafka.prefix: "));
}
