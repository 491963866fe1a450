//! emptyDirs: disks and memory of the guest, in place of directories that kubelet made on the node.

use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since, processes};
use e2e::{BUSYBOX, DEBIAN, FOREVER, eventually, run, try_run};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

crate::for_each_sandboxer!(long: emptydirs_are_the_guests_and_the_nodes_to_count);

const IMAGE: &str = ".bulkhead-empty-dir.ext4";

const MIB: u64 = 1 << 20;

/// What a pod has slots for besides what every pod has.
const MANY: u32 = 28;

/// One pod, many volumes: a boot takes seconds under emulation.
fn emptydirs_are_the_guests_and_the_nodes_to_count(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("empty", sandboxer).annotation("io.bulkhead.empty_dir_mib", "cache=32,taken=64");
    let pod = pod.annotation("io.bulkhead.scratch_mib", "2048");
    let kubelet = Kubelet::new(pod.directory());
    let pod = pod.run();
    let all = |container| {
        ["cache", "data", "memory"]
            .into_iter()
            .fold(container, |container: NewContainer, name| container.mount(&kubelet.path(name), &format!("/{name}")))
    };
    let init = "echo of init | tee /cache/note /data/note > /memory/note; touch /data/mine; ls -A /cache /data /memory";
    let init = all(pod.container("init", BUSYBOX)).shell(init).start();
    assert_eq!(init.wait(), 0);
    assert_eq!(init.log().stdout(), "/cache:\nnote\n\n/data:\nmine\nnote\n\n/memory:\nnote\n");
    init.remove().expect("it has ended");

    let main = all(pod.container("main", DEBIAN)).command(&FOREVER).start();
    assert_eq!(main.shell("cat /cache/note /data/note /memory/note").stdout(), "of init\n".repeat(3));
    modes_and_owners_are_those_of_the_node(&main);
    the_node_has_no_file_of_them(&kubelet);
    a_disk_ends_at_its_limit_and_gives_back_what_is_deleted(&kubelet, &main);
    memory_is_the_containers(&main);

    let part = kubelet.part("data", "sub/deep", "other");
    let other = all(pod.container("other", BUSYBOX)).mount(&part, "/part").mount(&kubelet.path("cache"), "/read-only");
    let other = read_only(other).mount(&kubelet.path("used"), "/used").command(&FOREVER).start();
    a_part_is_in_the_volume(&main, &other);
    let refused = other.shell("echo mine > /read-only/note");
    assert!(refused.stderr().contains("Read-only file system"), "{}", refused.stderr());
    what_the_node_wrote_is_shared(&kubelet, &other);

    main.stop(std::time::Duration::ZERO).expect("it ends");
    main.remove().expect("it has ended");
    let main = all(pod.container("main", DEBIAN)).attempt(1).command(&FOREVER).start();
    assert_eq!(main.shell("cat /cache/note /data/note /memory/note").stdout(), "of init\n".repeat(3));
    what_cannot_be_is_refused(&kubelet, &pod, &main);
    drop(pod);
    drop(kubelet);
    assert_nothing_left_since(&before);
}

fn modes_and_owners_are_those_of_the_node(container: &Container) {
    let script =
        "stat -c '%a %u:%g' /cache /data /memory /data/mine; df --output=fstype /cache /data /memory | tail -n 3";
    let expected = "777 0:0\n2777 0:2000\n1777 0:0\n644 0:2000\next4\next4\ntmpfs\n";
    assert_eq!(container.shell(script).success().stdout(), expected);
    let total = |path: &str| {
        let size = container.shell(&format!("df --output=size --block-size=1M {path} | tail -n 1")).stdout();
        size.trim().parse::<u64>().expect("a number")
    };
    assert!((24..=32).contains(&total("/cache")), "{}", total("/cache"));
    assert!((1800..=2048).contains(&total("/data")), "{}", total("/data"));
    assert_eq!(total("/memory"), 8);
}

fn the_node_has_no_file_of_them(kubelet: &Kubelet) {
    for name in ["cache", "data"] {
        assert_eq!(names(&kubelet.path(name)), [IMAGE]);
        assert_eq!(kubelet.image(name).mode() & 0o7777, 0o600);
    }
    assert_eq!(names(&kubelet.path("memory")), [""; 0]);
}

