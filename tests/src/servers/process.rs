//! A server process that cannot outlive this one.
//!
//! The shell below starts the server and waits on its standard input, a pipe whose other end only this process has. When that end closes
//! (dropped here, or by the kernel when this process dies in whatever way) the shell ends the server and removes its folder. It has a process
//! group of its own, so that Ctrl-C reaches it by the pipe only. Until then it takes orders by that pipe: to kill the server, and to start it again on
//! the same folder.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const WATCHDOG: &str = r#"
folder=$1; signal=$2; then=$3; shift 3
run() {
    "$@" >>"$folder/server.log" 2>&1 &
    server=$!
    echo "$server"
}
run "$@"
while read -r order; do
    case $order in
    kill) kill -s KILL "$server"; wait "$server"; echo killed ;;
    terminate) kill -s TERM "$server"; wait "$server"; echo terminated ;;
    start) run "$@" ;;
    esac
done
kill -s CONT "$server" 2>/dev/null
kill -s "$signal" "$server" 2>/dev/null
wait "$server"
code=$?
test "$then" = keep || rm -rf "$folder"
exit "$code"
"#;

/// How a server is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SIGTERM: it may flush.
    Terminate,
    /// SIGKILL: its data is thrown away anyway.
    Kill,
}

/// A running server; ended when dropped.
#[derive(Debug)]
pub struct Server {
    watchdog: Child,
    answers: BufReader<ChildStdout>,
    pid: i32,
    folder: PathBuf,
}

/// Between two questions whether a server is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);

impl Server {
    /// Starts `command` with `folder` for its data and its log. The folder is removed in the end, unless `MILLSTREAM_KEEP` is set.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start(folder: PathBuf, stop: Stop, command: &[String]) -> Result<Server> {
        let then = if std::env::var_os("MILLSTREAM_KEEP").is_some() { "keep" } else { "remove" };
        Server::watched(folder, stop, then, command)
    }

    /// The same, and the folder stays.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn start_and_keep(folder: PathBuf, stop: Stop, command: &[String]) -> Result<Server> {
        Server::watched(folder, stop, "keep", command)
    }

    fn watched(folder: PathBuf, stop: Stop, then: &str, command: &[String]) -> Result<Server> {
        let signal = match stop {
            Stop::Terminate => "TERM",
            Stop::Kill => "KILL",
        };
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(&folder)
            .args([signal, then])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // It would say "Killed" of each server; what the server says is in its log.
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start sh")?;
        let answers = BufReader::new(watchdog.stdout.take().context("no output of the watchdog")?);
        let mut server = Server { watchdog, answers, pid: 0, folder };
        server.pid = server.answer()?.parse().context("the watchdog gave no process id")?;
        Ok(server)
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn order(&mut self, order: &str) -> Result<String> {
        let pipe = self.watchdog.stdin.as_mut().context("the watchdog takes no orders")?;
        writeln!(pipe, "{order}")?;
        self.answer()
    }

    /// `kill -9`; its folder stays, for [`Server::start_again`].
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.order("kill").map(drop)
    }

    /// SIGTERM, and waits until it has ended; its folder stays, for [`Server::start_again`].
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn terminate(&mut self) -> Result<()> {
        self.order("terminate").map(drop)
    }

    /// Starts a server again that was ended.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn start_again(&mut self) -> Result<()> {
        self.pid = self.order("start")?.parse().context("the watchdog gave no process id")?;
        Ok(())
    }

    /// Its process id, for signals.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends it a signal: `TERM`, `KILL`, `STOP`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, name: &str) -> Result<()> {
        let sent = Command::new("kill").args(["-s", name, &self.pid.to_string()]).status()?;
        anyhow::ensure!(sent.success(), "process {} cannot be sent {name}", self.pid);
        Ok(())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Does it still run? (A zombie does not.)
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    /// Waits until it has ended; its exit code, as a shell sees it.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn ended(&mut self, limit: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + limit;
        while self.is_running() {
            if Instant::now() >= deadline {
                bail!("the process does not end within {limit:?}; its log:\n{}", self.log());
            }
            std::thread::sleep(ASK_EVERY);
        }
        drop(self.watchdog.stdin.take());
        Ok(self.watchdog.wait()?.code())
    }

    /// The end of what it wrote.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.join("server.log")).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(4000)..).unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }

    /// Asks until it is ready.
    ///
    /// # Errors
    /// When it ends or does not get ready within `limit`; with the end of its log.
    pub fn wait_until<T, E: std::fmt::Display>(
        &self,
        limit: Duration,
        mut ask: impl FnMut() -> Result<T, E>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let error = match ask() {
                Ok(ready) => return Ok(ready),
                Err(error) => error,
            };
            if !self.is_running() {
                bail!("the server ended before it was ready; its log:\n{}", self.log());
            }
            if Instant::now() >= deadline {
                bail!("the server was not ready within {limit:?} ({error:#}); its log:\n{}", self.log());
            }
            std::thread::sleep(ASK_EVERY);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// A new folder for a server's data. The watchdog removes it.
pub(super) fn folder(name: &str) -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix(&format!("millstream-{name}-")).tempdir()?;
    Ok(folder.keep())
}

