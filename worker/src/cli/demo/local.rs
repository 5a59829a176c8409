//! A `millstream local` of the demo's own: started, watched, stopped.

use crate::cli::Admin;
use anyhow::{Context, bail};
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Opening empty stores takes a second or two; a busy machine may need many times that.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// A clean end flushes the stores.
const STOPPED_WITHIN: Duration = Duration::from_secs(30);

/// The running child; it ends with its handle.
pub(super) struct Local {
    child: Child,
    log: PathBuf,
    /// Base URL of the public port.
    pub(super) url: String,
    /// Its admin port.
    pub(super) admin: Admin,
}

impl Local {
    /// Starts it in a folder and waits until it is ready.
    pub(super) fn start(folder: &Path, tenants: impl Iterator<Item = (String, String)>) -> anyhow::Result<Local> {
        let (listen, admin_listen) = free_addresses()?;
        let config = folder.join("millstream.yaml");
        let data = folder.join("data");
        let text = configuration(&listen, &admin_listen, &data, tenants)?;
        std::fs::write(&config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let log = folder.join("local.log");
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let program = std::env::current_exe().context("cannot find the program itself")?;
        let child = Command::new(program)
            .args(["local", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start `millstream local`")?;
        let admin = Admin::new(&format!("http://{admin_listen}"))?;
        let mut local = Local { child, log, url: format!("http://{listen}"), admin };
        local.wait_until_ready()?;
        Ok(local)
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while !self.admin.is_ready() {
            if let Some(status) = self.ended()? {
                bail!("`millstream local` ended by itself ({status}). Its last words:\n{}", self.last_words());
            }
            if begun.elapsed() > READY_WITHIN {
                bail!("`millstream local` is not ready after {READY_WITHIN:?}. Its last words:\n{}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Has it ended by itself?
    pub(super) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.child.try_wait().context("cannot watch `millstream local`")
    }

    /// The end of what it logged.
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
    }

    /// Ends it as Ctrl-C does; an error when that is not a clean end.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-INT", &pid]).stderr(Stdio::null()).status();
        if !asked.is_ok_and(|status| status.success()) {
            // A system without the program `kill`: the embedded stores survive a hard end too.
            return self.child.kill().context("cannot stop `millstream local`");
        }
        let begun = Instant::now();
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("`millstream local` did not end well ({status}):\n{}", self.last_words()),
                None if begun.elapsed() > STOPPED_WITHIN => {
                    bail!("`millstream local` does not stop within {STOPPED_WITHIN:?}:\n{}", self.last_words())
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        // After a clean end both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two addresses that are free now. Both are held while the second is chosen, so that they differ.
fn free_addresses() -> anyhow::Result<(String, String)> {
    let bind = || TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1");
    let (public, admin) = (bind()?, bind()?);
    Ok((public.local_addr()?.to_string(), admin.local_addr()?.to_string()))
}

fn configuration(
    listen: &str,
    admin_listen: &str,
    data: &Path,
    tenants: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<String> {
    let tenants: Vec<serde_json::Value> =
        tenants.map(|(name, key)| serde_json::json!({"name": name, "api_keys": [{"plain": key}]})).collect();
    let config =
        serde_json::json!({"listen": listen, "admin_listen": admin_listen, "data_dir": data, "tenants": tenants});
    Ok(serde_yaml::to_string(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_the_configuration_names_them() {
        let (public, admin) = free_addresses().unwrap();
        assert_ne!(public, admin);
        let tenants = [("acme".to_owned(), "key-of-acme".to_owned())].into_iter();
        let text = configuration(&public, &admin, Path::new("/tmp/x"), tenants).unwrap();
        assert!(text.contains(&format!("listen: {public}")) && text.contains("plain: key-of-acme"), "{text}");
    }
}
