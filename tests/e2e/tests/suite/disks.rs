//! Disks of the node that fail under a running guest: full, gone, or hanging. The guest gets errors, the operator one clear
//! line, and the pod can be removed.

use e2e::container::ctr;
use e2e::cri::messages::Device;
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::log::ContainerdLog;
use e2e::{BUSYBOX, FOREVER, eventually, run, try_run};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

crate::for_each_sandboxer!(
    quick: a_disk_that_vanishes_gives_errors_and_one_clear_line, reads_of_a_slow_disk_wait_together;
    long: a_pod_whose_disk_hangs_is_removed_in_time
);

const MIB: u64 = 1 << 20;

/// Stopping and removing a pod whose guest cannot end: it is given ten seconds to end its container, its VMM five, and what
/// stays is waited for once more.
const REMOVAL: Duration = Duration::from_secs(90);

fn a_disk_that_vanishes_gives_errors_and_one_clear_line(sandboxer: Sandboxer) {
    let before = Traces::now();
    let log = ContainerdLog::from_now_on();
    let volume = Volume::new("vanishes");
    let pod = Pod::new("vanishes", sandboxer).annotation("io.bulkhead.vcpus", "2").run();
    let container = with_volume(&pod, &volume);
    a_queue_for_each_processor(&container);
    what_is_discarded_is_given_back(&container, &volume);

    volume.dmsetup(&["wipe_table"]);
    let read = container.shell("dd if=/dev/volume of=/dev/null bs=4096 skip=2048 count=1 iflag=direct");
    assert!(read.stderr().contains("I/O error") || read.stderr().contains("Input/output error"), "{}", read.stderr());
    container.shell("dd if=/dev/zero of=/dev/volume bs=4096 seek=1024 count=1 oflag=direct");
    container.shell("dd if=/dev/volume of=/dev/null bs=4096 skip=2049 count=1 iflag=direct");
    let lines = log.wait_for("its disk on the node fails or is gone");
    let [line] = &lines[..] else { panic!("not one line: {lines:#?}") };
    assert!(line.contains("device /dev/volume") && line.contains("level=warning"), "{line}");
    assert!(line.contains("pod_name=vanishes") && line.contains("pod_namespace=default"), "{line}");
    assert_eq!(container.shell("echo alive").stdout(), "alive\n");
    drop(pod);
    drop(volume);
    assert_nothing_left_since(&before);
}

fn a_queue_for_each_processor(container: &Container) {
    let queues = "ls /sys/dev/block/$(printf %d:%d $(stat -c '0x%t 0x%T' /dev/volume))/mq";
    assert_eq!(container.shell(queues).success().stdout(), "0\n1\n");
}

fn what_is_discarded_is_given_back(container: &Container, volume: &Volume) {
    container.shell("dd if=/dev/urandom of=/dev/volume bs=1M count=8 conv=fsync").success();
    // What the node holds in memory counts when it is written.
    run(&["sync", "--file-system", volume.image.to_str().expect("a plain path")]);
    let blocks = || fs::metadata(&volume.image).expect("the image").blocks();
    let written = blocks();
    assert!(written * 512 >= 8 * MIB, "{written}");
    container.shell("blkdiscard -o 0 -l 8388608 /dev/volume").success();
    assert!(blocks() * 512 < MIB, "{} of {written} blocks are left", blocks());
}

/// On one queue, as the guest has one processor.
fn reads_of_a_slow_disk_wait_together(sandboxer: Sandboxer) {
    let before = Traces::now();
    let volume = Volume::slow("slow", Duration::from_secs(1));
    let pod = Pod::new("slow", sandboxer).annotation("io.bulkhead.vcpus", "1").run();
    let container = with_volume(&pod, &volume);
    let read = "dd if=/dev/volume of=/dev/null bs=4096 count=1 iflag=direct";
    let started = Instant::now();
    container.shell(&format!("{read} skip=64")).success();
    assert!(started.elapsed() >= Duration::from_secs(1), "the disk is not slow");

    let all = format!("for i in $(seq 2 17); do {read} skip=$((i * 64)) & done; wait");
    let started = Instant::now();
    container.shell(&all).success();
    // One after the other they take 16 s.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    println!("16 reads of a second each took {:?}", started.elapsed());
    drop(pod);
    drop(volume);
    assert_nothing_left_since(&before);
}

fn a_pod_whose_disk_hangs_is_removed_in_time(sandboxer: Sandboxer) {
    let before = Traces::now();
    let volume = Volume::new("hangs");
    let pod = Pod::new("hangs", sandboxer).run();
    let container = with_volume(&pod, &volume);
    container.shell("dd if=/dev/urandom of=/dev/volume bs=1M count=1 conv=fsync").success();
    volume.dmsetup(&["suspend", "--noflush", "--nolockfs"]);
    let writes = "dd if=/dev/urandom of=/dev/volume bs=1M count=1 conv=fsync >/dev/null 2>&1 &";
    container.shell(writes).success();
    eventually("the node waits for the disk", node_waits_for_a_disk);

    let other = pod.container("other", BUSYBOX).command(&FOREVER).start();
    assert_eq!(other.shell("echo alive").stdout(), "alive\n", "what hangs is the disk, not the machine");
    let started = Instant::now();
    let stopped = pod.stop();
    let removed = pod.remove();
    let took = started.elapsed();
    volume.dmsetup(&["resume"]);
    stopped.expect("it is stopped");
    removed.expect("it is removed");
    assert!(took < REMOVAL, "{took:?}");

    // What the hung VMM kept goes with the next pod, at the latest.
    drop(Pod::new("next", sandboxer).run());
    drop(pod);
    drop(volume);
    assert_nothing_left_since(&before);
}

