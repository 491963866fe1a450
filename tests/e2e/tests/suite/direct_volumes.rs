//! Volumes on a device of the node that pods mount in their own kernel.

use e2e::cri::{Container, NewContainer, NewPod, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::vmm::Vmm;
use e2e::{BUSYBOX, FOREVER, Finished, eventually, run, try_run};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

crate::for_each_sandboxer!(
    long: a_file_system_on_a_device_is_the_guests_own,
    what_a_guest_has_not_synced_survives_the_end_of_its_node,
    what_is_slow_to_reach_its_device_is_not_lost,
    what_a_slow_device_takes_is_not_lost
);

const RECORDS: &str = "/run/bulkhead/direct-volumes";
const GROUP: u32 = 2000;

/// Two pods, one after the other, and many containers: a boot takes seconds under emulation.
fn a_file_system_on_a_device_is_the_guests_own(sandboxer: Sandboxer) {
    let before = Traces::now();
    let records = Records::new();
    let device = Device::new("data", "ext4");
    let first = Pod::new("direct", sandboxer);
    let kubelet = Kubelet::new(&first.directory());
    let volume = kubelet.volume("data");
    // kubelet's mark of a volume with an fsGroup.
    chown(&volume, None, Some(GROUP)).expect("root may");
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o2775)).expect("root may");
    records.add(&volume, &device.name, &["--fs-type", "ext4"]).success();
    let list = records.bulkhead(&["list"]).success().stdout();
    assert_eq!(list, format!("{}\t{}\text4\trw\n", volume.display(), device.name));
    let again = records.add(&volume, "/dev/loop-control", &["--fs-type", "ext4"]);
    assert!(again.stderr().contains("is not the absolute path of a block device"), "{}", again.stderr());

    let pod = first.run();
    let web = data(&pod, "web", &volume).start();
    it_is_a_disk_and_belongs_to_the_group(&web, &volume);
    let reader = data(&pod, "reader", &volume).config(|config| config.mounts[0].readonly = true).start();
    two_containers_have_one_file_system(&web, &reader);
    the_device_is_the_pods_alone(&pod, &kubelet, &records, &device);
    a_part_is_mounted_alone(&pod, &kubelet, &volume, &web);

    remove(&web);
    remove(&reader);
    let last = pod.container("last", BUSYBOX).command(&FOREVER).start();
    assert_eq!(last.shell("grep -c ' vd' /proc/partitions").stdout(), "0\n", "a disk is left in the guest");
    device.while_mounted(|place| {
        assert_eq!(fs::read_to_string(place.join("note")).expect("it reached the device"), "from the guest\n");
        let root = fs::metadata(place).expect("a directory");
        assert_eq!((root.gid(), root.mode() & 0o7777), (GROUP, 0o2775));
        // What the node has mounted is not the pod's.
        let refusal = refusal(data(&pod, "mounted", &volume));
        assert!(refusal.contains("is mounted on the node, or part of another device"), "{refusal}");
    });
    let again = data(&pod, "web", &volume).attempt(1).start();
    assert_eq!(again.shell("cat /data/note").stdout(), "from the guest\n");
    again.shell("echo second >> /data/note").success();
    bad_records_are_named(&pod, &kubelet, &records);
    drop(pod);

    let second = Pod::new("second", sandboxer);
    let next = Kubelet::new(&second.directory());
    let volume = next.volume("data");
    records.add(&volume, &device.name, &["--fs-type", "ext4", "--read-only"]).success();
    let pod = second.run();
    let reader = data(&pod, "reader", &volume).start();
    assert_eq!(reader.shell("cat /data/note").stdout(), "from the guest\nsecond\n");
    let refused = reader.shell("echo x > /data/new");
    assert!(refused.stderr().contains("Read-only file system"), "{}", refused.stderr());
    an_xfs_is_mounted_too(&pod, &next, &records);
    drop(pod);
    drop((kubelet, next, device, records));
    assert_nothing_left_since(&before);
}

fn it_is_a_disk_and_belongs_to_the_group(web: &Container, volume: &Path) {
    let mounted = web.shell("grep ' /data ' /proc/mounts").stdout();
    let start = mounted.split(' ').collect::<Vec<_>>();
    assert!(start[0].starts_with("/dev/vd") && start[2] == "ext4", "{mounted}");
    assert_eq!(web.shell("stat -c '%g %a' /data").stdout(), format!("{GROUP} 2775\n"));
    web.shell("echo from the guest > /data/note; chown 1000:3000 /data/note; chmod 640 /data/note").success();
    assert_eq!(web.shell("stat -c '%u:%g %a' /data/note").stdout(), "1000:3000 640\n");
    assert_eq!(fs::read_dir(volume).expect("a directory").count(), 0, "the node's directory is not written to");
}

