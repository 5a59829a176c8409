//! The Pods of a stage.

use super::names::Names;
use super::{BuildError, config, grace, overlay, quantity, secrets};
use crate::Prepared;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, EnvVarSource,
    HTTPGetAction, LocalObjectReference, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millstream_crds::{ImagePullPolicy, StageName};
use serde_json::Value;
use std::collections::BTreeMap;

/// The container that is a worker.
const CONTAINER: &str = "millstream";
/// Who it runs as: nobody in particular, and not root.
const USER: i64 = 65_532;
/// Says whether what the Pod's Secrets hold is what it was.
const SECRETS_HASH: &str = "ingestion.millstream.dev/secrets-hash";
/// The volume with a worker's local state; a claim of it is called `data-POD`.
pub(crate) const DATA_VOLUME: &str = "data";
const CONFIG_VOLUME: &str = "config";
const TMP_VOLUME: &str = "tmp";

/// Fields of a stage's `podTemplate` that no Pod's template has, as paths below it: they would be dropped without a word.
///
/// # Errors
/// [`BuildError`]: it is no template at all any more.
pub(crate) fn unknown(prepared: &Prepared, stage: StageName) -> Result<Vec<String>, BuildError> {
    let names = Names::of(prepared)?;
    let json = laid_over(prepared, &names, stage, &ConfigMap::default())?;
    let error = |error| BuildError::Template { stage: stage.as_str(), error };
    let template: PodTemplateSpec = serde_json::from_value(json.clone()).map_err(error)?;
    let kept = serde_json::to_value(template).map_err(error)?;
    let mut unknown = Vec::new();
    for part in ["metadata", "spec"] {
        overlay::find_dropped(part, json.get(part), kept.get(part), &mut unknown);
    }
    Ok(unknown)
}

/// A stage's template, with what the user has laid over it.
pub(super) fn template(
    prepared: &Prepared,
    names: &Names,
    stage: StageName,
    config: &ConfigMap,
) -> Result<PodTemplateSpec, BuildError> {
    let json = laid_over(prepared, names, stage, config)?;
    serde_json::from_value(json).map_err(|error| BuildError::Template { stage: stage.as_str(), error })
}

fn laid_over(prepared: &Prepared, names: &Names, stage: StageName, config: &ConfigMap) -> Result<Value, BuildError> {
    let mut annotations = BTreeMap::new();
    let volume = secrets::volume(prepared, stage);
    if volume.is_some() {
        annotations.insert(SECRETS_HASH.to_owned(), secrets::hash(prepared, stage));
    }
    let template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(names.selected(Some(stage))),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod(prepared, names, stage, config, volume)),
    };
    let error = |error| BuildError::Template { stage: stage.as_str(), error };
    let mut json = serde_json::to_value(template).map_err(error)?;
    overlay::lay_over(&mut json, &Value::Object(prepared.pipeline.spec.stages.of(stage).pod_template.0.clone()));
    Ok(json)
}

fn pod(prepared: &Prepared, names: &Names, stage: StageName, config: &ConfigMap, secrets: Option<Volume>) -> PodSpec {
    let spec = &prepared.pipeline.spec;
    let (_, grace) = grace::of(stage, spec.shards);
    let pull_secrets = spec.image_pull_secrets.iter().map(|secret| LocalObjectReference { name: secret.name.clone() });
    let pull_secrets: Vec<LocalObjectReference> = pull_secrets.collect();
    PodSpec {
        service_account_name: Some(names.name.clone()),
        automount_service_account_token: Some(false),
        // Each Service of the namespace would be a few environment variables.
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            // A volume of a million files would be walked through at each start.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(grace),
        topology_spread_constraints: Some(
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].map(|key| spread(names, stage, key)).into(),
        ),
        image_pull_secrets: Some(pull_secrets).filter(|secrets| !secrets.is_empty()),
        containers: vec![container(prepared, stage, secrets.is_some())],
        volumes: Some(volumes(prepared, stage, config, secrets)),
        ..PodSpec::default()
    }
}

/// As even as it can be: workers of one stage are each other's standbys.
fn spread(names: &Names, stage: StageName, key: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(names.selector(Some(stage))),
        ..TopologySpreadConstraint::default()
    }
}

