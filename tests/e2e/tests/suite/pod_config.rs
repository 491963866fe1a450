//! Configuration volumes: copied into the guest, and updated as kubelet updates them on the node.

use e2e::cri::messages::MountPropagation;
use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since, processes};
use e2e::{BUSYBOX, DEBIAN, FOREVER, eventually, noise, run, try_run};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

crate::for_each_sandboxer!(
    long: configuration_is_in_the_guest_as_it_is_on_the_node,
    a_configuration_that_does_not_fit_is_refused
);

/// Tells each link that appears in /config, with what a key holds then.
const WATCH: &str = r#"
import ctypes, os, struct
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(0)
assert libc.inotify_add_watch(watch, b"/config", 0x80) > 0
print("watching", flush=True)
while True:
    data = os.read(watch, 65536)
    while data:
        length = struct.unpack_from("iIII", data)[3]
        name = data[16:16 + length].rstrip(b"\0").decode()
        data = data[16 + length:]
        if name == "..data":
            print("now", open("/config/greeting").read(), flush=True)
"#;

/// kubelet's limit for what it takes from its API to a running pod here: notice, read, copy, swap.
const SOON: Duration = Duration::from_secs(2);

/// One pod, many volumes: a boot takes seconds under emulation.
fn configuration_is_in_the_guest_as_it_is_on_the_node(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("config", sandboxer);
    let kubelet = Kubelet::new(pod.directory());
    let pod = pod.run();
    let new = |name, image| {
        let container = kubelet.mount(pod.container(name, image), "configmap", "settings", "/config");
        let container = kubelet.mount(container, "secret", "token", "/secret");
        let container = kubelet.mount(container, "projected", "optional", "/optional");
        let key = kubelet.subpath("settings", "greeting", name);
        let container = read_only(container.mount(&key, "/one-key"));
        container.mount(&kubelet.path("etc-hosts"), "/etc/hosts")
    };
    let watcher = new("watcher", DEBIAN).command(&["/usr/bin/python3", "-c", WATCH]).start();
    let other = new("other", BUSYBOX).command(&FOREVER).start();
    contents_modes_and_owners_are_those_of_the_node(&watcher);
    contents_modes_and_owners_are_those_of_the_node(&other);
    names_are_the_pods(&kubelet, &pod, &other, sandboxer);
    an_update_is_seen_soon(&kubelet, &watcher, &other);
    the_last_of_many_updates_stays(&kubelet, &other);

    // A restart finds what is on the node now.
    fs::write(kubelet.path("etc-hosts"), "10.0.0.7 changed\n").expect("the file is there");
    let again = new("other", BUSYBOX).attempt(1).command(&FOREVER).start();
    assert_eq!(again.shell("cat /config/greeting /one-key").stdout(), "hello 22hello 22");
    for container in [&again, &other] {
        assert_eq!(container.shell("cat /etc/hosts").stdout(), "10.0.0.7 changed\n");
    }
    a_termination_log_is_on_the_node_when_the_end_is_told(&kubelet, &pod);
    drop(pod);
    drop(kubelet);
    assert_nothing_left_since(&before);
}

fn contents_modes_and_owners_are_those_of_the_node(container: &Container) {
    let script = "cat /config/greeting; cat /config/deep/key; stat -L -c '%a %u:%g' /config /config/greeting /config/script; \
        readlink /config/greeting; readlink /config/..data; ls -A /config | sort | tr '\\n' ' '";
    let expected = "hello 1deep755 0:0\n644 0:0\n755 0:0\n..data/greeting\n..version-1\n\
        ..data ..version-1 deep greeting long script ";
    assert_eq!(container.shell(script).success().stdout(), expected);
    // As kubelet leaves it for `fsGroup: 2000`.
    assert_eq!(
        container.shell("cat /secret/token; stat -L -c '%a %u:%g' /secret /secret/token").success().stdout(),
        "s3cret2775 0:2000\n440 0:2000\n"
    );
    assert_eq!(container.shell("ls -A /optional; cat /one-key").success().stdout(), "..data\n..version-1\nhello 1");
    assert_eq!(container.shell("sha256sum < /config/long").stdout(), format!("{}  -\n", e2e::sha256(&noise(LONG))));
    let refused = container.shell("echo mine > /config/greeting || rm /config/..data || touch /secret/new");
    assert_eq!(refused.stderr().matches("Read-only file system").count(), 3, "{}", refused.stderr());
}

fn names_are_the_pods(kubelet: &Kubelet, pod: &Pod, container: &Container, sandboxer: Sandboxer) {
    assert_eq!(container.shell("cat /etc/hosts").stdout(), "127.0.0.1 localhost\n");
    assert!(Path::new(&kubelet.path("etc-hosts")).exists());
    if sandboxer == Sandboxer::PodSandbox {
        let of_node = Path::new("/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes").join(pod.id());
        for name in ["hostname", "resolv.conf"] {
            let expected = fs::read_to_string(of_node.join(name)).expect("containerd writes it");
            assert_eq!(container.shell(&format!("cat /etc/{name}")).stdout(), expected);
        }
    }
}