/// A thread of a VMM waits in a way that no signal ends.
fn node_waits_for_a_disk() -> bool {
    let threads = e2e::vmm::Vmm::all().into_iter().flat_map(|vmm| {
        vmm.threads().into_iter().map(move |thread| (vmm.status(thread, "Name"), vmm.status(thread, "State")))
    });
    threads.into_iter().any(|(name, state)| name == "block" && state.starts_with('D'))
}

/// The container's root is a file that the node has no place for.
#[test]
fn a_full_disk_of_the_node_gives_errors_and_one_clear_line() {
    let before = Traces::now();
    let log = ContainerdLog::from_now_on();
    let known = snapshots();
    let container = e2e::Container::new(BUSYBOX, "blockfile").command(&FOREVER).create();
    let fresh: Vec<PathBuf> = snapshots().into_iter().filter(|path| !known.contains(path)).collect();
    let [image] = &fresh[..] else { panic!("not one new snapshot: {fresh:?}") };
    let small = SmallDisk::below(image);

    ctr(&["task", "start", "--detach", container.id()]).success();
    let write = container.shell("dd if=/dev/zero of=/fill bs=1M count=24 conv=fsync; echo code $?");
    assert!(write.stdout().contains("code 1"), "{} {}", write.stdout(), write.stderr());
    let lines = log.wait_for("the node's disk is full");
    assert!(matches!(&lines[..], [line] if line.contains(container.id())), "{lines:#?}");
    assert_eq!(container.shell("echo alive").stdout(), "alive\n");
    let beside = e2e::Container::new(BUSYBOX, "blockfile").shell("echo x > /file && sync && echo written").run();
    assert_eq!(beside.stdout(), "written\n", "another container is not concerned");
    drop(container);
    drop(small);
    assert_nothing_left_since(&before);
}

fn snapshots() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::from("/var/lib/blockfile/snapshots")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().expect("an entry has a type");
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_file() && path.parent().is_some_and(|parent| parent.ends_with("snapshots")) {
                found.push(path);
            }
        }
    }
    found
}

/// A file system that has a file as it is and 4 MiB of room, in the place of the file.
struct SmallDisk {
    place: PathBuf,
    file: PathBuf,
}

impl SmallDisk {
    fn below(file: &Path) -> Self {
        let place = PathBuf::from(format!("/srv/e2e-small-{}", std::process::id()));
        fs::create_dir(&place).expect("a new directory");
        let used = fs::metadata(file).expect("the file").blocks() * 512;
        let size = format!("size={}", used + 4 * MIB);
        let place_name = place.to_str().expect("a plain path");
        run(&["mount", "-t", "tmpfs", "-o", &size, "small", place_name]);
        let copy = place.join("image");
        let [from, to] = [file, &copy].map(|path| path.to_str().expect("a plain path"));
        run(&["cp", "--sparse=always", from, to]);
        run(&["mount", "--bind", to, from]);
        Self { place, file: file.to_owned() }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        for mounted in [&self.file, &self.place] {
            try_run(&["umount", "--lazy", mounted.to_str().expect("a plain path")]);
        }
        fs::remove_dir(&self.place).ok();
    }
}

fn with_volume<'pod>(pod: &'pod Pod, volume: &Volume) -> Container<'pod> {
    let device = Device {
        container_path: "/dev/volume".into(),
        host_path: volume.device.clone(),
        permissions: "rwm".into(),
        ..Default::default()
    };
    pod.container("main", BUSYBOX).config(|config| config.devices.push(device)).command(&FOREVER).start()
}

/// A device-mapper device over a loop device, whose table a test may change.
struct Volume {
    image: PathBuf,
    loop_device: String,
    name: String,
    device: String,
}

impl Volume {
    fn new(name: &str) -> Self {
        Self::with_table(name, |device, sectors| format!("0 {sectors} linear {device} 0"))
    }

    /// Each read takes so long.
    fn slow(name: &str, delay: Duration) -> Self {
        let delay = delay.as_millis();
        Self::with_table(name, |device, sectors| format!("0 {sectors} delay {device} 0 {delay} {device} 0 0"))
    }

    fn with_table(name: &str, table: impl Fn(&str, u64) -> String) -> Self {
        let name = format!("e2e-{name}-{}", std::process::id());
        let image = PathBuf::from(format!("/srv/{name}.img"));
        fs::File::create_new(&image).and_then(|file| file.set_len(16 * MIB)).expect("a new file");
        let loop_device = run(&["losetup", "--find", "--show", image.to_str().expect("a plain path")]);
        let loop_device = loop_device.trim().to_owned();
        let table = table(&loop_device, 16 * MIB / 512);
        run(&["dmsetup", "create", &name, "--table", &table]);
        let known = run(&["dmsetup", "info", "--columns", "--noheadings", "--options", "blkdevname", &name]);
        let device = format!("/dev/{}", known.trim());
        Self { image, loop_device, name, device }
    }

    fn dmsetup(&self, command: &[&str]) {
        let mut line = vec!["dmsetup"];
        line.extend(command);
        line.push(&self.name);
        run(&line);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        try_run(&["dmsetup", "resume", &self.name]);
        try_run(&["dmsetup", "remove", "--force", "--retry", &self.name]);
        try_run(&["losetup", "--detach", &self.loop_device]);
        fs::remove_file(&self.image).ok();
    }
}