fn container(prepared: &Prepared, stage: StageName, has_secrets: bool) -> Container {
    let spec = &prepared.pipeline.spec;
    let policy = match spec.image_pull_policy {
        ImagePullPolicy::Always => "Always",
        ImagePullPolicy::IfNotPresent => "IfNotPresent",
        ImagePullPolicy::Never => "Never",
    };
    let config = format!("{}/{}", config::FOLDER, config::FILE);
    let mut ports = vec![port("admin", config::ADMIN)];
    if stage == StageName::Gateway {
        ports.insert(0, port("http", config::HTTP));
    }
    let mut mounts = vec![
        mount(CONFIG_VOLUME, config::FOLDER, true),
        mount(DATA_VOLUME, config::DATA, false),
        mount(TMP_VOLUME, "/tmp", false),
    ];
    if has_secrets {
        mounts.push(mount(secrets::VOLUME, secrets::FOLDER, true));
    }
    Container {
        name: CONTAINER.to_owned(),
        image: Some(spec.image.clone()),
        image_pull_policy: Some(policy.to_owned()),
        args: Some(["worker", "--role", stage.as_str(), "--config", &config].map(str::to_owned).into()),
        env: Some(variables(stage)),
        ports: Some(ports),
        resources: Some(resources(prepared, stage)),
        volume_mounts: Some(mounts),
        // Longer than any single restore would be a restart in the middle of it, so that opening shards is no part of it.
        startup_probe: Some(probe("/livez", 2, 150)),
        // What is stuck is replaced by others within seconds, long before this: it is for a process that does not answer at all.
        liveness_probe: Some(probe("/livez", 10, 6)),
        readiness_probe: Some(probe("/readyz", 5, 3)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

/// A worker knows its name, and where it runs, which successors are chosen by.
fn variables(stage: StageName) -> Vec<EnvVar> {
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector { api_version: None, field_path: path.to_owned() }),
            ..EnvVarSource::default()
        }),
        value: None,
    };
    let mut variables = vec![field("MILLSTREAM_WORKER", "metadata.name")];
    if stage != StageName::Gateway {
        variables.push(field("MILLSTREAM_NODE", "spec.nodeName"));
        // Empty where Kubernetes does not copy it from the node: then the node is all that is known.
        variables.push(field("MILLSTREAM_ZONE", "metadata.labels['topology.kubernetes.io/zone']"));
    }
    variables
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort { name: Some(name.to_owned()), container_port: number, ..ContainerPort::default() }
}

fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

fn probe(path: &str, period_s: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_s),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

fn resources(prepared: &Prepared, stage: StageName) -> ResourceRequirements {
    let resources = &prepared.pipeline.spec.stages.of(stage).resources;
    let of = |quantities: &BTreeMap<String, IntOrString>| {
        let quantities: BTreeMap<String, Quantity> =
            quantities.iter().map(|(name, value)| (name.clone(), quantity::quantity(value))).collect();
        Some(quantities).filter(|quantities| !quantities.is_empty())
    };
    ResourceRequirements {
        requests: of(&resources.requests),
        limits: of(&resources.limits),
        ..ResourceRequirements::default()
    }
}

fn volumes(prepared: &Prepared, stage: StageName, config: &ConfigMap, secrets: Option<Volume>) -> Vec<Volume> {
    let empty = |name: &str, size_limit: Option<Quantity>| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: None, size_limit }),
        ..Volume::default()
    };
    let mut volumes = vec![
        Volume {
            name: CONFIG_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config.metadata.name.clone().unwrap_or_default(),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        empty(TMP_VOLUME, Some(Quantity("64Mi".to_owned()))),
    ];
    let storage = &prepared.pipeline.spec.stages.of(stage).storage;
    if storage.persistent_volume_claim.is_none() {
        let bound = storage.empty_dir.as_ref().and_then(|folder| folder.size_limit.as_ref());
        volumes.push(empty(DATA_VOLUME, bound.map(quantity::quantity)));
    }
    volumes.extend(secrets);
    volumes
}