fn two_containers_have_one_file_system(web: &Container, reader: &Container) {
    let number = |container: &Container| container.shell("stat -c '%d %i' /data/note").stdout();
    assert_eq!(number(web), number(reader));
    assert_eq!(reader.shell("cat /data/note").stdout(), "from the guest\n");
    let refused = reader.shell("echo x > /data/new");
    assert!(refused.stderr().contains("Read-only file system"), "{}", refused.stderr());
}

/// Another volume on the same device is refused while it is in use, and so is a mount on the node.
fn the_device_is_the_pods_alone(pod: &Pod, kubelet: &Kubelet, records: &Records, device: &Device) {
    let twice = kubelet.volume("twice");
    records.add(&twice, &device.name, &["--fs-type", "ext4"]).success();
    let refusal = refusal(data(pod, "twice", &twice));
    let record = fs::read_dir(RECORDS).expect("records").count();
    assert_eq!(record, 2);
    assert!(refusal.contains(&format!("direct volume {} (record {RECORDS}/", twice.display())), "{refusal}");
    assert!(refusal.contains("is mounted on the node, or part of another device"), "{refusal}");
    records.bulkhead(&["remove", "--path", twice.to_str().expect("a plain path")]).success();
    let mounted = try_run(&["mount", &device.name, "/mnt"]);
    assert_ne!(mounted.code, 0, "the node has mounted what the pod writes to");
}

/// kubelet makes a directory in its own, which is empty, and binds that.
fn a_part_is_mounted_alone(pod: &Pod, kubelet: &Kubelet, volume: &Path, web: &Container) {
    web.shell("mkdir -p /data/there; echo inside > /data/there/file; ln -s / /data/link").success();
    for (part, expected) in [("there", "file\n"), ("made/new", "")] {
        let place = kubelet.bind(&volume.join(part));
        let container = data(pod, "part", &place).start();
        assert_eq!(container.shell("ls /data").stdout(), expected);
        container.shell("echo part > /data/written").success();
        remove(&container);
        fs::remove_file(container.log().path()).ok();
        kubelet.unbind();
        assert_eq!(web.shell(&format!("cat /data/{part}/written")).stdout(), "part\n");
    }
    let place = kubelet.bind(&volume.join("link"));
    let refusal = refusal(data(pod, "link", &place));
    assert!(refusal.contains("cannot mount direct volume"), "{refusal}");
    kubelet.unbind();
}

fn bad_records_are_named(pod: &Pod, kubelet: &Kubelet, records: &Records) {
    let volume = kubelet.volume("bad");
    let file = || {
        let all = fs::read_dir(RECORDS).expect("records").map(|entry| entry.expect("an entry").path());
        let about = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("/bad/"));
        all.into_iter().find(about).expect("the record")
    };
    let other = Device::new("other", "ext4");
    records.add(&volume, &other.name, &["--fs-type", "ext4"]).success();
    let record = file();
    let good = fs::read_to_string(&record).expect("a record");
    let with = |from: &str, to: &str| good.replace(from, to);
    let cases = [
        ("{\"version\":1,".to_owned(), 0o600, "it is malformed"),
        (with("\"version\":1", "\"version\":7"), 0o600, "it is of version 7, and 1 is known"),
        (good.clone(), 0o644, "it has to belong to root, with mode 0600"),
        (good.clone() + &" ".repeat(20_000), 0o600, "it is longer than 16 KiB"),
        (with(&other.name, "/dev/gone"), 0o600, "/dev/gone: No such file or directory"),
        (with(&other.name, "/srv"), 0o600, "/srv is not a block device"),
        (with("ext4", "xfs"), 0o600, "as xfs: "),
    ];
    for (text, mode, words) in cases {
        fs::write(&record, text).expect("it can be written");
        fs::set_permissions(&record, fs::Permissions::from_mode(mode)).expect("root may");
        let refusal = refusal(data(pod, "bad", &volume));
        let names =
            refusal.contains(record.to_str().expect("plain")) && refusal.contains(volume.to_str().expect("plain"));
        assert!(names && refusal.contains(words), "{words}: {refusal}");
    }
    fs::remove_file(&record).expect("the record");
}

