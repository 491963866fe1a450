//! A container's cgroup: who is in it, how it is stopped, what it uses.
//!
//! Everything here is files of cgroup v2. crun makes the group and sets its limits.

mod freezer;
mod notified;
mod oom;
mod stats;

pub use notified::Notified;
pub use oom::{OomCounter, OomEvent};
pub use stats::parse_flat;

use crate::error::Error;
use crate::reaper;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// More pids than the kernel has, in a cgroup tree that is deeper than anybody builds.
const MAX_PIDS: usize = 1 << 22;
const MAX_DEPTH: usize = 64;

const POLL: Duration = Duration::from_millis(5);

#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Every process of the group and of the groups below it, as the guest numbers them.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        let mut pids = Vec::new();
        collect(&self.path, 0, &mut pids).map_err(Error::system("list the processes of", self.path.display()))?;
        Ok(pids)
    }

    /// Ends every process, at once and for sure. A group that is gone has none.
    pub fn kill(&self) -> Result<(), Error> {
        match self.write("cgroup.kill", "1") {
            Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to every process that is there now. `init` is last: when it ends, the others are killed.
    pub fn signal(&self, signal: i32, init: Option<u32>) -> Result<(), Error> {
        let mut pids = self.processes()?;
        pids.sort_by_key(|&pid| Some(pid) == init);
        for pid in pids {
            let Ok(pid) = i32::try_from(pid) else { continue };
            reaper::kill(pid, signal).map_err(Error::system("signal", format!("process {pid}")))?;
        }
        Ok(())
    }

    /// Waits until no process is left, at most `limit`; whether that is so.
    pub async fn emptied(&self, limit: Duration) -> bool {
        let empty = async {
            while self.event("populated").is_some_and(|populated| populated != 0) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(limit, empty).await.is_ok()
    }

    fn event(&self, key: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path.join("cgroup.events")).ok()?;
        parse_flat(&text).remove(key)
    }

    fn read(&self, file: &str) -> Option<String> {
        std::fs::read_to_string(self.path.join(file)).ok()
    }

    fn write(&self, file: &str, value: &str) -> Result<(), Error> {
        let path = self.path.join(file);
        // Not `fs::write`: it would create a file where a kernel lacks one, and hide that.
        let opened = std::fs::OpenOptions::new().write(true).open(&path);
        let written = opened.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
        written.map_err(Error::system("write to", path.display()))
    }
}

fn collect(group: &Path, depth: usize, pids: &mut Vec<u32>) -> io::Result<()> {
    match std::fs::read_to_string(group.join("cgroup.procs")) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|&pid| pid != 0)),
        // A threaded group below has no list of processes of its own.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        // It was removed meanwhile.
        Err(error) if depth > 0 && error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    if depth == MAX_DEPTH || pids.len() >= MAX_PIDS {
        return Ok(());
    }
    for entry in std::fs::read_dir(group)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), depth + 1, pids)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_groups_below_belong_to_the_container() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        for (file, text) in [("cgroup.procs", "1\n2\n"), ("a/cgroup.procs", ""), ("a/b/cgroup.procs", "3\n0\nx\n")] {
            std::fs::write(root.path().join(file), text).unwrap();
        }
        let mut pids = Cgroup::new(root.path().to_owned()).processes().unwrap();
        pids.sort_unstable();
        assert_eq!(pids, [1, 2, 3]);
    }

    #[test]
    fn a_group_that_is_gone_has_nothing_to_kill() {
        Cgroup::new("/nonexistent".into()).kill().unwrap();
        assert!(Cgroup::new("/nonexistent".into()).processes().is_err());
    }

    #[tokio::test]
    async fn a_group_that_is_gone_is_empty() {
        assert!(Cgroup::new("/nonexistent".into()).emptied(Duration::ZERO).await);
    }
}
