//! Millstream's processes, run as a user runs them: `millstream local`, or one process per role on real servers.
//!
//! Children are started with a configuration file in the pipeline's folder and log to files there. They end on drop, and with this process, in whatever way it
//! ends ([`Server`]). A test that fails keeps the folder when `MILLSTREAM_KEEP` is set.

use crate::servers::{Server, Stop, free_ports};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything that should happen may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The program under test, built with the tests.
///
/// # Errors
/// When it was not built.
pub fn binary() -> Result<PathBuf> {
    program("millstream")
}

/// A program of this workspace.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    // Tests are in target/<profile>/deps, programs beside it.
    let mut candidates = this.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = candidates.find(|binary| binary.is_file());
    found.with_context(|| format!("there is no {name} beside {}: run `cargo build --workspace` first", this.display()))
}

/// Waits until `check` gives something; fails with what it said last.
///
/// # Errors
/// After [`DEADLINE`].
pub fn until<T>(what: &str, check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_by(Duration::from_millis(20), what, check)
}

/// The same, with another pause between looks, for those that cost more.
///
/// # Errors
/// After [`DEADLINE`].
pub fn until_by<T>(pause: Duration, what: &str, check: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(DEADLINE, pause, what, check)
}

/// The same, for what is many things one after the other, each of which has its time.
///
/// # Errors
/// After that time.
pub fn until_within<T>(
    time: Duration,
    pause: Duration,
    what: &str,
    mut check: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + time;
    let mut last = "not yet".to_owned();
    while Instant::now() < end {
        match check() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        // Conditions outside this process cannot be waited for otherwise.
        std::thread::sleep(pause);
    }
    bail!("{what} did not happen within {time:?}: {last}")
}

/// What the processes of a pipeline share.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Prefix of the topics.
    pub pipeline: String,
    /// Shards per stage.
    pub shards: u32,
    /// Kafka's bootstrap servers; `None`: embedded.
    pub kafka: Option<String>,
    /// Copies of each partition in Kafka.
    pub replication: u16,
    /// How Kafka's clients prove who they are, by librdkafka's names; empty: they need not.
    pub security: BTreeMap<String, String>,
    /// MongoDB's URI; `None`: embedded.
    pub mongodb: Option<String>,
    /// (tenant, key).
    pub tenants: Vec<(String, String)>,
    /// OTLP endpoint, when traces are wanted: every record is sampled then.
    pub otlp: Option<String>,
    /// Further lines of the configuration.
    pub more: String,
}

/// One process.
pub struct Process {
    /// `local`, `gateway`, `unify`, `action`, `reaction`.
    pub role: &'static str,
    /// Of the worker.
    pub name: String,
    /// Public port.
    pub port: u16,
    /// Admin port.
    pub admin: u16,
    folder: PathBuf,
    starts: u32,
    server: Option<Server>,
}

impl Process {
    /// Configures a process; it is not started yet.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn new(role: &'static str, name: &str, settings: &Settings, folder: &Path) -> Result<Process> {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let [port, admin] = <[u16; 2]>::try_from(free_ports(2)?).ok().context("two ports")?;
        let yaml = yaml(settings, name, port, admin, &folder);
        std::fs::write(folder.join("config.yaml"), yaml)?;
        Ok(Process { role, name: name.to_owned(), port, admin, folder, starts: 0, server: None })
    }

    /// Starts it, or starts it again; returns when it is ready.
    ///
    /// # Errors
    /// When it ends or does not become ready.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.ready()
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.starts += 1;
        let folder = self.folder.join(self.starts.to_string());
        std::fs::create_dir_all(&folder)?;
        let mut command = vec![binary()?.display().to_string()];
        if self.role == "local" {
            command.push("local".to_owned());
        } else {
            command.extend(["worker", "--role", self.role].map(str::to_owned));
        }
        command.extend(["--config".to_owned(), self.folder.join("config.yaml").display().to_string()]);
        self.server = Some(Server::start_and_keep(folder, Stop::Kill, &command).context("starting millstream")?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// With the end of its log, when it ended or is not ready in time.
    pub fn ready(&mut self) -> Result<()> {
        let client = reqwest::blocking::Client::new();
        let url = format!("http://127.0.0.1:{}/readyz", self.admin);
        let server = self.server.as_ref().context("it does not run")?;
        let ask = || -> Result<()> {
            let answer = client.get(&url).timeout(Duration::from_secs(2)).send()?;
            ensure!(answer.status().is_success(), "{}", answer.text()?);
            Ok(())
        };
        server.wait_until(DEADLINE, ask).with_context(|| format!("{} does not get ready", self.role))
    }

    /// Does it say at this moment that it is ready?
    pub fn is_ready(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/readyz", self.admin);
        let answer = reqwest::blocking::Client::new().get(url).timeout(Duration::from_secs(2)).send();
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut server = self.server.take().context("it does not run")?;
        server.signal("KILL")?;
        server.ended(DEADLINE).map(drop)
    }

    /// Sends it a signal, by name.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: &str) -> Result<()> {
        self.server.as_ref().context("it does not run")?.signal(signal)
    }

    /// Was it started, and not ended by us?
    pub fn is_running(&self) -> bool {
        self.server.is_some()
    }

    /// Waits until it ends by itself; its exit code.
    ///
    /// # Errors
    /// When it does not, in time.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        self.server.take().context("it does not run")?.ended(DEADLINE)
    }

    /// What it wrote since it was started last.
    pub fn log(&self) -> String {
        let file = self.folder.join(self.starts.to_string()).join("server.log");
        std::fs::read_to_string(file).unwrap_or_default()
    }

    /// What all processes of its name have logged, one after the other.
    pub fn logs(&self) -> String {
        let file = |start: u32| self.folder.join(start.to_string()).join("server.log");
        (0..=self.starts).filter_map(|start| std::fs::read_to_string(file(start)).ok()).collect()
    }

    /// Where it keeps what must stay.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// SIGTERM; returns when it has ended, and fails unless it ended well.
    ///
    /// # Errors
    /// When it did not end in time, or not with 0.
    pub fn terminate(&mut self) -> Result<()> {
        let mut server = self.server.take().context("it does not run")?;
        server.signal("TERM")?;
        let code = server.ended(DEADLINE)?;
        ensure!(code == Some(0), "{} ended with {code:?}:\n{}", self.role, server.log());
        Ok(())
    }

    /// URL of the admin port.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// URL of the public port.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn yaml(settings: &Settings, name: &str, port: u16, admin: u16, folder: &Path) -> String {
    let mut yaml = format!(
        "pipeline: {}\nworker: {name}\nshards: {}\nlisten: 127.0.0.1:{port}\nadmin_listen: 127.0.0.1:{admin}\ndata_dir: {}\n",
        settings.pipeline,
        settings.shards,
        folder.join("data").display()
    );
    if let Some(kafka) = &settings.kafka {
        yaml.push_str(&format!(
            "log:\n  kafka:\n    brokers: [\"{kafka}\"]\n    replication: {}\n",
            settings.replication
        ));
        if !settings.security.is_empty() {
            yaml.push_str("    security:\n");
        }
        for (name, value) in &settings.security {
            yaml.push_str(&format!("      {name}: \"{value}\"\n"));
        }
    }
    if let Some(uri) = &settings.mongodb {
        let database = settings.pipeline.replace('.', "_");
        yaml.push_str(&format!("documents:\n  mongodb:\n    uri: \"{uri}\"\n    database: {database}\n"));
    }
    if let Some(otlp) = &settings.otlp {
        yaml.push_str(&format!("telemetry:\n  otlp_endpoint: {otlp}\n  sample_ratio: 1.0\n"));
    }
    yaml.push_str(&settings.more);
    yaml.push_str("tenants:\n");
    for (tenant, key) in &settings.tenants {
        yaml.push_str(&format!("  - name: {tenant}\n    api_keys:\n      - plain: {key}\n"));
    }
    yaml
}