fn an_update_is_seen_soon(kubelet: &Kubelet, watcher: &Container, other: &Container) {
    eventually("the program watches", || watcher.log().stdout() == "watching\n");
    let changed = Instant::now();
    kubelet.configure(2);
    while !watcher.log().stdout().contains("now hello 2\n") {
        assert!(changed.elapsed() < SOON, "not seen in {SOON:?}: {}", watcher.log().stdout());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("an update was seen after {:?}", changed.elapsed());
    assert_eq!(other.shell("cat /config/greeting; ls -A /config | grep version").stdout(), "hello 2..version-2\n");
    // As on a node, a key that is mounted by itself stays as it was.
    assert_eq!(other.shell("cat /one-key").stdout(), "hello 1");
}

fn the_last_of_many_updates_stays(kubelet: &Kubelet, container: &Container) {
    for number in 3..=22 {
        kubelet.configure(number);
        std::thread::sleep(Duration::from_millis(50));
    }
    eventually("the last update is seen", || container.shell("cat /config/greeting").stdout() == "hello 22");
    eventually("older versions are gone", || {
        container.shell("ls -A /config | grep version").stdout() == "..version-22\n"
    });
}

fn a_termination_log_is_on_the_node_when_the_end_is_told(kubelet: &Kubelet, pod: &Pod) {
    for (number, script, expected) in [
        (0, "echo so long > /dev/termination-log; exit 3", "so long\n".to_owned()),
        (1, "head -c 100000 /dev/zero | tr '\\0' x > /dev/termination-log; echo end >> /dev/termination-log", {
            "x".repeat(64 * 1024 - 4) + "end\n"
        }),
    ] {
        let log = kubelet.termination_log(number);
        let container = pod.container("ending", BUSYBOX).attempt(number).mount(&log, "/dev/termination-log");
        container.shell(script).start().wait();
        assert!(fs::read_to_string(&log).expect("the file is there") == expected);
    }
}

fn a_configuration_that_does_not_fit_is_refused(sandboxer: Sandboxer) {
    let pod = Pod::new("large", sandboxer);
    let kubelet = Kubelet::new(pod.directory());
    kubelet.write("configmap", "large", 1, &[("a", &vec![0; 5 << 20], 0o644), ("b", &vec![0; 5 << 20], 0o644)]);
    let pod = pod.run();
    let container = kubelet.mount(pod.container("web", BUSYBOX), "configmap", "large", "/large").command(&FOREVER);
    let refused = container.try_create().and_then(|container| container.start()).expect_err("it is refused").message;
    let words = "mount /large: it is larger than 8 MiB, which is the most that is copied into a microVM";
    assert!(refused.contains(words), "{refused}");
}

/// A pod's own volumes work for whoever says which pod it is, and a root filesystem on a disk needs no server.
#[test]
fn a_container_on_a_disk_with_configuration_alone_runs_no_file_server() {
    let before = Traces::now();
    let uid = format!("e2e-no-server-{}", std::process::id());
    let kubelet = Kubelet::new(Path::new("/var/lib/kubelet/pods").join(&uid));
    let log = kubelet.termination_log(0);
    let volume = kubelet.path("volumes/kubernetes.io~configmap/settings");
    let bind = |from: &str, to: &str, access: &str| format!("type=bind,src={from},dst={to},options=rbind:{access}");
    let mut container = e2e::Container::new(BUSYBOX, "blockfile");
    for argument in [
        "--annotation".to_owned(),
        format!("io.kubernetes.cri.sandbox-uid={uid}"),
        "--mount".to_owned(),
        bind(&volume, "/config", "ro"),
        "--mount".to_owned(),
        bind(&log, "/dev/termination-log", "rw"),
        "--mount".to_owned(),
        bind(&kubelet.path("etc-hosts"), "/etc/hosts", "rw"),
    ] {
        container = container.argument(&argument);
    }
    let container = container.shell("trap 'exit 0' TERM; while :; do sleep 0.1; done").start();
    assert_eq!(container.shell("cat /config/greeting /etc/hosts").stdout(), "hello 1127.0.0.1 localhost\n");
    kubelet.configure(2);
    eventually("the update is seen", || container.shell("cat /config/greeting").stdout() == "hello 2");
    container.shell("echo bye > /dev/termination-log").success();
    let ours = processes();
    assert!(ours.iter().any(|process| process.ends_with("bulkhead-vmm")), "{ours:?}");
    assert!(!ours.iter().any(|process| process.ends_with("bulkhead-fsd")), "{ours:?}");
    container.kill("TERM").success();
    eventually("it has stopped", || container.status() == "STOPPED");
    assert_eq!(fs::read_to_string(&log).expect("the file is there"), "bye\n");
    drop(container);
    drop(kubelet);
    assert_nothing_left_since(&before);
}

fn read_only(container: NewContainer<'_>) -> NewContainer<'_> {
    container.config(|config| {
        let mount = config.mounts.last_mut().expect("it was just put there");
        (mount.readonly, mount.propagation) = (true, MountPropagation::PROPAGATION_PRIVATE.into());
    })
}

/// Longer than a message to the guest.
const LONG: usize = 1_500_000;

/// What kubelet makes for a pod.
struct Kubelet {
    directory: PathBuf,
}

impl Kubelet {
    fn new(directory: PathBuf) -> Self {
        let kubelet = Self { directory };
        kubelet.configure(1);
        let secret = kubelet.volume("secret", "token");
        run(&["mount", "-t", "tmpfs", "-o", "mode=2775,gid=2000", "tmpfs", secret.to_str().expect("a plain path")]);
        kubelet.write("secret", "token", 1, &[("token", b"s3cret", 0o440)]);
        chown(secret.join("..version-1/token"), Some(0), Some(2000)).expect("the file is there");
        // An optional configMap that does not exist.
        kubelet.write("projected", "optional", 1, &[]);
        fs::write(kubelet.path("etc-hosts"), "127.0.0.1 localhost\n").expect("a new file");
        kubelet
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a plain path").to_owned()
    }

    fn volume(&self, kind: &str, name: &str) -> PathBuf {
        let path = self.directory.join(format!("volumes/kubernetes.io~{kind}/{name}"));
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    fn mount<'pod>(&self, container: NewContainer<'pod>, kind: &str, name: &str, path: &str) -> NewContainer<'pod> {
        let volume = self.volume(kind, name);
        read_only(container.mount(volume.to_str().expect("a plain path"), path))
    }

    fn configure(&self, version: u32) {
        let greeting = format!("hello {version}");
        let long = noise(LONG);
        let keys: [(&str, &[u8], u32); 4] = [
            ("greeting", greeting.as_bytes(), 0o644),
            ("script", b"#!/bin/sh\n", 0o755),
            ("deep/key", b"deep", 0o600),
            ("long", &long, 0o644),
        ];
        self.write("configmap", "settings", version, &keys);
    }

    /// As kubelet does: the names are links through `..data`, which is replaced in one step.
    fn write(&self, kind: &str, name: &str, version: u32, keys: &[(&str, &[u8], u32)]) {
        let volume = self.volume(kind, name);
        let data = format!("..version-{version}");
        fs::create_dir(volume.join(&data)).expect("a new directory");
        for (key, content, mode) in keys {
            let path = volume.join(&data).join(key);
            fs::create_dir_all(path.parent().expect("it is in a volume")).expect("a directory");
            fs::write(&path, content).expect("a new file");
            fs::set_permissions(&path, Permissions::from_mode(*mode)).expect("a mode");
        }
        symlink(&data, volume.join("..data_tmp")).expect("a new link");
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("the link is replaced");
        for key in keys.iter().filter_map(|(key, ..)| key.split('/').next()) {
            symlink(format!("..data/{key}"), volume.join(key)).ok();
        }
        if version > 1 {
            fs::remove_dir_all(volume.join(format!("..version-{}", version - 1))).expect("the old version goes");
        }
    }

    /// What `subPath` names, bound as kubelet binds it for each container.
    fn subpath(&self, volume: &str, key: &str, container: &str) -> String {
        let place = self.path(&format!("volume-subpaths/{volume}/{container}/0"));
        let source = self.volume("configmap", volume).join("..data").join(key).canonicalize().expect("it is there");
        try_run(&["umount", &place]);
        fs::create_dir_all(Path::new(&place).parent().expect("it has one")).expect("a directory");
        fs::write(&place, "").expect("a file");
        run(&["mount", "--bind", source.to_str().expect("a plain path"), &place]);
        place
    }

    fn termination_log(&self, number: u32) -> String {
        let path = self.path(&format!("containers/ending/{number}"));
        fs::create_dir_all(Path::new(&path).parent().expect("it has one")).expect("a directory");
        fs::write(&path, "").expect("a new file");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("a mode");
        path
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let secret = self.path("volumes/kubernetes.io~secret/token");
        let subpaths = ["watcher", "other"].map(|name| self.path(&format!("volume-subpaths/settings/{name}/0")));
        for mount in subpaths.iter().chain([&secret]) {
            // What a failed test never mounted is not there.
            try_run(&["umount", mount]);
        }
        fs::remove_dir_all(&self.directory).ok();
    }
}