/// Where the variable is set, servers listen there instead of on loopback.
pub(super) const HOST: &str = "MILLSTREAM_TEST_HOST";

/// The address that servers listen on: loopback, or, in the network of a cluster, the one that Pods reach.
pub fn host() -> String {
    std::env::var(HOST).unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// Ports that nobody listens on. Below those that the kernel gives to outgoing connections, so that none of these takes one in between.
///
/// # Errors
/// When there are not so many.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(97);
    let (host, mut ports) = (host(), Vec::with_capacity(count));
    for _ in 0..2000 {
        let step = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + step % 12_000)?;
        if std::net::TcpListener::bind((host.as_str(), port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    bail!("no {count} free ports between 20000 and 32000")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(stop: Stop) -> Server {
        let command = ["sleep", "600"].map(str::to_owned);
        Server::start(folder("test").unwrap(), stop, &command).unwrap()
    }

    fn is_gone(pid: i32, folder: &Path) -> bool {
        !Path::new(&format!("/proc/{pid}")).exists() && !folder.exists()
    }

    #[test]
    fn a_dropped_server_is_gone_with_its_folder() {
        for stop in [Stop::Terminate, Stop::Kill] {
            let server = sleeper(stop);
            assert!(server.is_running());
            let (pid, folder) = (server.pid(), server.folder().to_owned());
            assert!(folder.exists());
            drop(server);
            assert!(is_gone(pid, &folder));
        }
    }

    #[test]
    fn a_killed_server_starts_again_on_its_folder() {
        let mut server = sleeper(Stop::Kill);
        let first = server.pid();
        std::fs::write(server.folder().join("data"), "kept").unwrap();
        server.kill().unwrap();
        assert!(!server.is_running());
        server.start_again().unwrap();
        assert!(server.is_running() && server.pid() != first && server.folder().join("data").exists());
    }

    /// The test binary starts itself as the process that is killed.
    #[test]
    fn a_killed_owner_takes_its_server_along() {
        if std::env::var_os("MILLSTREAM_TEST_OWNER").is_some() {
            let server = sleeper(Stop::Terminate);
            println!("owned {} {}", server.pid(), server.folder().display());
            loop {
                std::thread::park();
            }
        }
        let name = "servers::process::tests::a_killed_owner_takes_its_server_along";
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env("MILLSTREAM_TEST_OWNER", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find(|line| line.contains("owned ")).unwrap();
        let (_, rest) = line.split_once("owned ").unwrap();
        let (pid, folder) = rest.split_once(' ').unwrap();
        let (pid, folder) = (pid.parse().unwrap(), PathBuf::from(folder));
        owner.kill().unwrap();
        owner.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_gone(pid, &folder) {
            assert!(Instant::now() < deadline, "server {pid} outlives its owner");
            std::thread::sleep(ASK_EVERY);
        }
    }

    #[test]
    fn a_server_that_ends_early_shows_its_log() {
        let command = ["sh", "-c", "echo no such option; exit 1"].map(str::to_owned);
        let server = Server::start(folder("test").unwrap(), Stop::Kill, &command).unwrap();
        let error = server.wait_until(Duration::from_secs(10), || Err::<(), _>("not yet")).unwrap_err().to_string();
        assert!(error.contains("no such option"), "{error}");
    }

    #[test]
    fn how_a_process_ended_is_known_and_what_it_wrote_is_kept() {
        let kept = tempfile::tempdir().unwrap();
        let command = ["sh", "-c", "echo last words; exit 3"].map(str::to_owned);
        let mut server = Server::start_and_keep(kept.path().to_owned(), Stop::Kill, &command).unwrap();
        assert_eq!(server.ended(Duration::from_secs(10)).unwrap(), Some(3));
        drop(server);
        assert!(std::fs::read_to_string(kept.path().join("server.log")).unwrap().contains("last words"));
    }

    #[test]
    fn ports_differ() {
        let mut ports = free_ports(8).unwrap();
        ports.extend(free_ports(8).unwrap());
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 16);
    }
}
