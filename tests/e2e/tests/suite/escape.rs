//! A container that tries everything to reach files of the node beside those that it was given.
//!
//! Each case of the script ends in an error in the guest. On the node, a tree beside the volumes is hashed before and after, and
//! what the guest made in its volume has no rights where the file server sees it. Requests that no kernel sends are
//! in `fsd/tests/escape.rs`.

use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{DEBIAN, sha256, try_run};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

crate::for_each_sandboxer!(long: nothing_beside_the_volumes_is_reached);

/// The cases, and what they take and print.
const CASES: &str = include_str!("../../programs/escape.py");

/// As many there must be at least: a script that ends early proves nothing.
const MANY: usize = 60;

/// One pod: a boot takes seconds under emulation.
fn nothing_beside_the_volumes_is_reached(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("escape", sandboxer).security(|security| security.privileged = true);
    let node = Node::new(&pod.directory());
    let untouched = node.hash();
    let pod = pod.run();
    let container = |name: &str, root: bool| {
        let command = ["/usr/bin/python3", "-c", CASES, &node.path("secret/file"), if root { "root" } else { "" }];
        let container = pod.container(name, DEBIAN).command(&command);
        let container = container.mount(&node.path("data"), "/data").mount(&node.path("readonly"), "/readonly");
        let read_only = container.config(|config| config.mounts[1].readonly = true);
        read_only.security(|security| security.privileged = root).start()
    };
    let done = node.while_it_swings(|| tried(&container("ordinary", false))) + tried(&container("root", true));
    assert!(done >= MANY, "{done} cases");
    assert_eq!(node.hash(), untouched, "something beside the volumes has changed");
    what_the_guest_made_has_no_rights(&pod);
    drop(pod);
    drop(node);
    assert_nothing_left_since(&before);
}

/// How many cases ended as they must; the test fails if one did not.
fn tried(container: &Container<'_>) -> usize {
    let code = container.wait();
    let (printed, errors) = (container.log().stdout(), container.log().stderr());
    assert!(!printed.contains(Node::SECRET), "{printed}");
    assert!(code == 0 && !printed.contains("FAILED"), "{printed}{errors}");
    printed.lines().filter(|line| line.starts_with("ok ")).count()
}

/// Where the file server sees the volumes, and the node could: device nodes cannot be opened, programs get no one's rights.
fn what_the_guest_made_has_no_rights(pod: &Pod) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the node's mounts");
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let shared: Vec<_> =
        fields.filter(|mount| mount[4].contains(pod.id()) && mount[4].starts_with("/run/bulkhead/")).collect();
    assert!(!shared.is_empty(), "{mounts}");
    for mount in shared {
        let options: Vec<_> = mount[5].split(',').collect();
        assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{mount:?}");
    }
}

/// ```text
/// <kubelet's directory of the pod>/volumes/e2e/
///   data/       the volume, with a link, a socket and a directory that the node changes all the time
///   readonly/   the read-only one
///   secret/     what must not be reached
/// ```
struct Node {
    pod: PathBuf,
    _listener: UnixListener,
}

impl Node {
    const SECRET: &str = "what no container may read";

    fn new(pod: &Path) -> Self {
        let volumes = pod.join("volumes/e2e");
        for name in ["data/swing", "readonly", "secret/directory"] {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(volumes.join(name)).expect("a new directory");
        }
        for (name, content) in [
            ("data/file", "inside"),
            ("data/swing/file", "inside"),
            ("readonly/file", "inside"),
            ("secret/file", Self::SECRET),
        ] {
            fs::write(volumes.join(name), content).expect("a new file");
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(volumes.join("secret/private"))
            .expect("a file");
        symlink(volumes.join("secret/file"), volumes.join("data/nodes-link")).expect("a new link");
        symlink("../secret", volumes.join("data/swing-link")).expect("a new link");
        let listener = UnixListener::bind(volumes.join("data/nodes-socket")).expect("a socket");
        Self { pod: pod.to_owned(), _listener: listener }
    }

    fn path(&self, name: &str) -> String {
        self.pod.join("volumes/e2e").join(name).to_str().expect("a plain path").to_owned()
    }

    /// Of what lies beside the volume that is written to: names, owners, modes, times, content.
    fn hash(&self) -> String {
        let mut state = String::new();
        for name in ["secret", "readonly"] {
            describe(Path::new(&self.path(name)), &mut state);
        }
        let names = |path: &Path| {
            let mut names: Vec<_> =
                fs::read_dir(path).expect("a directory").flatten().map(|entry| entry.path()).collect();
            names.sort();
            names
        };
        state.push_str(&format!("{:?}", [names(&self.pod), names(&self.pod.join("volumes/e2e"))]));
        sha256(state.as_bytes())
    }

    /// Does something while the directory `swing` becomes a link to beside the volume, and itself again, many times.
    fn while_it_swings<T>(&self, action: impl FnOnce() -> T) -> T {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stop = AtomicBool::new(false);
        let [swing, link, away] = ["data/swing", "data/swing-link", "data/swing-away"].map(|name| self.path(name));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for (from, to) in [(&swing, &away), (&link, &swing), (&swing, &link), (&away, &swing)] {
                        fs::rename(from, to).expect("the node may rename");
                    }
                }
            });
            let _stop = Stop(&stop);
            action()
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        try_run(&["rm", "--recursive", "--one-file-system", self.pod.to_str().expect("a plain path")]);
    }
}

fn describe(path: &Path, state: &mut String) {
    let metadata = fs::symlink_metadata(path).expect("it is still there");
    let (mode, owner) = (metadata.permissions().mode(), (metadata.uid(), metadata.gid(), metadata.nlink()));
    let times = (metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec());
    let content = if metadata.is_dir() { Vec::new() } else { fs::read(path).expect("it can be read") };
    state.push_str(&format!("{} {mode:o} {owner:?} {times:?} {}\n", path.display(), sha256(&content)));
    if metadata.is_dir() {
        let mut entries: Vec<_> =
            fs::read_dir(path).expect("a directory").flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| describe(entry, state));
    }
}