/// A running pipeline in a folder of its own.
pub struct Pipeline {
    /// Its processes; the first has the public port.
    pub processes: Vec<Process>,
    folder: Option<tempfile::TempDir>,
}

impl Pipeline {
    /// One process on embedded stores.
    ///
    /// # Errors
    /// When it does not start.
    pub fn local(settings: &Settings) -> Result<Pipeline> {
        Pipeline::named(settings, &[("local", "local")])
    }

    /// Four processes, one per role.
    ///
    /// # Errors
    /// When one does not start.
    pub fn roles(settings: &Settings) -> Result<Pipeline> {
        Pipeline::named(settings, &["gateway", "unify", "action", "reaction"].map(|role| (role, role)))
    }

    /// Processes with these roles and names, the gateway first.
    ///
    /// # Errors
    /// When one does not start.
    pub fn named(settings: &Settings, processes: &[(&'static str, &str)]) -> Result<Pipeline> {
        let mut pipeline = Pipeline::launched(settings, processes)?;
        for process in &mut pipeline.processes {
            process.ready()?;
        }
        Ok(pipeline)
    }

    /// As [`Pipeline::named`], without waiting until they are ready.
    ///
    /// # Errors
    /// When one does not start.
    pub fn launched(settings: &Settings, processes: &[(&'static str, &str)]) -> Result<Pipeline> {
        let folder = tempfile::tempdir()?;
        let of = |(role, name): &(&'static str, &str)| Process::new(role, name, settings, folder.path());
        let processes = processes.iter().map(of).collect::<Result<Vec<_>>>()?;
        let mut pipeline = Pipeline { processes, folder: Some(folder) };
        for process in &mut pipeline.processes {
            process.launch()?;
        }
        Ok(pipeline)
    }

    /// What `millstream COMMAND` printed with the configuration of the worker of unify, and its exit code.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let unify = self.processes.iter().find(|process| process.role == "unify").context("no worker of unify")?;
        let output =
            Command::new(binary()?).arg(command).args(arguments).arg("--config").arg(unify.config()).output()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
    }

    /// The process with the public port.
    ///
    /// # Errors
    /// Never, in practice.
    pub fn gateway(&self) -> Result<&Process> {
        self.processes.first().context("no process")
    }

    /// Admin URLs of all processes.
    pub fn admins(&self) -> Vec<String> {
        self.processes.iter().map(Process::admin_url).collect()
    }
}

/// What a failed test shows of each process; all of it stays with `MILLSTREAM_KEEP`.
const LAST_LINES: usize = 25;

impl Drop for Pipeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for process in &self.processes {
                let log = process.log();
                let lines: Vec<&str> = log.lines().rev().take(LAST_LINES).collect();
                eprintln!("{}, last of its log:", process.name);
                lines.iter().rev().for_each(|line| eprintln!("    {line}"));
            }
        }
        if std::env::var_os("MILLSTREAM_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}