fn a_disk_ends_at_its_limit_and_gives_back_what_is_deleted(kubelet: &Kubelet, container: &Container) {
    let blocks = || kubelet.image("cache").blocks() * 512;
    let empty = blocks();
    let full = container.shell("dd if=/dev/zero of=/cache/much bs=1M count=64 oflag=direct");
    assert!(full.stderr().contains("No space left on device"), "{}", full.stderr());
    container.shell("echo more >> /cache/much").success();
    container.shell("sync /cache/much").success();
    assert!(blocks() >= empty + 20 * MIB, "{} after {empty}", blocks());
    assert!(kubelet.image("cache").len() <= 32 * MIB);
    container.shell("rm /cache/much && sync -f /cache").success();
    eventually("what was deleted is the node's again", || blocks() <= empty + MIB);
    println!("an empty disk takes {empty} bytes, and {} after 32 MiB came and went", blocks());
}

fn memory_is_the_containers(container: &Container) {
    let shmem = || {
        let stat = container.shell("grep '^shmem ' /sys/fs/cgroup/memory.stat").stdout();
        stat.trim().rsplit(' ').next().and_then(|bytes| bytes.parse::<u64>().ok()).expect("a number")
    };
    let before = shmem();
    let full = container.shell("dd if=/dev/zero of=/memory/much bs=64k count=256");
    assert!(full.stderr().contains("No space left on device"), "{}", full.stderr());
    assert!(shmem() >= before + 7 * MIB, "{} after {before}", shmem());
    container.shell("rm /memory/much").success();
    eventually("the memory is free again", || shmem() <= before + MIB);
}

fn a_part_is_in_the_volume(main: &Container, other: &Container) {
    other.shell("echo of a part > /part/file").success();
    let script = "cat /data/sub/deep/file; stat -c '%a %u:%g' /data/sub /data/sub/deep";
    assert_eq!(main.shell(script).stdout(), "of a part\n2777 0:2000\n2777 0:2000\n");
    main.shell("echo changed > /data/sub/deep/file").success();
    assert_eq!(other.shell("cat /part/file").stdout(), "changed\n");
}

fn what_the_node_wrote_is_shared(kubelet: &Kubelet, container: &Container) {
    assert_eq!(container.shell("cat /used/note").stdout(), "of the node\n");
    container.shell("echo of the guest > /used/new").success();
    assert_eq!(
        fs::read_to_string(Path::new(&kubelet.path("used")).join("new")).expect("it is there"),
        "of the guest\n"
    );
}

fn what_cannot_be_is_refused(kubelet: &Kubelet, pod: &Pod, main: &Container) {
    // kubelet sees no link, and makes directories.
    main.shell("ln -s /etc /data/link; echo kept > /data/file").success();
    let links = [("link", "cannot find \"link\" in volume v"), ("link/below", "cannot find \"link/below\"")];
    for (attempt, (name, words)) in (0..).zip(links) {
        let part = kubelet.part("data", name, "thief");
        let refused = refusal(pod.container("thief", BUSYBOX).attempt(attempt).mount(&part, "/part"));
        assert!(refused.contains(words), "{refused}");
    }
    // A file that a container made is the part that kubelet could not see.
    let part = kubelet.part("data", "file", "reader");
    let reader = pod.container("reader", BUSYBOX).mount(&part, "/part").command(&FOREVER).start();
    assert_eq!(reader.shell("cat /part").stdout(), "kept\n");

    let refused = refusal(pod.container("taken", BUSYBOX).mount(&kubelet.path("taken"), "/taken"));
    let words = "mount /taken: emptyDir taken cannot have a limit of its own: the node has files in it";
    assert!(refused.contains(words), "{refused}");

    let many = (0..MANY).fold(pod.container("many", BUSYBOX), |container, number| {
        container.mount(&kubelet.empty_dir(&format!("many-{number}")), &format!("/many-{number}"))
    });
    let refused = refusal(many);
    assert!(refused.contains("refused to attach emptyDir many-"), "{refused}");
    assert!(refused.contains("all PCI slots are taken"), "{refused}");
}

fn refusal(container: NewContainer<'_>) -> String {
    let refused = container.command(&FOREVER).try_create().and_then(|container| container.start());
    refused.expect_err("it is refused").message
}

