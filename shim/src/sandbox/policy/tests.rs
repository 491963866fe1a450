use super::super::mount::TreeOptions;
use super::*;
use nix::mount::MsFlags;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

const UID: &str = "0b8e7a52-59c1-4d7b-9d5f-7fb1c0d51c2e";

/// A node in a directory, whose name is a real one.
struct Node {
    _directory: tempfile::TempDir,
    root: PathBuf,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        Self { _directory: directory, root }
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.root.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn link(&self, from: &str, to: &Path) -> PathBuf {
        let link = self.root.join(from);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(to, &link).unwrap();
        link
    }

    fn policy(&self, host_paths: &[&str]) -> Policy {
        Policy {
            host_paths: host_paths.iter().map(|path| self.root.join(path)).collect(),
            host_sockets: Vec::new(),
            kubelet: self.root.join("kubelet"),
            containerd: vec![self.root.join("lib/containerd"), self.root.join("run/containerd")],
            pod: "pod".parse().unwrap(),
            uid: PodUid::new(UID),
        }
    }
}

fn admit(policy: &Policy, source: &Path) -> Result<Resolved, String> {
    let options = TreeOptions { recursive: true, read_only: false, follows_source: false };
    let mount = HostMount { index: 0, destination: "/data".into(), source: source.into(), options };
    policy
        .of_container(&"web".parse().unwrap())
        .admit(&mount)
        .map(|admitted| admitted.source)
        .map_err(|error| error.to_string())
}

#[track_caller]
fn assert_refused(policy: &Policy, source: &Path) {
    let sentence =
        format!("mount /data: {} of the node is not allowed: see host_paths in config.toml", source.display());
    assert_eq!(admit(policy, source).unwrap_err(), sentence);
}

#[test]
fn nothing_of_the_node_is_allowed_by_default() {
    let node = Node::new();
    for path in ["srv/data", "kubelet", "kubelet/pods", "lib/containerd", "run/containerd/io.containerd.grpc.v1.cri"] {
        assert_refused(&node.policy(&[]), &node.directory(path));
    }
    assert_refused(&node.policy(&[]), Path::new("/"));
}

#[test]
fn what_is_listed_is_allowed_with_all_below_it() {
    let node = Node::new();
    let policy = node.policy(&["srv/data"]);
    let [data, below, beside] = ["srv/data", "srv/data/a/b", "srv/data-2"].map(|path| node.directory(path));
    assert_eq!(admit(&policy, &data).unwrap().path, data);
    assert_eq!(admit(&policy, &below.join("../b/.")).unwrap().path, below);
    assert_refused(&policy, &beside);
    assert_refused(&policy, data.parent().unwrap());
    assert_refused(&policy, &data.join("../data-2"));
    fs::write(data.join("file"), "").unwrap();
    assert_eq!(admit(&policy, &data.join("file")).unwrap().path, data.join("file"));
}

#[test]
fn a_link_is_judged_by_where_it_leads() {
    let node = Node::new();
    let policy = node.policy(&["run", "srv"]);
    let [secret, allowed] = ["etc/secret", "run/app"].map(|path| node.directory(path));
    assert_refused(&policy, &node.link("srv/out", &secret));
    assert_refused(&policy, &node.link("srv/up", Path::new("../etc")).join("secret"));
    let var = node.link("var/run", &node.root.join("run"));
    assert_eq!(admit(&policy, &var.join("app")).unwrap().path, allowed);
}

#[test]
fn a_listed_name_that_became_a_link_allows_nothing() {
    let node = Node::new();
    let policy = node.policy(&["srv", "srv/data"]);
    let secret = node.directory("etc/secret");
    assert_refused(&policy, &node.link("srv/data", &secret));
}

