//! What a mount of a pod is, by the name of its source. Pure: the rules of kubelet's and containerd's directories are
//! in this file alone. What it does not know is shared as it is, which is always right, only not as cheap.

use std::path::{Component, Path, PathBuf};

/// kubelet's names for what it writes and nobody else: each has the layout that it swaps in one step.
const CONFIGURATION: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~downward-api", "kubernetes.io~projected"];

/// containerd's files for the containers of a pod.
const OF_SANDBOX: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// kubelet's name for directories that begin empty and end with the pod.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";

/// How a mount's source reaches the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum VolumePlan {
    /// A directory that is copied into the guest's memory, again after each update.
    Pushed,
    /// A file that is copied when a container is created.
    File,
    /// The same, and its content comes back when the container ends.
    Returned,
    /// A volume of the guest's own, in place of the directory.
    EmptyDir(EmptyDirPath),
    /// By the file server.
    Shared,
}

/// An emptyDir of the pod, or something in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EmptyDirPath {
    /// The volume's directory on the node.
    pub volume: PathBuf,
    /// Empty: all of it.
    pub below: PathBuf,
}

/// Where this pod's directories are on the node: real names.
#[derive(Clone, Debug, Default)]
pub(super) struct PodPaths {
    /// kubelet's.
    pub pod: Option<PathBuf>,
    /// containerd's, for the sandbox.
    pub sandboxes: Vec<PathBuf>,
}

/// The source of a mount, found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'a> {
    /// Its real name.
    pub path: &'a Path,
    /// What a bind mount's content is called elsewhere.
    pub origins: &'a [PathBuf],
    pub kind: Kind,
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Other,
}

impl PodPaths {
    pub fn classify(&self, found: Found<'_>) -> VolumePlan {
        let of_sandbox = self.sandboxes.iter().filter_map(|directory| names(found.path, directory));
        if of_sandbox.into_iter().any(|rest| matches!(rest[..], [name] if OF_SANDBOX.contains(&name)))
            && found.kind == Kind::File
        {
            return VolumePlan::File;
        }
        let Some(rest) = self.pod.as_ref().and_then(|pod| names(found.path, pod)) else { return VolumePlan::Shared };
        match (&rest[..], found.kind) {
            // What a container writes into its copy would not come back: kubelet mounts them read-only.
            (["volumes", plugin, _], Kind::Directory) if CONFIGURATION.contains(plugin) && found.read_only => {
                VolumePlan::Pushed
            }
            (["volume-subpaths", _, _, _], Kind::File) if found.read_only && self.is_configuration(found.origins) => {
                VolumePlan::File
            }
            (["volumes", EMPTY_DIR, _, ..], Kind::Directory | Kind::File) => {
                self.empty_dir(found.path).map_or(VolumePlan::Shared, VolumePlan::EmptyDir)
            }
            (["volume-subpaths", _, _, _], Kind::Directory | Kind::File) => {
                let mut origins = found.origins.iter().filter_map(|origin| self.empty_dir(origin));
                origins.next().map_or(VolumePlan::Shared, VolumePlan::EmptyDir)
            }
            (["etc-hosts"], Kind::File) => VolumePlan::File,
            (["containers", _, _], Kind::File) if !found.read_only => VolumePlan::Returned,
            _ => VolumePlan::Shared,
        }
    }

    /// Which emptyDir of this pod a name is in.
    fn empty_dir(&self, path: &Path) -> Option<EmptyDirPath> {
        let pod = self.pod.as_ref()?;
        match names(path, pod)?[..] {
            ["volumes", EMPTY_DIR, name, ref below @ ..] => {
                let volume = pod.join("volumes").join(EMPTY_DIR).join(name);
                Some(EmptyDirPath { volume, below: below.iter().collect() })
            }
            _ => None,
        }
    }

    /// Whether one of the names is in a configuration of this pod.
    fn is_configuration(&self, origins: &[PathBuf]) -> bool {
        let is_one =
            |rest: Vec<&str>| matches!(rest[..], ["volumes", plugin, _, _, ..] if CONFIGURATION.contains(&plugin));
        let Some(pod) = &self.pod else { return false };
        origins.iter().filter_map(|origin| names(origin, pod)).any(is_one)
    }
}

