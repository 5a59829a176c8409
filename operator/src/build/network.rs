//! Services, and who may speak to whom.
//!
//! A pipeline's Pods take connections only where they serve somebody: gateways from everywhere on their public port, everybody on the admin port from Pods of the same pipeline and from the operator's
//! namespace (it knows no keys, so that nobody else may). They open connections to name servers, and to the ports of brokers, stores and collector. Brokers must therefore advertise the
//! ports that they are asked on first.

use super::bucket;
use super::config::{ADMIN, HTTP};
use super::names::Names;
use crate::Prepared;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use millstream_crds::{Kafka, StageName};
use std::collections::{BTreeMap, BTreeSet};

/// Where senders send.
pub(super) fn gateway_service(names: &Names) -> Service {
    let stage = StageName::Gateway;
    Service {
        metadata: names.metadata(names.of_stage(stage), Some(stage)),
        spec: Some(ServiceSpec {
            selector: Some(names.selected(Some(stage))),
            ports: Some(vec![service_port("http", HTTP)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// What gives each of a stage's Pods a name in DNS, from its start on: also one that is not ready is looked at.
pub(super) fn governing_service(names: &Names, stage: StageName) -> Service {
    Service {
        metadata: names.metadata(names.governing(stage), Some(stage)),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            selector: Some(names.selected(Some(stage))),
            publish_not_ready_addresses: Some(true),
            ports: Some(vec![service_port("admin", ADMIN)]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn service_port(name: &str, port: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port,
        target_port: Some(IntOrString::String(name.to_owned())),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    }
}

/// Where an identity without keys gets its credentials: of the machine, or of an agent on the node (80), of a token service (443).
const CREDENTIALS: [i32; 2] = [80, 443];

/// One for all Pods of the pipeline, one for the gateways' public port, one for the writers of documents, and one for each stage that puts checkpoints into the object store.
pub(super) fn policies(prepared: &Prepared, names: &Names) -> Vec<NetworkPolicy> {
    let spec = &prepared.pipeline.spec;
    let of_namespace =
        |name: &String| NetworkPolicyPeer { namespace_selector: Some(namespace(name)), ..NetworkPolicyPeer::default() };
    let own = NetworkPolicyPeer { pod_selector: Some(names.selector(None)), ..NetworkPolicyPeer::default() };
    let others = [&prepared.operator_namespace].into_iter().chain(&spec.observability.scrape_namespaces);
    let peers = [own].into_iter().chain(others.map(of_namespace)).collect();
    let admin = NetworkPolicyIngressRule { from: Some(peers), ports: Some(vec![tcp(ADMIN)]) };
    let name_servers = NetworkPolicyEgressRule {
        ports: Some(vec![NetworkPolicyPort { protocol: Some("UDP".to_owned()), ..tcp(53) }, tcp(53)]),
        to: None,
    };
    let mut egress = vec![name_servers, to_ports(brokers(&spec.kafka))];
    egress.extend(spec.observability.otlp_endpoint.as_deref().map(|url| to_ports(BTreeSet::from([port_of(url)]))));
    let mut policies = vec![
        policy(names, names.name.clone(), None, vec![admin], egress),
        policy(
            names,
            names.of_stage(StageName::Gateway),
            Some(StageName::Gateway),
            vec![NetworkPolicyIngressRule { from: None, ports: Some(vec![tcp(HTTP)]) }],
            Vec::new(),
        ),
    ];
    if !prepared.document_ports.is_empty() {
        let stage = StageName::Reaction;
        let documents = to_ports(prepared.document_ports.iter().map(|port| i32::from(*port)).collect());
        policies.push(policy(names, names.of_stage(stage), Some(stage), Vec::new(), vec![documents]));
    }
    for (stage, s3) in StageName::ALL.into_iter().filter_map(|stage| Some((stage, bucket(spec, stage)?))) {
        let mut ports = BTreeSet::from([s3.endpoint.as_deref().map_or(443, port_of)]);
        ports.extend(CREDENTIALS.iter().filter(|_| s3.access_key_id.is_none()));
        policies.push(policy(names, names.of_stage(stage), Some(stage), Vec::new(), vec![to_ports(ports)]));
    }
    policies
}

/// Policies add up: each allows something, and whoever is selected by any is allowed nothing else.
fn policy(
    names: &Names,
    name: String,
    stage: Option<StageName>,
    ingress: Vec<NetworkPolicyIngressRule>,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        metadata: names.metadata(name, stage),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(names.selector(stage)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress).filter(|rules| !rules.is_empty()),
            egress: Some(egress).filter(|rules| !rules.is_empty()),
        }),
    }
}

fn namespace(name: &str) -> LabelSelector {
    let label = ("kubernetes.io/metadata.name".to_owned(), name.to_owned());
    LabelSelector { match_labels: Some(BTreeMap::from([label])), ..LabelSelector::default() }
}

fn tcp(port: i32) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(IntOrString::Int(port)), protocol: Some("TCP".to_owned()), end_port: None }
}

fn to_ports(ports: BTreeSet<i32>) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { ports: Some(ports.into_iter().map(tcp).collect()), to: None }
}

fn brokers(kafka: &Kafka) -> BTreeSet<i32> {
    kafka.bootstrap_servers.iter().filter_map(|server| server.rsplit_once(':')?.1.parse().ok()).collect()
}

/// Of `http://host:port/path`, or what the scheme stands for.
fn port_of(url: &str) -> i32 {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let host = rest.split('/').next().unwrap_or_default();
    let written = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    written.unwrap_or(if scheme == "https" { 443 } else { 80 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_of_a_url_is_known() {
        let cases = [
            ("http://otel:4318", 4318),
            ("https://otel.example.com/v1", 443),
            ("http://otel/x:1", 80),
            ("http://[::1]:4318/", 4318),
        ];
        for (url, port) in cases {
            assert_eq!(port_of(url), port, "{url}");
        }
    }
}
