//! The cache of installed servers.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

const KAFKA_VERSION: &str = "4.4.0";
const MONGO_VERSION: &str = "0.5.3-beta.196";
const MONGO_BINARY: &str = "secantusd-rs";
const KUBERNETES_VERSION: &str = "1.34.4";
/// What makes Kubernetes' programs, kubectl and etcd one program: it is linked once, not seven times.
const HYPERKUBE: [(&str, &str); 3] = [
    ("go.mod", include_str!("../../cluster/hyperkube/go.mod")),
    ("go.sum", include_str!("../../cluster/hyperkube/go.sum")),
    ("main.go", include_str!("../../cluster/hyperkube/main.go")),
];
const HELM_VERSION: &str = "3.19.5";
/// Of the versions that Kubernetes is built with, so that most of it is compiled once.
const HELM: [(&str, &str); 2] =
    [("go.mod", include_str!("../../cluster/helm/go.mod")), ("go.sum", include_str!("../../cluster/helm/go.sum"))];
/// It has no version that Go knows; its commit of 2026-02-12.
const MINIO_VERSION: &str = "v0.0.0-20260212201848-7aac2a2c5b7c";
const GO: &str = "install Go 1.24 or newer from https://go.dev/dl, for Debian 12 has an older one";
const POM: &str = include_str!("../../servers/kafka/pom.xml");

/// The folder with Kafka's jars; fetches them when they are not there yet (about 45 MB, by Maven).
///
/// # Errors
/// When Java or Maven is missing, or the download fails; the message says what to do.
pub fn install_kafka() -> Result<PathBuf> {
    ensure!(POM.contains(&format!("<version>{KAFKA_VERSION}</version>")), "pom.xml does not pin Kafka {KAFKA_VERSION}");
    let jars = root()?.join(format!("kafka-{KAFKA_VERSION}")).join("libs");
    let complete = || jars.join(format!("kafka_2.13-{KAFKA_VERSION}.jar")).is_file();
    needs("java", "-version", "apt-get install openjdk-17-jre-headless")?;
    once(&format!("kafka-{KAFKA_VERSION}"), complete, |folder| {
        needs("mvn", "-version", "apt-get install maven")?;
        std::fs::write(folder.join("pom.xml"), POM)?;
        let fetch = ["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs", "-DincludeScope=runtime"];
        run(Command::new("mvn").args(fetch).current_dir(folder))
    })?;
    Ok(jars)
}

/// The MongoDB-compatible server's binary; builds it when it is not there yet (about 10 minutes on 2 cores).
///
/// # Errors
/// When cargo is missing or the build fails.
pub fn install_mongo() -> Result<PathBuf> {
    let name = format!("secantus-mdb-{MONGO_VERSION}");
    let binary = root()?.join(&name).join("bin").join(MONGO_BINARY);
    once(
        &name,
        || binary.is_file(),
        |folder| {
            needs("cargo", "--version", "curl https://sh.rustup.rs | sh")?;
            let build = folder.join("build");
            let version = ["--version", MONGO_VERSION, "--locked", "--ignore-rust-version", "--root", "."];
            let mut command = Command::new("cargo");
            command.args(["install", "secantus-mdb"]).args(version).current_dir(folder);
            run(command.env("CARGO_TARGET_DIR", &build).env_remove("RUSTFLAGS"))?;
            std::fs::remove_dir_all(build).context("cannot remove the build folder")
        },
    )?;
    Ok(binary)
}

/// The program that is etcd, every program of Kubernetes, and kubectl, by its first argument; builds it when it is not there yet (about 6 minutes on 2 cores).
///
/// # Errors
/// When Go is missing or the build fails.
pub fn install_kubernetes() -> Result<PathBuf> {
    let pinned = format!("k8s.io/kubernetes v{KUBERNETES_VERSION}");
    ensure!(HYPERKUBE.iter().any(|(_, text)| text.contains(&pinned)), "go.mod does not pin {pinned}");
    let flags = version_flags(KUBERNETES_VERSION)?;
    install_go_program(&format!("kubernetes-{KUBERNETES_VERSION}"), &HYPERKUBE, ".", "hyperkube", &flags)
}

/// `helm`, which installs our charts; builds it when it is not there yet (about 2 minutes on 2 cores, with Kubernetes' own build before it).
///
/// # Errors
/// When Go is missing or the build fails.
pub fn install_helm() -> Result<PathBuf> {
    let pinned = format!("helm.sh/helm/v3 v{HELM_VERSION}");
    ensure!(HELM.iter().any(|(_, text)| text.contains(&pinned)), "go.mod does not pin {pinned}");
    let minor = KUBERNETES_VERSION.split('.').nth(1).context("a version without a minor one")?;
    let said = [
        ("internal/version.version", format!("v{HELM_VERSION}")),
        // Without these, `helm template` believes in Kubernetes 1.20.
        ("pkg/chartutil.k8sVersionMajor", "1".to_owned()),
        ("pkg/chartutil.k8sVersionMinor", minor.to_owned()),
    ];
    let said: String = said.iter().map(|(name, value)| format!(" -X helm.sh/helm/v3/{name}={value}")).collect();
    let package = "helm.sh/helm/v3/cmd/helm";
    install_go_program(&format!("helm-{HELM_VERSION}"), &HELM, package, "helm", &format!("-s -w{said}"))
}

