//! Whether layers are a disk or memory of the guest, and what comes of memory that goes.

use super::bad::Changed;
use super::{EROFS, container, devices, files, member_of};
use crate::with_erofs;
use e2e::container::ctr;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::log::ContainerdLog;
use e2e::node_config::NodeConfig;
use e2e::{Container, DEBIAN, FOREVER, Running, eventually};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Memory,
    Disk,
}

impl Access {
    /// Pods that are made while this is kept have their layers like this, if they fit their memory.
    #[must_use]
    pub fn of_pods(self) -> NodeConfig {
        NodeConfig::with(if self == Self::Memory { "map_layers = true\n" } else { "map_layers = false\n" })
    }

    #[track_caller]
    pub fn assert_of(self, container: &Running) {
        assert_eq!(regions(container), usize::from(self == Self::Memory), "regions of layers");
    }
}

/// How many of its pod's disks of layers are memory. The guest's own image is one too.
fn regions(container: &Running) -> usize {
    let printed = container.shell("ls /sys/block | grep -c pmem").stdout();
    printed.trim().parse::<usize>().expect("a number") - 1
}

/// The disk reads the pages of the layer itself.
const DIRECT: &str = "
import mmap, os
layer = mmap.mmap(os.open('/usr/bin/redis-server', os.O_RDONLY), 65536, prot=mmap.PROT_READ)
disk = os.open('/copy', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
assert os.pwritev(disk, [layer], 0) == 65536
os.posix_fadvise(disk, 0, 0, os.POSIX_FADV_DONTNEED)
assert open('/copy', 'rb').read() == layer[:], 'the copy is another file'
";

/// It has 208 MiB, so it is mapped where a pod has as much left, and taken away again with its last container.
#[test]
#[ignore = "`make test-long`"]
fn layers_beyond_the_pods_memory_are_a_disk() {
    with_erofs(|| {
        let before = Traces::now();
        for (memory, expected) in [(192, 1), (256, 2)] {
            let memory = format!("io.bulkhead.memory_mib={memory}");
            let pod = container().argument("--annotation").argument(&memory).command(&FOREVER).start();
            Access::Memory.assert_of(&pod);
            let alone = devices(&pod);
            for _ in 0..2 {
                let large = member_of(&pod, Container::new(DEBIAN, EROFS)).command(&FOREVER).start();
                assert_eq!((devices(&pod), regions(&large)), (alone + 2, expected), "{memory}");
                large.exec(&["/usr/bin/python3", "-c", DIRECT]).success();
                drop(large);
                assert_eq!((devices(&pod), regions(&pod)), (alone, 1), "{memory}");
            }
        }
        assert_nothing_left_since(&before);
    });
}

/// Nobody may do that to a layer. The guest has no page for the address then, and its machine ends with a reason.
#[test]
#[ignore = "`make test-long`"]
fn a_mapped_layer_that_is_cut_ends_its_pod() {
    with_erofs(|| {
        container().shell("true").run().success();
        let before = Traces::now();
        let log = ContainerdLog::from_now_on();
        let pod = container().command(&FOREVER).start();
        Access::Memory.assert_of(&pod);
        let cut: Vec<_> = files("layer.erofs").iter().map(|layer| Changed::cut_to(layer, 4096)).collect();
        assert_ne!(pod.shell("cat /bin/busybox > /dev/null").code, 0);
        eventually("the pod has ended", || pod.status() == "STOPPED");
        log.wait_for("a file that is mapped there was cut, or its disk fails");
        drop(cut);
        ctr(&["task", "delete", pod.id()]);
        drop(pod);
        container().shell("true").run().success();
        assert_nothing_left_since(&before);
    });
}
