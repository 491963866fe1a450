//! The sandbox's cgroup on the node: what its VMM and file server use is charged here, and one write kills them all.
//! cgroup v2 only.
//!
//! ```text
//! <location>                       where the client wants the pod; it may exist, and hold others
//! <location>/bulkhead:<ns>:<id>    the sandbox's processes; the only cgroup that is ever killed
//! ```

use super::SandboxError;
use super::host::create_directories;
use super::id::SandboxId;
use super::spec::SpecError;
use std::fs::File;
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
    /// No client can ask for a place of this name by accident, and no two sandboxes share one: names have no colon.
    leaf: String,
    /// What `ctr` calls the parent of its cgroups.
    namespace: String,
}

impl Cgroup {
    pub fn new(root: &Path, location: &Path, sandbox: &SandboxId) -> Self {
        let SandboxId { namespace, id } = sandbox;
        let leaf = format!("bulkhead:{namespace}:{id}");
        Self { root: root.to_owned(), location: location.to_owned(), leaf, namespace: namespace.to_string() }
    }

    fn path(&self) -> PathBuf {
        self.root.join(&self.location).join(&self.leaf)
    }

    #[cfg(test)]
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// The parents that [`Self::create`] would make, the innermost first. Relative to the root.
    pub fn missing_parents(&self) -> Vec<PathBuf> {
        let missing = |parent: &&Path| !self.root.join(parent).exists();
        self.parents().take_while(missing).map(Path::to_owned).collect()
    }

    /// The innermost first, without the root.
    fn parents(&self) -> impl Iterator<Item = &Path> {
        self.location.ancestors().take_while(|parent| !parent.as_os_str().is_empty())
    }

    /// Fails when the cgroup already has processes.
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

    /// Down to the location: what is used below it is charged to it. Best effort: a node without a controller still
    /// runs pods, and so does a parent with processes of its own, which cannot have controllers for its children.
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

    /// Its directory, for a process that is to be born in it.
    pub fn open(&self) -> Result<File, SandboxError> {
        let path = self.path();
        File::open(&path).map_err(SandboxError::host("open", &path.display()))
    }

    /// Kills every process in it, those that come meanwhile too, and waits until they are gone. A cgroup that does not exist is fine.
    pub fn kill(&self, limit: Duration) -> Result<(), SandboxError> {
        let path = self.path();
        let end = Instant::now() + limit;
        loop {
            match std::fs::write(path.join("cgroup.kill"), "1") {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result.map_err(SandboxError::host("kill the processes in cgroup", &path.display()))?,
            }
            if !self.is_populated().map_err(SandboxError::host("read the state of cgroup", &path.display()))? {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(SandboxError::deadline("killing the processes of the sandbox", limit));
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn is_populated(&self) -> io::Result<bool> {
        match std::fs::read_to_string(self.path().join("cgroup.events")) {
            Ok(events) => Ok(events.lines().any(|line| line == "populated 1")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the cgroup, and its parents up to the root when they are ours (`made` are, as [`Self::missing_parents`]
    /// told) and empty.
    pub fn remove(&self, made: &[PathBuf], limit: Duration) -> Result<(), SandboxError> {
        let path = self.path();
        let end = Instant::now() + limit;
        loop {
            match remove_directory(&path) {
                // A shim that is not dead after all has started something since.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {
                    self.kill(limit)?
                }
                result => break result.map_err(SandboxError::host("remove cgroup", &path.display()))?,
            }
        }
        for parent in self.own_parents(made) {
            // In use by others: the last of our sandboxes removes it, or its owner.
            if remove_directory(&self.root.join(parent)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Those that this sandbox made, and those that it shares with others of ours: `/<namespace>/<id>` is what `ctr` asks
    /// for. kubelet's and systemd's are not ours to remove.
    fn own_parents(&self, made: &[PathBuf]) -> Vec<&Path> {
        let named = |path: &Path| path.starts_with("bulkhead") || path == Path::new(&self.namespace);
        self.parents().take_while(|parent| named(parent) || made.iter().any(|path| path == parent)).collect()
    }
}

fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
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

    fn cgroup(root: &Path, location: &str) -> Cgroup {
        Cgroup::new(root, Path::new(location), &sandbox())
    }

    #[test]
    fn only_parents_that_exist_because_of_us_are_removed() {
        let parents = |location: &str, made: &[&str]| {
            let made: Vec<_> = made.iter().map(PathBuf::from).collect();
            let cgroup = cgroup(Path::new("/sys/fs/cgroup"), location);
            cgroup.own_parents(&made).iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(parents("default/pod", &["default/pod"]), ["default/pod", "default"]);
        assert_eq!(parents("bulkhead/default/pod", &[]), ["bulkhead/default/pod", "bulkhead/default", "bulkhead"]);
        assert_eq!(parents("kubepods/pod1/c1", &["kubepods/pod1/c1"]), ["kubepods/pod1/c1"]);
        assert_eq!(parents("a/b", &["a/b", "a"]), ["a/b", "a"]);
        assert_eq!(parents("system.slice", &[]), [""; 0]);
    }

    #[test]
    fn missing_parents_are_those_that_creation_makes() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        std::fs::create_dir(root.path().join("a")).unwrap();
        let cgroup = cgroup(root.path(), "a/b/c");
        assert_eq!(cgroup.missing_parents(), ["a/b/c", "a/b"].map(PathBuf::from));
        cgroup.create().unwrap();
        assert!(cgroup.missing_parents().is_empty());
    }

    #[test]
    fn a_node_without_cgroup_v2_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = cgroup(root.path(), "default/pod").create().unwrap_err();
        assert!(error.to_string().starts_with("cgroup v2 is not mounted at "), "{error}");
    }

    #[test]
    fn a_cgroup_that_is_gone_can_be_killed_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let cgroup = cgroup(root.path(), "default/pod");
        cgroup.kill(Duration::ZERO).unwrap();
        cgroup.remove(&[], Duration::ZERO).unwrap();
    }
}
