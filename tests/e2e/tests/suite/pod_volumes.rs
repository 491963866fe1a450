//! Volumes as kubelet prepares them: directories and files of the node, which a pod's containers see.

use e2e::cri::messages::{Mount, MountPropagation};
use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, FOREVER, eventually, run, try_run};
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

crate::for_each_sandboxer!(long: volumes_are_shared_as_kubelet_prepared_them);

/// One pod, many volumes: a boot takes seconds under emulation.
fn volumes_are_shared_as_kubelet_prepared_them(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("volumes", sandboxer);
    let volumes = Volumes::new(&pod.directory());
    let pod = pod.run();
    let new = |name| {
        let container = pod.container(name, BUSYBOX).command(&FOREVER);
        let container = volume(container, &volumes.path("config"), "/config", |mount| mount.readonly = true);
        let container = volume(container, &volumes.path("memory"), "/memory", |_| {});
        volume(container, &volumes.path("arrivals"), "/arrivals", |mount| {
            mount.propagation = MountPropagation::PROPAGATION_HOST_TO_CONTAINER.into();
        })
    };
    let first = new("first").start();
    let message = volumes.file("termination-log");
    let second = new("second").mount(&message, "/dev/termination-log").shell("echo so long > /dev/termination-log");
    assert_eq!(second.start().wait(), 0);
    assert_eq!(fs::read_to_string(&message).expect("the file is there"), "so long\n");

    let second = new("third").start();
    a_configuration_is_read_only_and_changes_at_once(&volumes, &[&first, &second]);
    what_one_container_writes_the_others_and_the_node_read(&volumes, &first, &second);
    what_the_node_mounts_later_arrives(&volumes, &first);
    read_only_is_all_that_is_below(&volumes, &pod);
    what_cannot_be_shared_is_refused(&volumes, &pod);
    drop(pod);
    drop(volumes);
    assert_nothing_left_since(&before);
}

fn volume<'pod>(
    container: NewContainer<'pod>,
    host: &str,
    path: &str,
    change: impl FnOnce(&mut Mount),
) -> NewContainer<'pod> {
    container.mount(host, path).config(|config| change(config.mounts.last_mut().expect("it was just put there")))
}

/// As kubelet writes a configMap: the names are links through `..data`, which is replaced in one step.
fn a_configuration_is_read_only_and_changes_at_once(volumes: &Volumes, containers: &[&Container]) {
    for container in containers {
        assert_eq!(container.shell("cat /config/greeting").stdout(), "hello 1\n");
        let refused = container.shell("echo mine > /config/greeting || rm /config/..data || touch /config/new");
        assert_ne!(refused.code, 0);
        assert_eq!(refused.stderr().matches("Read-only file system").count(), 3, "{}", refused.stderr());
    }
    volumes.configure(2);
    for container in containers {
        eventually("the new configuration is seen", || container.shell("cat /config/greeting").stdout() == "hello 2\n");
    }
}

fn what_one_container_writes_the_others_and_the_node_read(volumes: &Volumes, first: &Container, second: &Container) {
    first.shell("echo shared > /memory/note; chown 1000:2000 /memory/note; chmod 640 /memory/note").success();
    assert_eq!(second.shell("cat /memory/note; stat -c '%u:%g %a' /memory/note").stdout(), "shared\n1000:2000 640\n");
    assert_eq!(fs::read_to_string(volumes.directory.join("memory/note")).expect("the file is there"), "shared\n");
    let full = second.exec(&["/bin/dd", "if=/dev/zero", "of=/memory/much", "bs=65536", "count=46"]);
    assert!(full.stderr().contains("No space left"), "the volume's size does not hold: {}", full.stderr());
}

fn what_the_node_mounts_later_arrives(volumes: &Volumes, container: &Container) {
    let late = volumes.path("arrivals/late");
    run(&["mount", "-t", "tmpfs", "late", &late]);
    fs::write(Path::new(&late).join("news"), "late\n").expect("it can be written");
    eventually("the mount arrives", || container.shell("cat /arrivals/late/news").stdout() == "late\n");
}

