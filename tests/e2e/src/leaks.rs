//! What pods may leave on a node: counted before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// containerd's own of tasks, and of pods that a shim made.
const BUNDLES: [(&str, &str); 4] = [
    ("bundles", "/run/containerd/io.containerd.runtime.v2.task"),
    ("working directories", "/var/lib/containerd/io.containerd.runtime.v2.task"),
    ("bundles of pods", "/run/containerd/io.containerd.sandbox.controller.v1.shim"),
    ("working directories of pods", "/var/lib/containerd/io.containerd.sandbox.controller.v1.shim"),
];

/// Names of everything on the node that a pod could have made.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces {
    kinds: BTreeMap<&'static str, Vec<String>>,
}

impl Traces {
    pub fn now() -> Self {
        let mut kinds = BTreeMap::new();
        kinds.insert("processes", processes());
        kinds.insert("mounts", mounts());
        kinds.insert("network interfaces", interfaces());
        kinds.insert("network namespaces", names("/run/netns"));
        kinds.insert("in network namespaces", crate::netns::contents());
        kinds.insert("cgroups", cgroups());
        kinds.insert("sockets", names("/run/containerd/s"));
        kinds.insert("user ids", names("/run/bulkhead/uids"));
        kinds.insert("files", tree("/run/bulkhead"));
        for (kind, directory) in BUNDLES {
            kinds.insert(kind, tree(directory));
        }
        kinds.insert("loop devices", loops());
        Self { kinds }
    }

    /// What is there now and was not there `before`, kind by kind.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let fresh = |(kind, names): (&&'static str, &Vec<String>)| {
            let known = before.kinds.get(*kind).cloned().unwrap_or_default();
            names.iter().filter(|name| !known.contains(name)).map(|name| format!("{kind}: {name}")).collect::<Vec<_>>()
        };
        self.kinds.iter().flat_map(fresh).collect()
    }
}

/// Fails with a list of what was left, after a grace in which exits may still be noticed.
#[track_caller]
pub fn assert_nothing_left_since(before: &Traces) {
    let mut left = Vec::new();
    for _ in 0..100 {
        left = Traces::now().since(before);
        if left.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    panic!("left behind:\n{}", left.join("\n"));
}

/// The one process of ours that is there now, was not `before`, and whose name begins so.
#[track_caller]
pub fn new_process(before: &Traces, name: &str) -> u32 {
    let fresh = Traces::now().since(before);
    let pids = fresh.iter().filter_map(|trace| trace.strip_prefix("processes: ")?.split_once(' '));
    let pids: Vec<&str> = pids.filter(|(_, process)| process.starts_with(name)).map(|(pid, _)| pid).collect();
    let [pid] = pids[..] else { panic!("not one {name}: {pids:?}") };
    pid.parse().expect("a pid")
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Without the bridges that CNI plugins make for the first pod and keep.
fn interfaces() -> Vec<String> {
    names("/sys/class/net").into_iter().filter(|name| !["cni0", "e2e0"].contains(&name.as_str())).collect()
}

/// Our processes, zombies too, as `pid name`.
pub fn processes() -> Vec<String> {
    let pids = names("/proc").into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let named = pids.filter_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let ours = ["bulkhead", "containerd-shim"].iter().any(|prefix| name.starts_with(prefix));
        ours.then(|| format!("{pid} {}", name.trim()))
    });
    named.collect()
}

fn mounts() -> Vec<String> {
    /// containerd keeps a layer mounted as long as it has it, from its first use on.
    const LAYERS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots/";
    /// Made with the first network namespace that anybody names.
    const NAMESPACES: &str = "/run/netns";
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let paths = table.lines().filter_map(|line| line.split_whitespace().nth(4));
    paths.filter(|path| *path != NAMESPACES && !path.starts_with(LAYERS)).map(str::to_owned).collect()
}

fn cgroups() -> Vec<String> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path| {
        if path.is_dir() {
            found.push(path.display().to_string());
        }
    });
    found
}

fn tree(root: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(Path::new(root), &mut |path| found.push(path.display().to_string()));
    // A namespace's directory stays for the next pod, like containerd's own.
    found.retain(|path| Path::new(path).strip_prefix(root).is_ok_and(|rest| rest.components().count() > 1));
    found
}

fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
    let entries: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for path in entries {
        visit(&path);
        if path.is_dir() && !path.is_symlink() {
            walk(&path, visit);
        }
    }
}

/// Loop devices with a file behind them.
fn loops() -> Vec<String> {
    names("/sys/block").into_iter().filter(|name| Path::new("/sys/block").join(name).join("loop").is_dir()).collect()
}
