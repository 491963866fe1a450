//! Containers that join a running microVM bring their root filesystem with them.

use e2e::vmm::Vmm;
use e2e::{BUSYBOX, Container, FOREVER, Running, eventually};

crate::for_each_snapshotter!(a_second_container_joins_the_first_ones_machine);

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The annotations that containerd's CRI plugin groups a pod's containers by.
fn member(container: Container, sandbox: &str) -> Container {
    container
        .argument("--annotation")
        .argument(&format!("{TYPE}=container"))
        .argument("--annotation")
        .argument(&format!("{SANDBOX}={sandbox}"))
}

fn a_second_container_joins_the_first_ones_machine(snapshotter: &str) {
    let first = Container::new(BUSYBOX, snapshotter).command(&FOREVER).start();
    let machines = Vmm::all().len();
    let boot = |text: String| text.lines().find(|line| !line.is_empty()).map(str::to_owned).expect("a boot id");
    let script = "cat /proc/sys/kernel/random/boot_id";
    let here = boot(first.shell(script).success().stdout());
    for round in 0..3 {
        let second = member(Container::new(BUSYBOX, snapshotter), first.id())
            .shell(&format!("{script}; touch /round-{round}; ls /"))
            .run();
        let second = second.success().stdout();
        assert_eq!(boot(second.clone()), here, "the second container runs in another machine");
        let files = second.lines().filter(|line| line.starts_with("round-")).count();
        assert_eq!(files, 1, "a root filesystem is not fresh: {second}");
    }
    assert_eq!(Vmm::all().len(), machines, "a machine of its own was made");
    // The first one never noticed.
    assert_eq!(boot(first.shell(script).success().stdout()), here);
}

/// Four times as long as anybody waits for it. Without its disk the guest would keep its bus locked for ever.
#[test]
#[ignore = "`make test-long`"]
fn a_disk_that_is_still_written_to_goes_when_that_is_done() {
    let slow =
        Container::new(BUSYBOX, "blockfile").argument("--annotation").argument("io.bulkhead.disk_mib_per_second=1");
    let first = slow.command(&FOREVER).start();
    // A guest lets a sixth of its memory wait to be written: what it was given for this, it keeps.
    first.shell("dd if=/dev/zero bs=400M count=1 | sleep 2").success();
    let alone = disks(&first);
    let second = member(Container::new(BUSYBOX, "blockfile"), first.id()).command(&FOREVER).start();
    second.shell("dd if=/dev/zero of=/file bs=1M count=40").success();
    second.kill("SIGKILL").success();
    assert_eq!(second.delete_stopped(), 137);
    assert!(disks(&first) > alone, "nothing was left to be written");
    let third = member(Container::new(BUSYBOX, "blockfile"), first.id()).shell("echo attached").run();
    assert_eq!(third.success().stdout(), "attached\n");
    eventually("the disk goes", || disks(&first) == alone);
}

/// A guest looks at its whole bus: what has just been let go must not be found again before it is unplugged.
#[test]
#[ignore = "`make test-long`"]
fn disks_come_while_others_go() {
    let first = Container::new(BUSYBOX, "blockfile").command(&FOREVER).start();
    let alone = disks(&first);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let other = member(Container::new(BUSYBOX, "blockfile"), first.id()).shell("echo here").run();
                    assert_eq!(other.success().stdout(), "here\n");
                }
            });
        }
    });
    eventually("all disks go", || disks(&first) == alone);
}

/// Of its machine.
fn disks(container: &Running) -> usize {
    container.shell("grep -c ' vd' /proc/partitions").stdout().trim().parse().expect("a number")
}