/// Another file system is mounted below the volume by now.
fn read_only_is_all_that_is_below(volumes: &Volumes, pod: &Pod) {
    let sealed = pod.container("sealed", BUSYBOX).command(&FOREVER);
    let sealed = volume(sealed, &volumes.path("arrivals"), "/arrivals", |mount| mount.readonly = true).start();
    assert_eq!(sealed.shell("cat /arrivals/late/news").stdout(), "late\n");
    let refused = sealed.shell("echo mine > /arrivals/late/news; touch /arrivals/new");
    assert_eq!(refused.stderr().matches("Read-only file system").count(), 2, "{}", refused.stderr());
}

fn what_cannot_be_shared_is_refused(volumes: &Volumes, pod: &Pod) {
    let _listener = UnixListener::bind(volumes.directory.join("socket")).expect("a socket");
    let both = |mount: &mut Mount| mount.propagation = MountPropagation::PROPAGATION_BIDIRECTIONAL.into();
    let socket = volume(pod.container("socket", BUSYBOX), &volumes.path("socket"), "/run/daemon.sock", |_| {});
    run(&["mkfifo", &volumes.path("fifo")]);
    let fifo = volume(pod.container("fifo", BUSYBOX), &volumes.path("fifo"), "/run/fifo", |_| {});
    let both_ways = volume(pod.container("both", BUSYBOX), &volumes.path("arrivals"), "/arrivals", both);
    for (container, words) in [
        (socket, "of the node is a socket, and not allowed: see host_sockets in config.toml"),
        (fifo, "it is neither a directory nor a regular file"),
        (both_ways, "mounts made in a microVM cannot propagate to the node"),
    ] {
        let refused = container.command(&FOREVER).try_create();
        let refusal = refused.and_then(|container| container.start()).expect_err("it is refused").message;
        assert!(refusal.contains(words), "{refusal}");
    }
}

/// Below a shared mount of its own, as kubelet's directory is on nodes with systemd.
struct Volumes {
    directory: PathBuf,
}

impl Volumes {
    fn new(pod: &Path) -> Self {
        let directory = pod.join("volumes");
        fs::create_dir_all(&directory).expect("a new directory");
        let volumes = Self { directory };
        run(&["mount", "-t", "tmpfs", "volumes", &volumes.path("")]);
        run(&["mount", "--make-shared", &volumes.path("")]);
        for name in ["config", "memory", "arrivals", "arrivals/late"] {
            fs::create_dir(volumes.directory.join(name)).expect("a new directory");
        }
        // An emptyDir of medium Memory with a limit.
        run(&["mount", "-t", "tmpfs", "-o", "size=2m", "memory", &volumes.path("memory")]);
        volumes.configure(1);
        volumes
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().expect("a plain path").to_owned()
    }

    /// An empty file.
    fn file(&self, name: &str) -> String {
        fs::write(self.directory.join(name), "").expect("a new file");
        self.path(name)
    }

    fn configure(&self, version: u32) {
        let config = self.directory.join("config");
        let data = format!("..version-{version}");
        fs::create_dir(config.join(&data)).expect("a new directory");
        fs::write(config.join(&data).join("greeting"), format!("hello {version}\n")).expect("a new file");
        symlink(&data, config.join("..data_tmp")).expect("a new link");
        fs::rename(config.join("..data_tmp"), config.join("..data")).expect("the link is replaced");
        if version == 1 {
            symlink("..data/greeting", config.join("greeting")).expect("a new link");
        } else {
            fs::remove_dir_all(config.join(format!("..version-{}", version - 1))).expect("the old version goes");
        }
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for name in ["arrivals/late", "memory", ""] {
            // What a failed test never mounted is not there.
            try_run(&["umount", &self.path(name)]);
        }
        for directory in self.directory.ancestors().take(2) {
            fs::remove_dir(directory).ok();
        }
    }
}
