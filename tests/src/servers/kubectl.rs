//! `kubectl`, against one API server.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// How an API server is asked.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    /// It caches what the server knows below the home folder otherwise, also for other tests' servers.
    cache: PathBuf,
}

impl Kubectl {
    pub(super) fn new(program: PathBuf, kubeconfig: PathBuf, cache: PathBuf) -> Kubectl {
        Kubectl { program, kubeconfig, cache }
    }

    /// Runs it with this standard input; what it printed.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn run(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.try_run(arguments, input)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "kubectl {}: {}", arguments.join(" "), said.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs it with this standard input, whatever comes of it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn try_run(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut kubectl = Command::new(&self.program)
            .arg("kubectl")
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start kubectl")?;
        kubectl.stdin.take().context("kubectl takes no input")?.write_all(input.as_bytes())?;
        kubectl.wait_with_output().context("kubectl does not end")
    }

    /// Installs our resources by plain `kubectl apply`, and waits until they are known.
    ///
    /// # Errors
    /// When they are refused, or warned of.
    pub fn install_crds(&self) -> Result<()> {
        let applied = self.try_run(&["apply", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/yaml")], "")?;
        let said = String::from_utf8_lossy(&applied.stderr);
        ensure!(applied.status.success() && said.is_empty(), "the resources cannot be installed: {said}");
        self.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").map(drop)
    }

    /// The file that says how to reach the API server as its administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}