/// Nothing of the node is left to share.
fn no_file_server_runs(snapshotter: &str) {
    let before = Traces::now();
    let uid = format!("e2e-no-server-{snapshotter}-{}", std::process::id());
    let kubelet = Kubelet::new(Path::new("/var/lib/kubelet/pods").join(&uid));
    let settings = kubelet.directory.join("volumes/kubernetes.io~configmap/settings");
    fs::create_dir_all(settings.join("..version-1")).expect("a new directory");
    fs::write(settings.join("..version-1/greeting"), "hello").expect("a new file");
    std::os::unix::fs::symlink("..version-1", settings.join("..data")).expect("a new link");
    std::os::unix::fs::symlink("..data/greeting", settings.join("greeting")).expect("a new link");
    let bind = |from: &str, to: &str, access: &str| format!("type=bind,src={from},dst={to},options=rbind:{access}");
    let mut container = e2e::Container::new(BUSYBOX, snapshotter);
    for argument in [
        "--annotation".to_owned(),
        format!("io.kubernetes.cri.sandbox-uid={uid}"),
        "--annotation".to_owned(),
        "io.bulkhead.scratch_mib=64".to_owned(),
        "--mount".to_owned(),
        bind(settings.to_str().expect("a plain path"), "/config", "ro"),
        "--mount".to_owned(),
        bind(&kubelet.path("cache"), "/cache", "rw"),
        "--mount".to_owned(),
        bind(&kubelet.path("memory"), "/memory", "rw"),
    ] {
        container = container.argument(&argument);
    }
    let container = container.command(&FOREVER).start();
    assert_eq!(container.shell("tee /cache/x /memory/x < /config/greeting; cat /cache/x").stdout(), "hellohello");
    // A writable layer of its own has the same limit.
    for path in if snapshotter == "erofs" { &["/cache", "/"][..] } else { &["/cache"] } {
        let line = container.shell(&format!("df -m {path} | tail -n 1 | tr -s ' '")).success().stdout();
        let total: u32 = line.split(' ').nth(1).and_then(|mib| mib.parse().ok()).expect("a number");
        assert!((48..=64).contains(&total), "{path}: {line}");
    }
    let ours = processes();
    assert!(ours.iter().any(|process| process.ends_with("bulkhead-vmm")), "{ours:?}");
    assert!(!ours.iter().any(|process| process.ends_with("bulkhead-fsd")), "{ours:?}");
    container.kill("KILL").success();
    eventually("it has stopped", || container.status() == "STOPPED");
    drop(container);
    drop(kubelet);
    assert_nothing_left_since(&before);
}

#[test]
fn a_container_on_a_disk_with_emptydirs_runs_no_file_server() {
    no_file_server_runs("blockfile");
}

#[test]
fn a_container_on_layers_with_emptydirs_runs_no_file_server() {
    crate::with_erofs(|| no_file_server_runs("erofs"));
}

fn read_only(container: NewContainer<'_>) -> NewContainer<'_> {
    container.config(|config| config.mounts.last_mut().expect("it was just put there").readonly = true)
}

fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What kubelet makes for a pod.
struct Kubelet {
    directory: PathBuf,
}

impl Kubelet {
    fn new(directory: PathBuf) -> Self {
        let kubelet = Self { directory };
        for name in ["cache", "data", "memory", "used", "taken"] {
            kubelet.empty_dir(name);
        }
        // As kubelet leaves it for `fsGroup: 2000`.
        own_by_group(&kubelet.path("data"));
        run(&["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", &kubelet.path("memory")]);
        for name in ["used", "taken"] {
            fs::write(Path::new(&kubelet.path(name)).join("note"), "of the node\n").expect("a new file");
        }
        kubelet
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.join("volumes/kubernetes.io~empty-dir").join(name);
        path.to_str().expect("a plain path").to_owned()
    }

    fn empty_dir(&self, name: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(&path).expect("a new directory");
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("a mode");
        path
    }

    fn image(&self, name: &str) -> fs::Metadata {
        fs::metadata(Path::new(&self.path(name)).join(IMAGE)).expect("the image is there")
    }

    /// What `subPath` names: made where it is missing, then bound for the container.
    fn part(&self, volume: &str, below: &str, container: &str) -> String {
        let mut made = PathBuf::from(self.path(volume));
        for name in Path::new(below) {
            made.push(name);
            if !made.exists() {
                fs::create_dir(&made).expect("a new directory");
                own_by_group(made.to_str().expect("a plain path"));
            }
        }
        let place = self.directory.join("volume-subpaths").join(volume).join(container).join("0");
        let place = place.to_str().expect("a plain path").to_owned();
        try_run(&["umount", &place]);
        fs::create_dir_all(&place).expect("a directory");
        run(&["mount", "--bind", made.to_str().expect("a plain path"), &place]);
        place
    }
}

fn own_by_group(path: &str) {
    chown(path, Some(0), Some(2000)).expect("an owner");
    fs::set_permissions(path, Permissions::from_mode(0o2777)).expect("a mode");
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        for container in ["other", "thief", "reader"] {
            // What a failed test never mounted is not there.
            let place = self.directory.join("volume-subpaths/data").join(container).join("0");
            try_run(&["umount", place.to_str().expect("a plain path")]);
        }
        try_run(&["umount", &self.path("memory")]);
        fs::remove_dir_all(&self.directory).ok();
    }
}