fn an_xfs_is_mounted_too(pod: &Pod, kubelet: &Kubelet, records: &Records) {
    let device = Device::new("xfs", "xfs");
    let volume = kubelet.volume("xfs");
    // A driver may write its own name for the device.
    let link = Path::new("/dev/e2e-direct-link");
    symlink(&device.name, link).expect("a new link");
    records.add(&volume, "/dev/e2e-direct-link", &["--fs-type", "xfs"]).success();
    let container = data(pod, "xfs", &volume).start();
    assert_eq!(container.shell("stat -f -c %T /data; echo kept > /data/note").stdout(), "xfs\n");
    remove(&container);
    fs::remove_file(link).expect("the link");
    device.while_mounted(|place| {
        assert_eq!(fs::read_to_string(place.join("note")).expect("it reached the device"), "kept\n");
    });
}

/// containerd gives up on the deletion of a container after 10 s, and then asks again.
fn what_is_slow_to_reach_its_device_is_not_lost(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("slow", sandboxer).annotation("io.bulkhead.disk_mib_per_second", "1");
    let device = Device::new("slow", "ext4");
    a_file_is_there_when_its_pod_is_gone(pod, &device);
    drop(device);
    assert_nothing_left_since(&before);
}

/// The node's page cache has it at once, and its device after more than two times the half minute in which something has to happen.
fn what_a_slow_device_takes_is_not_lost(sandboxer: Sandboxer) {
    let before = Traces::now();
    let device = SlowDevice::new();
    a_file_is_there_when_its_pod_is_gone(Pod::new("slow", sandboxer), &device.upper);
    drop(device);
    assert_nothing_left_since(&before);
}

fn a_file_is_there_when_its_pod_is_gone(pod: NewPod, device: &Device) {
    let records = Records::new();
    let kubelet = Kubelet::new(&pod.directory());
    let volume = kubelet.volume("data");
    records.add(&volume, &device.name, &["--fs-type", "ext4"]).success();
    let pod = pod.run();
    let container = data(&pod, "writer", &volume).start();
    let digest = container.shell("yes bulkhead | head -c 20971520 > /data/file; md5sum < /data/file").stdout();
    drop(pod);
    device.while_mounted(|place| {
        let file = place.join("file");
        assert_eq!(fs::metadata(&file).expect("the file").len(), 20 << 20);
        assert_eq!(run(&["sh", "-c", &format!("md5sum < {}", file.display())]), digest);
    });
    drop((kubelet, records));
}

/// As systemd does at the end: whoever is left is asked to end, in any order.
fn what_a_guest_has_not_synced_survives_the_end_of_its_node(sandboxer: Sandboxer) {
    let before = Traces::now();
    let records = Records::new();
    let device = Device::new("data", "ext4");
    let pod = Pod::new("reboot", sandboxer);
    let kubelet = Kubelet::new(&pod.directory());
    let volume = kubelet.volume("data");
    records.add(&volume, &device.name, &["--fs-type", "ext4"]).success();
    let pod = pod.run();
    let container = data(&pod, "writer", &volume).start();
    let digest = container.shell("yes bulkhead | head -c 5242880 > /data/file; md5sum < /data/file").stdout();
    let [vmm] = Vmm::all()[..] else { panic!("one pod runs") };
    let shim = vmm.status(vmm.pid, "PPid");
    run(&["kill", &vmm.pid.to_string()]);
    run(&["kill", &shim]);
    eventually("the shim ends", || !Path::new("/proc").join(&shim).exists());
    device.while_mounted(|place| {
        assert_eq!(run(&["sh", "-c", &format!("md5sum < {}", place.join("file").display())]), digest);
    });
    drop((pod, kubelet, device, records));
    assert_nothing_left_since(&before);
}

fn data<'pod>(pod: &'pod Pod, name: &str, source: &Path) -> NewContainer<'pod> {
    pod.container(name, BUSYBOX).mount(source.to_str().expect("a plain path"), "/data").command(&FOREVER)
}

fn refusal(container: NewContainer<'_>) -> String {
    let container = container.try_create().expect("it is created on the node");
    let refused = container.start().expect_err("it is refused").message;
    container.remove().expect("it does not run");
    fs::remove_file(container.log().path()).ok();
    refused
}

fn remove(container: &Container) {
    container.stop(Duration::ZERO).expect("it stops");
    container.remove().expect("it is removed");
}

/// All of them go at the end, as after a reboot.
struct Records;

impl Records {
    fn new() -> Self {
        fs::remove_dir_all(RECORDS).ok();
        Self
    }

