//! The API server of Kubernetes, with its etcd, and kubectl: no nodes, so that nothing runs there, but everything that the API server itself decides is real: schemas, CEL rules,
//! server-side apply, subresources, conflicts, watches.

use super::cache::install_kubernetes;
use super::certificates::Authority;
use super::kubectl::Kubectl;
use super::process::{Server, Stop, folder, free_ports};
use anyhow::Result;
use rcgen::KeyPair;
use std::sync::OnceLock;
use std::time::Duration;

const READY_WITHIN: Duration = Duration::from_secs(120);
const TOKEN: &str = "test-admin";

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    kubectl: Kubectl,
    // In this order they end.
    _server: Server,
    _etcd: Server,
    _authority: Authority,
}

impl ApiServer {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot be installed or started.
    pub fn start() -> Result<ApiServer> {
        let program = install_kubernetes()?;
        let ports = free_ports(3)?;
        let [api, client, peer] = ports[..] else { anyhow::bail!("no ports") };
        let etcd = start_etcd(&program, client, peer)?;
        let folder = folder("kubernetes")?;
        let path = |name: &str| folder.join(name);
        let (authority, account) = (Authority::new()?, KeyPair::generate()?);
        let issued = authority.issue(&["localhost", "127.0.0.1"])?;
        std::fs::write(path("server.crt"), &issued.certificate)?;
        std::fs::write(path("server.key"), &issued.key)?;
        std::fs::write(path("account.key"), account.serialize_pem())?;
        std::fs::write(path("account.pub"), account.public_key_pem())?;
        std::fs::write(path("tokens"), format!("{TOKEN},admin,admin,\"system:masters\"\n"))?;
        let kubeconfig = path("kubeconfig");
        std::fs::write(
            &kubeconfig,
            config(&format!("https://127.0.0.1:{api}"), &authority.path().display().to_string()),
        )?;
        let file = |flag: &str, name: &str| format!("--{flag}={}", path(name).display());
        let command = [
            program.display().to_string(),
            "kube-apiserver".to_owned(),
            format!("--etcd-servers=http://127.0.0.1:{client}"),
            "--bind-address=127.0.0.1".to_owned(),
            // Not loopback, which it refuses; nobody connects to it.
            "--advertise-address=192.0.2.1".to_owned(),
            format!("--secure-port={api}"),
            "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--anonymous-auth=false".to_owned(),
            "--profiling=false".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            file("token-auth-file", "tokens"),
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
            file("service-account-key-file", "account.pub"),
            file("service-account-signing-key-file", "account.key"),
        ];
        let kubectl = Kubectl::new(program, kubeconfig, path("cache"));
        let server = Server::start(folder, Stop::Terminate, &command)?;
        server.wait_until(READY_WITHIN, || kubectl.run(&["get", "--raw", "/readyz"], ""))?;
        Ok(ApiServer { kubectl, _server: server, _etcd: etcd, _authority: authority })
    }

    /// One that all tests of a process share, with our resources installed; use namespaces of your own.
    ///
    /// # Errors
    /// When it cannot be started; the same for everybody.
    pub fn shared() -> Result<&'static ApiServer> {
        static SHARED: OnceLock<Result<ApiServer, String>> = OnceLock::new();
        let installed = || ApiServer::start().and_then(|server| server.kubectl.install_crds().map(|()| server));
        let shared = SHARED.get_or_init(|| installed().map_err(|error| format!("{error:#}")));
        shared.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// To ask it.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }
}

fn start_etcd(program: &std::path::Path, client: u16, peer: u16) -> Result<Server> {
    let folder = folder("etcd")?;
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let command = [
        program.display().to_string(),
        "etcd".to_owned(),
        "--name=test".to_owned(),
        format!("--data-dir={}", folder.join("data").display()),
        // Nothing has to survive the machine.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=test={peer}"),
    ];
    Server::start(folder, Stop::Kill, &command)
}

fn config(server: &str, authority: &str) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: '{server}', certificate-authority: '{authority}'}}}}]
users: [{{name: admin, user: {{token: '{TOKEN}'}}}}]
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
current-context: test
"
    )
}
