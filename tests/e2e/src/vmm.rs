//! A VMM process, as the node sees it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A running `bulkhead-vmm`.
#[derive(Clone, Copy, Debug)]
pub struct Vmm {
    pub pid: u32,
}

impl Vmm {
    /// Every VMM on the node.
    pub fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        pids.map(|pid| Self { pid }).filter(|vmm| vmm.read("comm").trim() == "bulkhead-vmm").collect()
    }

    /// A file below `/proc/<pid>`; empty if there is none.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    /// A field of `status`, of the process or of one of its threads.
    pub fn status(&self, thread: u32, field: &str) -> String {
        let status = self.read(&format!("task/{thread}/status"));
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn threads(&self) -> Vec<u32> {
        let entries = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
    }

    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// What each open descriptor is, without the numbers of inodes: `anon_inode:kvm-vm`, `socket`, `pipe`, a path.
    pub fn descriptors(&self) -> BTreeMap<u32, String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let described = entries.filter_map(|entry| {
            let number = entry.file_name().to_string_lossy().parse().ok()?;
            let target = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
            let kind = match target.split_once(":[") {
                Some((kind, _)) if !target.starts_with("anon_inode") => kind.to_owned(),
                _ => target.replace(['[', ']'], ""),
            };
            Some((number, kind))
        });
        described.collect()
    }
}
