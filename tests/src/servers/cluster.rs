//! A real Kubernetes cluster of one to three nodes, in namespaces of its own: `tests/cluster`.
//!
//! What is in the cluster's network cannot be reached from outside, so a test that needs it runs itself once more inside ([`Cluster::run_inside`]): there, the API server, Pods, Services, and the
//! Kafka and MongoDB-compatible server that the test starts (at [`host`](super::process::host), where Pods reach them) are in one network.

use super::cache::install_kubernetes;
use super::image;
use super::kubectl::Kubectl;
use super::process::{HOST, Server, Stop, folder};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const READY_WITHIN: Duration = Duration::from_secs(240);
/// The folder of the cluster that a process is in.
const STATE: &str = "MILLSTREAM_TEST_CLUSTER";
/// The address of the first node, which is also the control plane's.
const ADDRESS: &str = "10.88.0.1";
const PAUSE: &str = include_str!("../../cluster/pause.c");
/// Its own programs, as an image.
pub const IMAGE: &str = "localhost/millstream:test";

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    state: PathBuf,
    _server: Server,
}

/// The cluster that this process is in.
#[derive(Clone, Debug)]
pub struct Inside {
    state: PathBuf,
    /// To ask its API server.
    pub kubectl: Kubectl,
}

impl Cluster {
    /// It needs Linux, root, for namespaces, mounts and cgroups, and what nodes are made of (`tools/setup test` installs it).
    pub fn is_possible() -> bool {
        let succeeds = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let programs = ["containerd", "runc", "ctr", "nft", "iptables", "conntrack", "ip", "openssl", "sysctl"];
        let has = |program: &&str| succeeds("sh", &["-c", &format!("command -v {program}")]);
        cfg!(target_os = "linux")
            && succeeds("sh", &["-c", "test $(id -u) = 0"])
            && succeeds("unshare", &["--net", "--mount", "--pid", "--fork", "true"])
            && programs.iter().all(has)
    }

    /// Starts one whose nodes have the image [`IMAGE`] with these programs.
    ///
    /// # Errors
    /// When this process is not root's, something is missing, or it does not start; with the end of its logs.
    pub fn start(nodes: usize, programs: &[&Path]) -> Result<Cluster> {
        ensure!(
            Cluster::is_possible(),
            "a cluster needs Linux, root, and what nodes are made of: `tools/setup test` installs it"
        );
        let hyperkube = install_kubernetes()?;
        let state = folder("cluster")?;
        std::fs::create_dir_all(state.join("images"))?;
        image::write(&state.join("images/millstream.tar"), IMAGE, programs)?;
        let pause = state.join("pause");
        std::fs::write(state.join("pause.c"), PAUSE)?;
        let compiled =
            Command::new("cc").args(["-Os", "-static", "-o"]).arg(&pause).arg(state.join("pause.c")).output();
        let compiled = compiled.context("cannot start cc")?;
        ensure!(compiled.status.success(), "pause.c: {}", String::from_utf8_lossy(&compiled.stderr));
        image::write_static(&state.join("images/pause.tar"), "localhost/pause:1", &pause, "65535")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/run.sh").to_owned();
        let paths = [&state, &hyperkube].map(|path| path.display().to_string());
        let [folder, program] = paths;
        let command = ["bash".to_owned(), script, folder, program, nodes.to_string()];
        let server = Server::start(state.clone(), Stop::Terminate, &command)?;
        let ready = state.join("ready");
        server.wait_until(READY_WITHIN, || ready.exists().then_some(()).ok_or("its nodes are not ready"))?;
        Ok(Cluster { state, _server: server })
    }

    /// Runs a test of this program in the cluster's network; what it prints is printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn run_inside(&self, test: &str) -> Result<()> {
        let pid = std::fs::read_to_string(self.state.join("pid")).context("the cluster has ended")?;
        let status = Command::new("nsenter")
            .args(["--target", pid.trim(), "--net", "--"])
            .arg(std::env::current_exe()?)
            .args([test, "--exact", "--nocapture", "--include-ignored"])
            .env(STATE, &self.state)
            .env(HOST, ADDRESS)
            .status()
            .context("cannot start nsenter")?;
        ensure!(status.success(), "{test} failed in the cluster");
        Ok(())
    }

    /// The cluster that this process is in, if it is in one.
    ///
    /// # Errors
    /// When Kubernetes is not installed.
    pub fn around() -> Result<Option<Inside>> {
        let Some(state) = std::env::var_os(STATE).map(PathBuf::from) else { return Ok(None) };
        let (kubeconfig, cache) = (state.join("conf/admin.kubeconfig"), state.join("kubectl-cache"));
        Ok(Some(Inside { kubectl: Kubectl::new(install_kubernetes()?, kubeconfig, cache), state }))
    }
}

impl Inside {
    /// Sends a signal to a process of the control plane, by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let program = self.state.join("bin").join(name);
        let is_it = |pid: &str| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.split(|byte| *byte == 0).next() == Some(program.as_os_str().as_encoded_bytes())
        };
        let processes = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let pid = processes.into_iter().find(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && is_it(pid));
        let pid = pid.with_context(|| format!("there is no {name}"))?;
        let status = Command::new("kill").args(["-s", signal, &pid]).status()?;
        ensure!(status.success(), "cannot send SIG{signal} to {name}");
        Ok(())
    }

    /// `kill -9` to the worker in the Pod with this uid: its container starts again, and the Pod stays.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_worker(&self, uid: &str) -> Result<()> {
        let pid = self.worker(uid)?.with_context(|| format!("there is no worker in Pod {uid}"))?;
        let status = Command::new("kill").args(["-s", "KILL", &pid]).status()?;
        ensure!(status.success(), "cannot kill the worker in Pod {uid}");
        Ok(())
    }

    /// The process of the worker in the Pod with this uid, whatever the API server knows of the Pod; none when it has ended.
    ///
    /// # Errors
    /// When processes cannot be listed.
    pub fn worker(&self, uid: &str) -> Result<Option<String>> {
        let is_it = |pid: &str| {
            let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
            read("cgroup").contains(&format!("/pod{uid}/")) && read("cmdline").split('\0').any(|it| it == "worker")
        };
        let processes = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(processes.into_iter().find(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && is_it(pid)))
    }

    /// `start`, `kill`, `pause` or `resume` a node, by number from 1.
    ///
    /// # Errors
    /// When that fails.
    pub fn node(&self, verb: &str, number: usize) -> Result<()> {
        let pid = std::fs::read_to_string(self.state.join("pid"))?;
        let output = Command::new("nsenter")
            .args(["--target", pid.trim(), "--net", "--mount", "--pid", "--"])
            .args(["bash", concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/node.sh"), verb, &number.to_string()])
            .env("STATE", &self.state)
            .env("HYPERKUBE", install_kubernetes()?)
            .output()
            .context("cannot start nsenter")?;
        ensure!(output.status.success(), "node.sh {verb} {number}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