#[test]
fn a_pod_has_its_own_directory_and_no_others() {
    let node = Node::new();
    let policy = node.policy(&[]);
    let volume = |uid: &str| node.directory(&format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/x"));
    let [own, other, longer] = [UID, "other", &format!("{UID}-2")].map(volume);
    assert_eq!(admit(&policy, &own).unwrap().path, own);
    assert_refused(&policy, &other);
    assert_refused(&policy, &longer);
    assert_refused(&policy, &own.join("../../../../other"));
    assert_refused(&policy, &node.link(&format!("kubelet/pods/{UID}/volumes/link"), &other));
    assert_refused(&policy, &node.directory(&format!("kubelet/pods/{UID}")));
    let nobody = Policy { uid: None, ..policy };
    assert_refused(&nobody, &own);
}

#[test]
fn kubelets_directory_may_be_a_link() {
    let node = Node::new();
    let own = node.directory(&format!("disk/pods/{UID}/etc-hosts"));
    node.link("kubelet", &node.root.join("disk"));
    assert_eq!(admit(&node.policy(&[]), &node.root.join(format!("kubelet/pods/{UID}/etc-hosts"))).unwrap().path, own);
}

#[test]
fn containerds_files_for_this_pod_are_allowed() {
    let node = Node::new();
    let policy = node.policy(&[]);
    let of = |path: &str| node.directory(&format!("{path}/hosts"));
    for own in [
        "lib/containerd/io.containerd.grpc.v1.cri/sandboxes/pod",
        "lib/containerd/io.containerd.grpc.v1.cri/containers/web/volumes/1",
        "run/containerd/io.containerd.grpc.v1.cri/image-volumes/pod/sha256:1",
    ] {
        admit(&policy, &of(own)).unwrap();
    }
    for other in [
        "lib/containerd/io.containerd.grpc.v1.cri/sandboxes/pod2",
        "lib/containerd/io.containerd.grpc.v1.cri/containers/db/volumes/1",
        "lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/1",
    ] {
        assert_refused(&policy, &of(other));
    }
}

#[test]
fn a_part_of_a_volume_is_judged_by_its_volume() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let node = Node::new();
    let [host, volume] = ["etc/secret", &format!("kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/x/part")]
        .map(|path| node.directory(path));
    let place = node.directory(&format!("kubelet/pods/{UID}/volume-subpaths/x/web/0"));
    let bind = |source: &Path, judge: &dyn Fn()| {
        nix::mount::mount(Some(source), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        judge();
        nix::mount::umount(&place).unwrap();
    };
    bind(&host, &|| assert_refused(&node.policy(&[]), &place));
    bind(&host, &|| assert_eq!(admit(&node.policy(&["etc"]), &place).unwrap().path, place));
    bind(&volume, &|| assert_eq!(admit(&node.policy(&[]), &place).unwrap().path, place));
    assert_refused(&node.policy(&[]), &place);
}

#[test]
fn what_is_not_there_is_an_error_of_its_own() {
    let node = Node::new();
    let source = node.root.join("none");
    let start = format!("cannot share {} with container web: ", source.display());
    let error = admit(&node.policy(&["none"]), &source).unwrap_err();
    assert!(error.starts_with(&start), "{error}");
}

#[test]
fn the_kernels_links_into_processes_are_not_followed() {
    let node = Node::new();
    let error = admit(&node.policy(&[]), Path::new("/proc/self/root")).unwrap_err();
    assert!(error.starts_with("cannot share /proc/self/root with container web: "), "{error}");
}

#[test]
fn a_removed_directory_is_not_what_its_name_says() {
    let node = Node::new();
    let policy = node.policy(&["srv"]);
    let gone = node.directory("srv/gone");
    let found = Resolved::open(&gone).unwrap();
    fs::remove_dir(&gone).unwrap();
    let path = fs::read_link(format!("/proc/self/fd/{}", found.fd.as_raw_fd())).unwrap();
    let found = Resolved { path, ..found };
    assert!(policy.of_container(&"web".parse().unwrap()).names(&found).unwrap().is_empty(), "{}", found.path.display());
}

#[test]
fn a_socket_has_a_list_of_its_own() {
    let node = Node::new();
    let [run, others] = ["run/agent", "run/others"].map(|path| node.directory(path));
    let _listeners = [&run, &others].map(|directory| UnixListener::bind(directory.join("s")).unwrap());
    let refusal = |policy: &Policy, source: &Path| {
        let sentence = "of the node is a socket, and not allowed: see host_sockets in config.toml";
        assert_eq!(admit(policy, source).unwrap_err(), format!("mount /data: {} {sentence}", source.display()));
    };
    let listed = |socket: &str| Policy { host_sockets: vec![node.root.join(socket)], ..node.policy(&["run"]) };
    refusal(&node.policy(&["run"]), &run.join("s"));
    for entry in ["run/agent/s", "run/agent"] {
        let policy = listed(entry);
        assert_eq!(admit(&policy, &run.join("s")).unwrap().path, run.join("s"));
        refusal(&policy, &others.join("s"));
    }
    // Listing a socket shows nothing of its directory.
    assert_refused(&Policy { host_paths: Vec::new(), ..listed("run/agent") }, &run);
    refusal(&listed("run/agent"), &node.link("run/agent/link", &others.join("s")));
}

#[test]
fn listed_sockets_of_a_mounted_directory_are_found_by_their_real_names() {
    let node = Node::new();
    let [agent, deep, others] = ["run/agent", "run/agent/deep", "run/others"].map(|path| node.directory(path));
    let bind = |directory: &Path| UnixListener::bind(directory.join("s")).unwrap();
    let _listeners = [bind(&agent), bind(&deep), bind(&others)];
    fs::write(agent.join("file"), "").unwrap();
    node.link("run/agent/link", &others.join("s"));
    node.link("run/way", &others);
    let found = |listed: &[&str], directory: &str| {
        let host_sockets = listed.iter().map(|listed| node.root.join(listed)).collect();
        let policy = Policy { host_sockets, ..node.policy(&[]) }.of_container(&"web".parse().unwrap());
        let sockets = policy.sockets_below(&node.root.join(directory)).unwrap();
        sockets.into_iter().map(|socket| socket.name.display().to_string()).collect::<Vec<_>>()
    };
    assert!(found(&[], "run").is_empty());
    assert_eq!(found(&["run/agent/s"], "run"), ["agent/s"]);
    assert_eq!(found(&["run/agent/s", "run/agent"], "run/agent"), ["s"]);
    assert_eq!(found(&["run"], "run/agent"), ["s"]);
    assert!(found(&["run/agent/s", "run/gone/s"], "run/others").is_empty());
    assert!(found(&["run/way/s", "run/agent/link", "run/agent/file"], "run").is_empty());
    assert_eq!(found(&["run/agent", "run/others"], "run"), ["agent/s", "others/s"]);
}