    fn bulkhead(&self, arguments: &[&str]) -> Finished {
        let output = Command::new("/opt/bulkhead/bin/bulkhead").arg("volume").args(arguments).output();
        Finished::from(output.expect("bulkhead is installed"))
    }

    fn add(&self, path: &Path, device: &str, more: &[&str]) -> Finished {
        let path = path.to_str().expect("a plain path");
        self.bulkhead(&[&["add", "--path", path, "--device", device], more].concat())
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        fs::remove_dir_all(RECORDS).ok();
    }
}

/// kubelet's directory of a pod.
struct Kubelet {
    directory: PathBuf,
    part: PathBuf,
}

impl Kubelet {
    fn new(directory: &Path) -> Self {
        let part = directory.join("volume-subpaths/data/part/0");
        fs::create_dir_all(&part).expect("a new directory");
        Self { directory: directory.to_owned(), part }
    }

    fn volume(&self, name: &str) -> PathBuf {
        let path = self.directory.join(format!("volumes/kubernetes.io~csi/{name}/mount"));
        fs::create_dir_all(&path).expect("a new directory");
        path
    }

    /// Returns where it is bound.
    fn bind(&self, part: &Path) -> PathBuf {
        fs::create_dir_all(part).expect("a directory");
        run(&["mount", "--bind", part.to_str().expect("plain"), self.part.to_str().expect("plain")]);
        self.part.clone()
    }

    fn unbind(&self) {
        run(&["umount", self.part.to_str().expect("plain")]);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        // Only after a failed test.
        try_run(&["umount", "--quiet", self.part.to_str().expect("plain")]);
        let tree = self.directory.to_str().expect("a plain path");
        try_run(&["rm", "--recursive", "--force", "--one-file-system", tree]);
    }
}

/// A loop device with a file system.
struct Device {
    image: PathBuf,
    name: String,
}

impl Device {
    fn new(name: &str, filesystem: &str) -> Self {
        let image = PathBuf::from(format!("/srv/e2e-direct-{name}-{}.img", std::process::id()));
        // The smallest XFS has 300 MiB.
        fs::File::create_new(&image).and_then(|file| file.set_len(320 << 20)).expect("a new file");
        run(&[&format!("mkfs.{filesystem}"), "-q", image.to_str().expect("a plain path")]);
        let device = run(&["losetup", "--find", "--show", image.to_str().expect("a plain path")]);
        Self { image, name: device.trim().to_owned() }
    }

    fn while_mounted(&self, look: impl FnOnce(&Path)) {
        let place = self.image.with_extension("d");
        fs::create_dir(&place).expect("a new directory");
        run(&["mount", &self.name, place.to_str().expect("a plain path")]);
        look(&place);
        run(&["umount", place.to_str().expect("a plain path")]);
        fs::remove_dir(&place).expect("it is empty");
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        try_run(&["losetup", "--detach", &self.name]);
        fs::remove_file(&self.image).ok();
    }
}

/// A device that takes 256 KiB in a second: four writes of 64 KiB at a time, and each takes a second.
struct SlowDevice {
    upper: Device,
    /// That each write waits in.
    delay: String,
    _lower: Device,
}

impl SlowDevice {
    fn new() -> Self {
        let lower = Device::new("lower", "ext4");
        // Else the guest writes the rest of the tables, and that takes a minute more.
        run(&["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0", &lower.name]);
        let delay = format!("e2e-direct-delay-{}", std::process::id());
        let (name, sectors) = (&lower.name, fs::metadata(&lower.image).expect("it is there").len() / 512);
        run(&["dmsetup", "create", &delay, "--table", &format!("0 {sectors} delay {name} 0 0 {name} 0 1000")]);
        let image = PathBuf::from(format!("/dev/mapper/{delay}"));
        let name = run(&["losetup", "--find", "--show", "--direct-io=on", image.to_str().expect("a plain path")]);
        let upper = Device { image: lower.image.with_extension("upper"), name: name.trim().to_owned() };
        let queue =
            PathBuf::from("/sys/block").join(Path::new(&upper.name).file_name().expect("a device")).join("queue");
        for (limit, value) in [("nr_requests", "4"), ("max_sectors_kb", "64")] {
            fs::write(queue.join(limit), value).expect("the kernel takes it");
        }
        Self { upper, delay, _lower: lower }
    }
}

impl Drop for SlowDevice {
    fn drop(&mut self) {
        // The lowest goes after that.
        try_run(&["losetup", "--detach", &self.upper.name]);
        try_run(&["dmsetup", "remove", "--force", "--retry", &self.delay]);
    }
}