/// The names of a path below a directory. `None`: it is elsewhere, or spelled in a way that no real name is.
fn names<'a>(path: &'a Path, directory: &Path) -> Option<Vec<&'a str>> {
    let name = |part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    };
    path.strip_prefix(directory).ok()?.components().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "/var/lib/kubelet/pods/u1";
    const SANDBOX: &str = "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/p1";

    fn paths() -> PodPaths {
        PodPaths { pod: Some(POD.into()), sandboxes: vec![SANDBOX.into(), "/run/cri/sandboxes/p1".into()] }
    }

    fn classify(path: &str, kind: Kind, read_only: bool, origins: &[&str]) -> VolumePlan {
        let origins: Vec<_> = origins.iter().map(PathBuf::from).collect();
        paths().classify(Found { path: Path::new(path), origins: &origins, kind, read_only })
    }

    #[test]
    fn a_mount_is_what_its_real_name_says() {
        use Kind::{Directory, File, Other};
        let table = [
            ("{pod}/volumes/kubernetes.io~configmap/c", Directory, true, VolumePlan::Pushed),
            ("{pod}/volumes/kubernetes.io~secret/s", Directory, true, VolumePlan::Pushed),
            ("{pod}/volumes/kubernetes.io~downward-api/d", Directory, true, VolumePlan::Pushed),
            ("{pod}/volumes/kubernetes.io~projected/kube-api-access-x", Directory, true, VolumePlan::Pushed),
            ("{pod}/volumes/kubernetes.io~configmap/c", Directory, false, VolumePlan::Shared),
            ("{pod}/volumes/kubernetes.io~configmap/c/..data/sub", Directory, true, VolumePlan::Shared),
            ("{pod}/volumes/kubernetes.io~configmap", Directory, true, VolumePlan::Shared),
            ("{pod}/volumes/kubernetes.io~empty-dir", Directory, true, VolumePlan::Shared),
            ("{pod}/volumes/kubernetes.io~empty-dir/e", Other, true, VolumePlan::Shared),
            ("/var/lib/kubelet/pods/u2/volumes/kubernetes.io~empty-dir/e", Directory, false, VolumePlan::Shared),
            ("{pod}/volumes/kubernetes.io~csi/x/mount", Directory, true, VolumePlan::Shared),
            ("{pod}/volumes", Directory, true, VolumePlan::Shared),
            ("{pod}", Directory, true, VolumePlan::Shared),
            ("{pod}/etc-hosts", File, false, VolumePlan::File),
            ("{pod}/etc-hosts", Directory, false, VolumePlan::Shared),
            ("{pod}/containers/web/0f3a", File, false, VolumePlan::Returned),
            ("{pod}/containers/web/0f3a", File, true, VolumePlan::Shared),
            ("{pod}/containers/web/0f3a", Other, false, VolumePlan::Shared),
            ("{pod}/volume-subpaths/c/web/0", File, true, VolumePlan::Shared),
            ("{sandbox}/hosts", File, false, VolumePlan::File),
            ("{sandbox}/hostname", File, true, VolumePlan::File),
            ("/run/cri/sandboxes/p1/resolv.conf", File, false, VolumePlan::File),
            ("{sandbox}/shm", Directory, false, VolumePlan::Shared),
            ("{sandbox}2/hosts", File, false, VolumePlan::Shared),
            ("{pod}2/etc-hosts", File, false, VolumePlan::Shared),
            ("/var/lib/kubelet/pods/u2/volumes/kubernetes.io~secret/s", Directory, true, VolumePlan::Shared),
            ("{pod}/../u2/etc-hosts", File, false, VolumePlan::Shared),
            ("/srv/data", Directory, true, VolumePlan::Shared),
        ];
        for (path, kind, read_only, plan) in table {
            let path = path.replace("{pod}", POD).replace("{sandbox}", SANDBOX);
            assert_eq!(classify(&path, kind, read_only, &[]), plan, "{path}");
        }
    }

    #[test]
    fn one_key_of_a_configuration_is_a_file() {
        let bound = format!("{POD}/volume-subpaths/c/web/0");
        let key = format!("{POD}/volumes/kubernetes.io~configmap/c/..2026/greeting");
        let other = format!("{POD}/volumes/kubernetes.io~empty-dir/e/greeting");
        assert_eq!(classify(&bound, Kind::File, true, &[&key]), VolumePlan::File);
        assert_eq!(classify(&bound, Kind::File, false, &[&key]), VolumePlan::Shared);
        assert_eq!(classify(&bound, Kind::Directory, true, &[&key]), VolumePlan::Shared);
        assert!(matches!(classify(&bound, Kind::File, true, &[&other]), VolumePlan::EmptyDir(_)));
        assert_eq!(classify(&bound, Kind::File, true, &[]), VolumePlan::Shared);
    }

    #[test]
    fn an_emptydir_and_a_part_of_it_are_one_volume() {
        let volume = format!("{POD}/volumes/kubernetes.io~empty-dir/e");
        let part = |below: &str| VolumePlan::EmptyDir(EmptyDirPath { volume: (&volume).into(), below: below.into() });
        for read_only in [false, true] {
            assert_eq!(classify(&volume, Kind::Directory, read_only, &[]), part(""));
            assert_eq!(classify(&format!("{volume}/a/b"), Kind::Directory, read_only, &[]), part("a/b"));
        }
        let bound = format!("{POD}/volume-subpaths/e/web/0");
        assert_eq!(classify(&bound, Kind::Directory, false, &["/x", &format!("{volume}/a/b")]), part("a/b"));
        assert_eq!(classify(&bound, Kind::Directory, false, &[&volume]), part(""));
        let others = "/var/lib/kubelet/pods/u2/volumes/kubernetes.io~empty-dir/e/a";
        assert_eq!(classify(&bound, Kind::Directory, false, &[others]), VolumePlan::Shared);
    }

    #[test]
    fn a_container_that_is_no_pods_shares_everything() {
        let path = format!("{POD}/etc-hosts");
        let found = Found { path: Path::new(&path), origins: &[], kind: Kind::File, read_only: true };
        assert_eq!(PodPaths::default().classify(found), VolumePlan::Shared);
    }
}
