//! A volume that several containers of a pod mount is one file system to them, as it is on the node.

use e2e::cri::{Pod, Sandboxer};
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{DEBIAN, eventually, run, try_run};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

crate::for_each_sandboxer!(long: locks_and_mapped_pages_are_those_of_all_containers);

/// Takes both kinds of locks, and answers through a page that is mapped.
const HOLDER: &str = r"
import fcntl, mmap, time
lock, record, page = (open('/data/' + name, 'w+b') for name in ('lock', 'record', 'page'))
fcntl.flock(lock, fcntl.LOCK_EX)
fcntl.lockf(record, fcntl.LOCK_EX)
page.truncate(4096)
shared = mmap.mmap(page.fileno(), 4096)
open('/data/ready', 'w')
while shared[0] != 1: time.sleep(0.05)
shared[1] = 2
time.sleep(3600)
";

/// Finds the locks held, asks through the page, and waits for the answer.
const OTHER: &str = r"
import fcntl, mmap, sys, time
for name, take in ('lock', fcntl.flock), ('record', fcntl.lockf):
    try: take(open('/data/' + name, 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: continue
    sys.exit(name + ' is not locked')
page = open('/data/page', 'r+b')
shared = mmap.mmap(page.fileno(), 4096)
shared[0] = 1
end = time.monotonic() + 20
while shared[1] != 2:
    if time.monotonic() > end: sys.exit('no answer')
    time.sleep(0.05)
";

fn locks_and_mapped_pages_are_those_of_all_containers(sandboxer: Sandboxer) {
    let before = Traces::now();
    let pod = Pod::new("places", sandboxer);
    let directory = pod.directory();
    let volume = directory.join("volumes/e2e/data");
    fs::create_dir_all(&volume).expect("a new directory");
    let source = volume.to_str().expect("a plain path");
    let pod = pod.run();
    let python = |name: &str, script: &str| {
        pod.container(name, DEBIAN).mount(source, "/data").command(&["/usr/bin/python3", "-c", script])
    };
    let holder = python("holder", HOLDER).start();
    eventually("the locks are held", || volume.join("ready").exists());
    let other = python("other", OTHER).start();
    assert_eq!(other.wait(), 0, "{}", other.log().stderr());

    // The place stays for those who are left, and a container that comes again has the same.
    let free = "flock -n /data/lock true && echo free || echo held";
    let third = pod.container("third", DEBIAN).mount(source, "/data").command(&e2e::FOREVER).start();
    other.remove().expect("it has ended");
    assert_eq!(third.shell(free).stdout(), "held\n");
    holder.stop(Duration::ZERO).expect("it ends");
    assert_eq!(third.shell(free).stdout(), "free\n");
    a_volume_is_let_go_with_its_last_container(&pod, &directory.join("volumes/e2e/disk"));
    drop(pod);
    try_run(&["rm", "--recursive", "--one-file-system", directory.to_str().expect("a plain path")]).success();
    assert_nothing_left_since(&before);
}

/// While the pod lives on: a driver could not detach a device that is in use.
fn a_volume_is_let_go_with_its_last_container(pod: &Pod, place: &Path) {
    let image = std::env::temp_dir().join("e2e-let-go.img");
    fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("a new file");
    let device = run(&["losetup", "--find", "--show", image.to_str().expect("a plain path")]);
    let device = device.trim();
    fs::create_dir(place).expect("a new directory");
    let place = place.to_str().expect("a plain path");
    run(&["mkfs.ext4", "-q", device]);
    run(&["mount", device, place]);
    let script = "for i in 1 2 3; do echo $i > /disk/$i; done; mkdir /disk/d; echo x > /disk/d/x; ls /disk";
    let container = pod.container("disk", DEBIAN).mount(place, "/disk").shell(script).start();
    assert_eq!(container.wait(), 0);
    container.remove().expect("it has ended");
    run(&["umount", place]);
    let exclusive = || fs::File::options().read(true).custom_flags(nix::fcntl::OFlag::O_EXCL.bits()).open(device);
    eventually("nobody uses the device any more", || exclusive().is_ok());
    run(&["losetup", "--detach", device]);
    fs::remove_file(&image).expect("it is there");
}