/// `minio`, which speaks S3; builds it when it is not there yet (about 5 minutes on 2 cores).
///
/// # Errors
/// When Go is missing or the build fails.
pub fn install_minio() -> Result<PathBuf> {
    let name = format!("minio-{}", MINIO_VERSION.rsplit('-').next().unwrap_or(MINIO_VERSION));
    let binary = root()?.join(&name).join("minio");
    once(
        &name,
        || binary.is_file(),
        |folder| {
            needs("go", "version", GO)?;
            let (package, flags) =
                (format!("github.com/minio/minio@{MINIO_VERSION}"), ["-trimpath", "-ldflags", "-s -w"]);
            let mut command = Command::new("go");
            command.arg("install").args(flags).arg(package).current_dir(folder);
            run(command.env("GOBIN", folder).env("CGO_ENABLED", "0"))
        },
    )?;
    Ok(binary)
}

/// Builds a package of the module of these files as the folder `name` of the cache; the program.
fn install_go_program(
    name: &str,
    module: &[(&str, &str)],
    package: &str,
    program: &str,
    flags: &str,
) -> Result<PathBuf> {
    let binary = root()?.join(name).join(program);
    once(
        name,
        || binary.is_file(),
        |folder| {
            needs("go", "version", GO)?;
            let sources = folder.join("sources");
            std::fs::create_dir(&sources)?;
            for (file, text) in module {
                std::fs::write(sources.join(file), text)?;
            }
            let (target, build) = (folder.join(program), ["build", "-trimpath", "-ldflags", flags, "-o"]);
            let mut command = Command::new("go");
            command.args(build).arg(target).arg(package).current_dir(&sources).env("CGO_ENABLED", "0");
            run(&mut command)?;
            std::fs::remove_dir_all(sources).context("cannot remove the sources")
        },
    )?;
    Ok(binary)
}

/// What Kubernetes' own build says of its version; without it, clients take it for version 0.
fn version_flags(version: &str) -> Result<String> {
    let minor = version.split('.').nth(1).context("a version without a minor one")?;
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        let said = [
            ("gitVersion", format!("v{version}")),
            ("gitMajor", "1".to_owned()),
            ("gitMinor", minor.to_owned()),
            ("gitTreeState", "clean".to_owned()),
            ("gitCommit", "0".repeat(40)),
            ("buildDate", "1970-01-01T00:00:00Z".to_owned()),
        ];
        for (name, value) in said {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    Ok(flags)
}

/// Where everything is.
pub(super) fn root() -> Result<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = folder("MILLSTREAM_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("millstream")))
        .or_else(|| folder("HOME").map(|home| home.join(".cache/millstream")))
        .context("set MILLSTREAM_CACHE to a folder for the test servers (neither it nor HOME is set)")?;
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    Ok(root)
}

/// Fills the folder `name` of the cache unless it is complete. One process at a time; what is half done never gets the name.
fn once(name: &str, complete: impl Fn() -> bool, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if complete() {
        return Ok(());
    }
    let root = root()?;
    let lock = File::create(root.join(format!("{name}.lock"))).context("cannot create the lock file")?;
    lock.lock().context("cannot lock the cache")?;
    if complete() {
        return Ok(());
    }
    eprintln!("installing {name} into {} (once)", root.display());
    let (partial, whole) = (root.join(format!("{name}.partial")), root.join(name));
    for left in [&partial, &whole] {
        if left.exists() {
            std::fs::remove_dir_all(left).with_context(|| format!("cannot remove {}", left.display()))?;
        }
    }
    std::fs::create_dir_all(&partial)?;
    fill(&partial).with_context(|| format!("cannot install {name}"))?;
    std::fs::rename(&partial, &whole).with_context(|| format!("cannot rename to {}", whole.display()))?;
    ensure!(complete(), "{} is not complete after the installation", whole.display());
    Ok(())
}

fn needs(program: &str, argument: &str, remedy: &str) -> Result<()> {
    match Command::new(program).arg(argument).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!("`{program} {argument}` fails: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => bail!("`{program}` is needed for the test servers ({error}): on Debian, {remedy}"),
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    bail!("{command:?} fails with {}:\n{out}\n{error}", output.status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn an_installation_that_was_cut_short_is_done_again() {
        let name = format!("test-{}", std::process::id());
        let whole = root().unwrap().join(&name);
        let done = || whole.join("done").is_file();
        let cut = once(&name, done, |folder| {
            std::fs::write(folder.join("half"), "")?;
            bail!("cut short")
        });
        assert!(format!("{:#}", cut.unwrap_err()).contains("cut short"));
        assert!(!whole.exists());
        let runs = Cell::new(0);
        for _ in 0..2 {
            once(&name, done, |folder| {
                runs.set(runs.get() + 1);
                assert!(!folder.join("half").exists());
                Ok(std::fs::write(folder.join("done"), "")?)
            })
            .unwrap();
        }
        assert_eq!(runs.get(), 1);
        std::fs::remove_dir_all(&whole).unwrap();
        std::fs::remove_file(root().unwrap().join(format!("{name}.lock"))).unwrap();
    }

    #[test]
    fn a_missing_program_is_named_with_its_remedy() {
        let error = needs("no-such-program", "--version", "apt-get install it").unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("apt-get install it"), "{error}");
    }
}
