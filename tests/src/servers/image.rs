//! An OCI image of some programs, as `tests/cluster` runs them: the same content as the Dockerfile's, without a container engine.

use super::process::folder;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes an archive that `ctr images import` reads: these programs in `/usr/bin` with the shared libraries that they need, run as `user`, the first of them unless something else is asked for.
///
/// # Errors
/// When something is missing, or cannot be read.
pub(super) fn write(archive: &Path, name: &str, programs: &[&Path], user: &str) -> Result<()> {
    let work = folder("image")?;
    let written = layer(&work, programs).and_then(|()| pack(&work, archive, name, programs, user));
    std::fs::remove_dir_all(&work)?;
    written
}

fn layer(work: &Path, programs: &[&Path]) -> Result<()> {
    let root = work.join("root");
    for part in ["tmp", "usr/bin", "etc/ssl/certs"] {
        std::fs::create_dir_all(root.join(part))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnonroot:x:65532:65532::/:/bin/sh\n")?;
    let mut libraries = BTreeSet::new();
    for program in programs {
        let target = root.join("usr/bin").join(program.file_name().context("a program without a name")?);
        // Debug information is most of a program, and nobody debugs here.
        run(Command::new("strip").arg("-o").arg(&target).arg(program))?;
        let listed = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        libraries.extend(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from));
    }
    for library in libraries {
        let target = root.join(library.strip_prefix("/")?);
        std::fs::create_dir_all(target.parent().context("a library without a folder")?)?;
        std::fs::copy(&library, target).with_context(|| format!("cannot copy {}", library.display()))?;
    }
    Ok(())
}

fn pack(work: &Path, archive: &Path, name: &str, programs: &[&Path], user: &str) -> Result<()> {
    let oci = work.join("oci");
    std::fs::create_dir_all(oci.join("blobs/sha256"))?;
    let layer = work.join("layer.tar");
    tar(&layer, &work.join("root"))?;
    let first = programs.first().and_then(|program| program.file_name()).context("no program")?;
    let layer = std::fs::read(layer)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {
            "Entrypoint": [format!("/usr/bin/{}", first.to_string_lossy())],
            "User": user,
            "Env": ["PATH=/usr/bin"],
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    let config = blob(&oci, "config.v1+json", config.to_string().as_bytes(), &json!({}))?;
    let layer = blob(&oci, "layer.v1.tar", &layer, &json!({}))?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media("manifest.v1+json"), "config": config, "layers": [layer],
    });
    let named = json!({"io.containerd.image.name": name});
    let manifest = blob(&oci, "manifest.v1+json", manifest.to_string().as_bytes(), &named)?;
    std::fs::write(oci.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    std::fs::write(oci.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    tar(archive, &oci)
}

/// Writes a blob; its descriptor.
fn blob(oci: &Path, kind: &str, bytes: &[u8], annotations: &Value) -> Result<Value> {
    let digest = digest(bytes);
    std::fs::write(oci.join("blobs").join(digest.replace(':', "/")), bytes)?;
    Ok(json!({"mediaType": media(kind), "digest": digest, "size": bytes.len(), "annotations": annotations}))
}

fn media(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn tar(archive: &Path, folder: &Path) -> Result<()> {
    let same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"];
    run(Command::new("tar").args(same).arg("-cf").arg(archive).arg("-C").arg(folder).arg("."))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
