//! Disks that are really full: a tmpfs of a size. Needs root.

use crate::account;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

/// A tmpfs that is unmounted with it.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts one of the account's at `path`, with options such as `size=5m`.
    pub fn mount(path: PathBuf, options: &str) -> Self {
        let account = account::account();
        let owner = format!("uid={},gid={},mode=700", account.uid, account.gid);
        let mounted = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("{options},{owner}"),
                "pgark-test",
            ])
            .arg(&path)
            .status()
            .unwrap();
        assert!(mounted.success(), "could not mount a tmpfs: {mounted}");
        Self(path)
    }

    /// Remounts it with other options.
    pub fn grow(&self, options: &str) {
        let grown = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status()
            .unwrap();
        assert!(grown.success());
    }

    /// Fills it, and leaves `bytes` free.
    pub fn fill(&self, bytes: u64) -> PathBuf {
        // With a name that no object has, so that verify does not mind it in a repository.
        let ballast = self.0.join("ballast+");
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - bytes).unwrap();
        ballast
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
