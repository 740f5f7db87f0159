//! A small disk: a file system in memory that is soon full.

use std::path::Path;
use std::process::Command;

/// A mounted file system of a few MiB. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    directory: tempfile::TempDir,
}

/// What takes room until it is taken away.
const BALLAST: &str = "ballast";

impl SmallDisk {
    /// Mounts one of so many MiB, and puts ballast of so many into it.
    ///
    /// # Errors
    /// What `mount` says where that is not permitted.
    ///
    /// # Panics
    /// If the ballast does not fit.
    pub fn mount(mib: usize, ballast_mib: usize) -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("zex-disk-").tempdir().unwrap();
        let size = format!("size={mib}M");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(directory.path())
            .output()
            .map_err(|error| error.to_string())?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned());
        }
        let disk = Self { directory };
        std::fs::write(disk.path().join(BALLAST), vec![0; ballast_mib << 20]).unwrap();
        std::fs::create_dir(disk.path().join("data")).unwrap();
        Ok(disk)
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A directory on it.
    pub fn data(&self) -> std::path::PathBuf {
        self.path().join("data")
    }

    /// Makes room.
    ///
    /// # Panics
    /// If the ballast is gone already.
    pub fn make_room(&self) {
        std::fs::remove_file(self.path().join(BALLAST)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: somebody may just be going.
        let _unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
