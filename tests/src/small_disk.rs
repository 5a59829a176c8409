//! A disk that can be filled.

use std::io::{ErrorKind, Result, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// 32 MB in memory, mounted on a folder until dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it on a folder, which is made; `None`, and said so, where that is not permitted.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn mount(at: &Path) -> Result<Option<SmallDisk>> {
        std::fs::create_dir_all(at)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(Some(SmallDisk(at.to_owned()))),
            refused => {
                eprintln!("SKIPPED: a file system of 32 MB cannot be mounted here, which needs root: {refused:?}");
                Ok(None)
            }
        }
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Takes away all that is on it.
    ///
    /// # Errors
    /// When a file stays.
    pub fn clear(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }?;
        }
        Ok(())
    }

    /// Leaves no room on it; what others have freed since the last time is taken as well.
    ///
    /// # Errors
    /// When something else goes wrong.
    pub fn fill(&self) -> Result<()> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.filler())?;
        loop {
            match file.write_all(&[7; 4 << 10]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends that.
    ///
    /// # Errors
    /// When it is not full.
    pub fn free(&self) -> Result<()> {
        std::fs::remove_file(self.filler())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Who still has files open there keeps them.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.as_ref().is_ok_and(std::process::ExitStatus::success) {
            eprintln!("{} stays mounted: {unmounted:?}", self.0.display());
        }
    }
}
