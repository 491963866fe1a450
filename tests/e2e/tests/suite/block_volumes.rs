//! Block devices of the node as volumes of mode Block: a disk of the guest, which the container uses as a device.

use e2e::cri::messages::Device;
use e2e::cri::{Container, NewContainer, Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, FOREVER, run, try_run};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

crate::for_each_sandboxer!(long: a_block_device_is_a_disk_of_the_guest);

const MIB: u64 = 1 << 20;

/// One pod: a boot takes seconds under emulation.
fn a_block_device_is_a_disk_of_the_guest(sandboxer: Sandboxer) {
    let before = Traces::now();
    let volume = Volume::new("volume");
    // kubelet holds the device of a volume by a loop device of its own.
    let held = run(&["losetup", "--find", "--show", &volume.device]);
    let pod = Pod::new("block", sandboxer).run();
    let with = |name: &str, permissions: &str| device(pod.container(name, BUSYBOX), &volume, permissions);
    let first = with("first", "rwm").command(&FOREVER).start();
    what_is_written_is_on_the_node(&first, &volume);

    let second = with("second", "rwm").command(&FOREVER).start();
    both_have_the_same_disk(&first, &second);
    second.update(|limits| limits.memory_limit_in_bytes = 64 << 20).expect("it is updated");
    second.shell("head -c 512 /dev/volume").success();

    let reader = with("reader", "r").command(&FOREVER).start();
    reader.shell("head -c 512 /dev/volume").success();
    let refused = reader.shell("echo x > /dev/volume");
    assert!(refused.stderr().contains("not permitted"), "{}", refused.stderr());

    remove(&first);
    remove(&reader);
    let again = with("first", "rwm").attempt(1).command(&FOREVER).start();
    both_have_the_same_disk(&second, &again);

    what_the_node_uses_is_refused(&pod);
    remove(&again);
    remove(&second);
    let last = pod.container("last", BUSYBOX).command(&FOREVER).start();
    assert_eq!(last.shell("grep -c ' vd' /proc/partitions").stdout(), "0\n", "a disk is left in the guest");
    drop(pod);
    run(&["losetup", "--detach", held.trim()]);
    drop(volume);
    assert_nothing_left_since(&before);
}

fn what_is_written_is_on_the_node(container: &Container, volume: &Volume) {
    let metadata = fs::metadata(&volume.device).expect("a device");
    let expected = format!("block special file {:o} {}:{}\n", metadata.mode() & 0o777, metadata.uid(), metadata.gid());
    assert_eq!(container.shell("stat -c '%F %a %u:%g' /dev/volume").stdout(), expected);
    assert_eq!(container.shell("wc -c < /dev/volume").stdout(), format!("{}\n", volume.length));

    container.shell("echo from the guest | dd of=/dev/volume bs=512 seek=8 conv=fsync").success();
    let mut found = [0; 15];
    fs::File::open(&volume.image).expect("the image").read_exact_at(&mut found, 8 * 512).expect("it is long enough");
    assert_eq!(&found, b"from the guest\n");

    let node = fs::File::options().write(true).open(&volume.device).expect("the node has it too");
    node.write_all_at(b"from the node\n", MIB).expect("it can be written");
    assert_eq!(
        container.shell("dd if=/dev/volume bs=1M skip=1 count=1 2>/dev/null | head -n 1").stdout(),
        "from the node\n"
    );
}

/// What one writes the other reads at once: it is one disk, not two caches of it.
fn both_have_the_same_disk(one: &Container, other: &Container) {
    let number = |container: &Container| container.shell("stat -c %t:%T /dev/volume").stdout();
    assert_eq!(number(one), number(other));
    one.shell("echo from one | dd of=/dev/volume bs=512 seek=16").success();
    assert_eq!(other.shell("dd if=/dev/volume bs=512 skip=16 count=1 2>/dev/null | head -n 1").stdout(), "from one\n");
    other.shell("dd if=/dev/zero of=/dev/volume bs=512 seek=16 count=1").success();
}

fn what_the_node_uses_is_refused(pod: &Pod) {
    let volume = Volume::new("mounted");
    let place = volume.image.with_extension("d");
    fs::create_dir(&place).expect("a new directory");
    run(&["mkfs.ext4", "-q", &volume.device]);
    run(&["mount", &volume.device, place.to_str().expect("a plain path")]);
    let container = device(pod.container("mounted", BUSYBOX), &volume, "rwm").command(&FOREVER);
    let refused = container.try_create().and_then(|container| container.start());
    run(&["umount", &volume.device]);
    fs::remove_dir(&place).expect("it is empty");
    let refusal = refused.expect_err("it is refused").message;
    let sentence = format!("{} is mounted on the node, or part of another device", volume.device);
    assert!(refusal.contains(&sentence), "{refusal}");
}

fn device<'pod>(container: NewContainer<'pod>, volume: &Volume, permissions: &str) -> NewContainer<'pod> {
    let device = Device {
        container_path: "/dev/volume".into(),
        host_path: volume.device.clone(),
        permissions: permissions.into(),
        ..Default::default()
    };
    container.config(|config| config.devices.push(device))
}

fn remove(container: &Container) {
    container.stop(std::time::Duration::ZERO).expect("it stops");
    container.remove().expect("it is removed");
}

/// A loop device of the node.
struct Volume {
    image: PathBuf,
    length: u64,
    device: String,
}

impl Volume {
    fn new(name: &str) -> Self {
        let image = PathBuf::from(format!("/srv/e2e-{name}-{}.img", std::process::id()));
        let length = 16 * MIB;
        fs::File::create_new(&image).and_then(|file| file.set_len(length)).expect("a new file");
        let device = run(&["losetup", "--find", "--show", image.to_str().expect("a plain path")]);
        Self { image, length, device: device.trim().to_owned() }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        try_run(&["losetup", "--detach", &self.device]);
        fs::remove_file(&self.image).ok();
    }
}
