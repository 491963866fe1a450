//! The sandbox's cgroup on the node: what its VMM and file server use is charged here, and one write kills them all.
//! cgroup v2 only.

use super::SandboxError;
use super::host::create_directories;
use super::id::SandboxId;
use super::spec::SpecError;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What is switched on for the accounting of pods, where the node has it.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// Where `linux.cgroupsPath` points, relative to the root of the hierarchy.
///
/// `slice:prefix:name` is systemd's notation; anything else is a path. The path of a containerd client may be empty.
pub(super) fn location(cgroups_path: &str, sandbox: &SandboxId) -> Result<PathBuf, SpecError> {
    let refused = || SpecError::CgroupsPath(cgroups_path.to_owned());
    let path = match cgroups_path.split(':').collect::<Vec<_>>()[..] {
        [""] => PathBuf::from("bulkhead").join(sandbox.namespace.as_str()).join(sandbox.id.as_str()),
        [path] => PathBuf::from(path.trim_start_matches('/')),
        [slice, prefix, name] => systemd_slice(slice).ok_or_else(refused)?.join(systemd_unit(prefix, name)),
        _ => return Err(refused()),
    };
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain && path.components().next().is_some() { Ok(path) } else { Err(refused()) }
}

/// `a-b.slice` lies in `a.slice`.
fn systemd_slice(slice: &str) -> Option<PathBuf> {
    let name = match slice {
        "" => "system",
        "-.slice" => return Some(PathBuf::new()),
        slice => slice.strip_suffix(".slice")?,
    };
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("{}.slice", &name[..end])).collect())
}

fn systemd_unit(prefix: &str, name: &str) -> String {
    match (prefix, name) {
        (_, name) if name.ends_with(".slice") => name.to_owned(),
        ("", name) => format!("{name}.scope"),
        (prefix, name) => format!("{prefix}-{name}.scope"),
    }
}

/// A cgroup that exists because of one sandbox.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    root: PathBuf,
    location: PathBuf,
}

impl Cgroup {
    pub fn new(root: &Path, location: &Path) -> Self {
        Self { root: root.to_owned(), location: location.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.root.join(&self.location)
    }

    /// Fails when the cgroup already has processes: killing it must never hit someone else's.
    pub fn create(&self) -> Result<(), SandboxError> {
        if !self.root.join("cgroup.controllers").exists() {
            return Err(SandboxError::NoCgroups(self.root.clone()));
        }
        let path = self.path();
        create_directories(&path, 0o755).map_err(SandboxError::host("create cgroup", &path.display()))?;
        self.delegate_controllers();
        if self.is_populated().map_err(SandboxError::host("read the state of cgroup", &path.display()))? {
            return Err(SandboxError::CgroupInUse(path));
        }
        Ok(())
    }

    /// Best effort: a node without a controller still runs pods.
    fn delegate_controllers(&self) {
        let mut directory = self.root.clone();
        for component in self.location.components() {
            for controller in CONTROLLERS {
                if let Err(error) = std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")) {
                    tracing::debug!(cgroup = %directory.display(), controller, %error, "controller is not available");
                }
            }
            directory.push(component);
        }
    }

    /// The file that a process joins the cgroup by writing `0` to.
    pub fn entrance(&self) -> Result<File, SandboxError> {
        let path = self.path().join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).map_err(SandboxError::host("open", &path.display()))
    }

    /// Kills every process in it and waits until they are gone. A cgroup that does not exist is fine.
    pub fn kill(&self, limit: Duration) -> Result<(), SandboxError> {
        let path = self.path();
        let end = Instant::now() + limit;
        match std::fs::write(path.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.map_err(SandboxError::host("kill the processes in cgroup", &path.display()))?,
        }
        while self.is_populated().map_err(SandboxError::host("read the state of cgroup", &path.display()))? {
            if Instant::now() > end {
                return Err(SandboxError::Deadline { operation: "killing the processes of the sandbox", limit });
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn is_populated(&self) -> io::Result<bool> {
        match std::fs::read_to_string(self.path().join("cgroup.events")) {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the cgroup, and its parents up to the root when they are ours and empty.
    pub fn remove(&self, sandbox: &SandboxId) -> Result<(), SandboxError> {
        let path = self.path();
        match std::fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SandboxError::host("remove cgroup", &path.display())(error));
            }
            _ => {}
        }
        for parent in self.own_parents(sandbox) {
            // Not empty: other sandboxes are in it, the last one removes it.
            if std::fs::remove_dir(self.root.join(parent)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The parents that no one but containerd's clients would have made: `/<namespace>/<id>` is what `ctr` asks for.
    /// kubelet's and systemd's are not ours to remove.
    fn own_parents(&self, sandbox: &SandboxId) -> Vec<&Path> {
        let ours = |path: &Path| path.starts_with("bulkhead") || path == Path::new(sandbox.namespace.as_str());
        let parents = self.location.ancestors().skip(1);
        parents.take_while(|parent| !parent.as_os_str().is_empty() && ours(parent)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxId {
        SandboxId::test("default", "pod")
    }

    #[test]
    fn cgroup_paths_are_expanded() {
        let cases = [
            ("", "bulkhead/default/pod"),
            ("/default/pod", "default/pod"),
            ("kubepods/burstable/pod1/c1", "kubepods/burstable/pod1/c1"),
            (
                "kubepods-burstable-pod1.slice:cri-containerd:c1",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-c1.scope",
            ),
            (":ctr:c1", "system.slice/ctr-c1.scope"),
            ("-.slice:ctr:c1", "ctr-c1.scope"),
        ];
        for (text, path) in cases {
            assert_eq!(location(text, &sandbox()).unwrap(), Path::new(path), "{text}");
        }
    }

    #[test]
    fn paths_out_of_the_hierarchy_are_refused() {
        for text in ["/", "/../etc", "a/../../b", "../x", "a:b", "a:b:c:d", "a.scope:b:c", "x.slice:..:/../../c"] {
            assert!(location(text, &sandbox()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_parents_that_ctr_made_are_removed() {
        let parents = |location: &str| {
            let cgroup = Cgroup::new(Path::new("/sys/fs/cgroup"), Path::new(location));
            cgroup.own_parents(&sandbox()).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(parents("default/pod"), ["default"]);
        assert_eq!(parents("bulkhead/default/pod"), ["bulkhead/default", "bulkhead"]);
        assert_eq!(parents("kubepods/burstable/pod1/c1"), [""; 0]);
        assert_eq!(parents("pod"), [""; 0]);
    }

    #[test]
    fn a_node_without_cgroup_v2_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = Cgroup::new(root.path(), Path::new("default/pod")).create().unwrap_err();
        assert!(error.to_string().starts_with("cgroup v2 is not mounted at "), "{error}");
    }

    #[test]
    fn a_cgroup_that_is_gone_can_be_killed_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = Cgroup::new(root.path(), Path::new("default/pod"));
        cgroup.kill(Duration::ZERO).unwrap();
        cgroup.remove(&sandbox()).unwrap();
    }
}
