//! A guest that does everything to write to its image's layers changes nothing on the node.

use super::access::Access;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::task_api::{Task, erofs, mount};
use e2e::{DEBIAN, run};
use std::fs;

/// The ways, and what they print.
const WAYS: &str = include_str!("../../../programs/layer_writes.py");

/// Ways per device, of which there are the guest's own image, the disk or memory of layers and its two parts.
const MANY: usize = 2 * 9 + 2 * 8;

const GUEST_IMAGE: &str = "/opt/bulkhead/share/guest.erofs";

/// The layers are given as containerd 2.2 does, so that they are the same on every node.
#[test]
#[ignore = "`make test-long`"]
fn a_guest_cannot_change_a_layer() {
    let before = Traces::now();
    let place = std::env::temp_dir().join(format!("hostile-{}", std::process::id()));
    let path = |name: &str| place.join(name).display().to_string();
    let [view, second, lower, upper] = ["view", "second", "1.erofs", "2.erofs"].map(path);
    for directory in [&view, &second] {
        fs::create_dir_all(directory).expect("a directory");
    }
    fs::write(format!("{second}/second"), "of the second layer\n").expect("a file of the second layer");
    erofs(&second, &upper);
    run(&["ctr", "image", "mount", DEBIAN, &view]);
    erofs(&view, &lower);
    run(&["umount", &view]);
    run(&["ctr", "snapshot", "rm", &view]);
    // Below the directory that the container writes to, which is each one's own.
    let stack = |name: &str| {
        let [upper_directory, work] = ["fs", "work"].map(|kind| path(&format!("{name}-{kind}")));
        fs::create_dir_all(&upper_directory).expect("a snapshot's directory");
        let places = [format!("upperdir={upper_directory}"), format!("workdir={work}")];
        let options = [places[0].as_str(), &places[1], "lowerdir={{ overlay 0 1 }}"];
        let layer = |blob: &str| mount("erofs", blob, &["ro", "loop"]);
        [layer(&upper), layer(&lower), mount("format/mkdir/overlay", "overlay", &options)]
    };
    let digests = || run(&["sha256sum", &lower, &upper, GUEST_IMAGE]);
    let reads = |name: &str| {
        let script = "sha256sum /second /usr/bin/python3.1* /usr/bin/redis-server /bin/sh";
        Task::new(name).shell(script).run(&stack(name)).success().stdout()
    };
    let (files, expected) = (digests(), reads("before"));

    for (access, name, disk) in [(Access::Memory, "memory", "tried pmem1 "), (Access::Disk, "disk", "tried vd")] {
        let task = Task::new(name).privileged().command(&["/usr/bin/python3", "-c", WAYS]);
        let _config = access.of_pods();
        let hostile = task.run(&stack(name));
        let printed = hostile.stdout();
        assert_eq!(hostile.code, 0, "{printed}{}", hostile.stderr());
        let count = |word: &str| printed.lines().filter(|line| line.split(' ').next() == Some(word)).count();
        assert!(count("tried") >= MANY, "{printed}");
        assert_eq!((count("same"), count("CHANGED")), (2, 0), "{printed}");
        assert!(printed.contains("tried pmem0 ") && printed.contains(disk), "{printed}");
        assert_eq!(digests(), files, "a file of the node has changed: {printed}");
    }
    assert_eq!(reads("after"), expected, "another pod of the image reads something else");
    fs::remove_dir_all(&place).ok();
    assert_nothing_left_since(&before);
}
