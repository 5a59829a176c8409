//! OCI images as `tests/cluster` runs them, without a container engine. That of our own programs is what the `Dockerfile` makes of them: its step that collects files is run here, and what it says of
//! user, environment and entry point is read off it. The programs are those of daily builds, and the libraries and certificates this machine's.

use super::process::folder;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::process::Command;

const DOCKERFILE: &str = include_str!("../../../Dockerfile");
/// Where its step finds programs, and where it leaves the image's content; and the variables that stand for them here.
const PLACES: [(&str, &str); 2] = [("/out", "$OUT"), ("/image", "$IMAGE")];

/// Writes an archive that `ctr images import` reads: what the Dockerfile makes of these programs.
///
/// # Errors
/// When something is missing, or cannot be read; or the Dockerfile has become another.
pub(super) fn write(archive: &Path, name: &str, programs: &[&Path]) -> Result<()> {
    in_folder(|work| {
        collect(work, programs)?;
        let said = |word: &str| said(word).with_context(|| format!("the Dockerfile has no {word}"));
        let config = json!({
            "Entrypoint": serde_json::from_str::<Value>(said("ENTRYPOINT")?)?,
            "User": said("USER")?,
            "Env": said("ENV")?.split_whitespace().collect::<Vec<_>>(),
        });
        pack(work, archive, name, &config)
    })
}

/// The same of one program that needs no library.
///
/// # Errors
/// When it cannot be read.
pub(super) fn write_static(archive: &Path, name: &str, program: &Path, user: &str) -> Result<()> {
    in_folder(|work| {
        let file = program.file_name().context("a program without a name")?;
        std::fs::create_dir(work.join("image"))?;
        std::fs::copy(program, work.join("image").join(file))?;
        let config = json!({"Entrypoint": [format!("/{}", file.to_string_lossy())], "User": user});
        pack(work, archive, name, &config)
    })
}

fn in_folder(did: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let work = folder("image")?;
    let done = did(&work);
    std::fs::remove_dir_all(&work)?;
    done
}

/// Runs the Dockerfile's step below `work`, on these programs.
fn collect(work: &Path, programs: &[&Path]) -> Result<()> {
    let (out, image) = (work.join("out"), work.join("image"));
    std::fs::create_dir(&out)?;
    for program in programs {
        let file = program.file_name().context("a program without a name")?;
        std::os::unix::fs::symlink(program, out.join(file))?;
    }
    let step = step().context("the Dockerfile has no step that fills /image")?;
    let step = PLACES.iter().fold(step.to_owned(), |step, (place, variable)| step.replace(place, variable));
    run(Command::new("sh").arg("-c").arg(step).env("OUT", out).env("IMAGE", image))
}

/// The Dockerfile's step that fills `/image`.
fn step() -> Option<&'static str> {
    let step = DOCKERFILE.split("\nRUN ").find(|step| step.contains("mkdir -p /image"))?;
    // Its lines end with a backslash, but for the last one.
    Some(step.split("\n\n").next().unwrap_or(step))
}

/// What follows this instruction in the Dockerfile's last stage.
fn said(instruction: &str) -> Option<&'static str> {
    let (_, last) = DOCKERFILE.rsplit_once("\nFROM ")?;
    last.lines().find_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '))
}

fn pack(work: &Path, archive: &Path, name: &str, config: &Value) -> Result<()> {
    let oci = work.join("oci");
    std::fs::create_dir_all(oci.join("blobs/sha256"))?;
    let layer = work.join("layer.tar");
    tar(&layer, &work.join("image"))?;
    let layer = std::fs::read(layer)?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
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
