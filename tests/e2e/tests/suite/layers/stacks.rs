//! The mounts that containerd 2.2 and later give for image layers: it mounts nothing of them, and the shim makes disks of the
//! files. No node has that containerd: the shim is asked as it would ask.

use super::access::Access;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::task_api::{Mount, Task, erofs, mount};
use e2e::{BUSYBOX, run};
use std::fs;
use std::path::PathBuf;

const LOWER_ON_IMAGE: &str = "lowerdir={{ overlay 1 2 }}";

/// Of a snapshot with an image to write to.
const ON_IMAGE: [&str; 4] = [
    "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
    "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
    "workdir={{ mount 0 }}/work",
    "upperdir={{ mount 0 }}/upper",
];

/// What a container of both layers sees.
const SCRIPT: &str =
    "cat /second; test ! -e /etc/gone && echo whiteout; echo kept > /etc/kept; cat /etc/kept; ls / | wc -l";

#[test]
fn stacks_of_mounts_become_memory() {
    stacks_of_mounts_become(Access::Memory);
}

#[test]
#[ignore = "`make test-long`"]
fn stacks_of_mounts_become_disks() {
    stacks_of_mounts_become(Access::Disk);
}

fn stacks_of_mounts_become(access: Access) {
    let before = Traces::now();
    let config = access.of_pods();
    let files = Files::new();
    let expected = files.a_container_writes_to_its_image();
    files.or_to_its_snapshots_directory(&expected);
    files.a_merged_image_is_one_layer(&expected);
    files.an_image_without_layers_is_what_is_written();
    files.what_no_disk_can_be_is_refused();
    drop((files, config));
    assert_nothing_left_since(&before);
}

/// An image as a snapshotter would keep it, until this is dropped.
struct Files {
    place: PathBuf,
}

impl Files {
    fn new() -> Self {
        let files = Self { place: std::env::temp_dir().join(format!("stacks-{}", std::process::id())) };
        let [tree, second] = ["tree", "second"].map(|name| files.path(name));
        fs::create_dir_all(format!("{second}/etc")).expect("a directory for the second layer");
        fs::create_dir_all(&tree).expect("a directory for the first layer");
        let view = files.path("view");
        fs::create_dir_all(&view).expect("a mount point");
        run(&["ctr", "image", "mount", BUSYBOX, &view]);
        run(&["cp", "-a", &format!("{view}/."), &tree]);
        run(&["umount", &view]);
        run(&["ctr", "snapshot", "rm", &view]);
        for directory in ["etc", "proc", "dev", "sys", "run"] {
            fs::create_dir_all(format!("{tree}/{directory}")).expect("a directory of the first layer");
        }
        fs::write(format!("{tree}/etc/gone"), "").expect("a file of the first layer");
        fs::write(format!("{second}/second"), "of the second layer\n").expect("a file of the second layer");
        run(&["mknod", &format!("{second}/etc/gone"), "c", "0", "0"]);
        erofs(&tree, &files.path("1.erofs"));
        erofs(&second, &files.path("2.erofs"));
        files
    }

    fn path(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }

    fn blob(&self, number: u32) -> Mount {
        mount("erofs", &self.path(&format!("{number}.erofs")), &["ro", "loop"])
    }

    /// Made as containerd does it.
    fn image(&self, name: &str, arguments: &[&str]) -> String {
        let image = self.path(name);
        run(&["truncate", "-s", "64M", &image]);
        run(&[&["mke2fs", "-q", "-t", "ext4"], arguments, &[image.as_str()]].concat());
        image
    }

    fn a_container_writes_to_its_image(&self) -> String {
        let image = self.image("rwlayer.img", &[]);
        let writable = mount("ext4", &image, &["rw", "loop"]);
        let overlay = mount("format/mkdir/overlay", "overlay", &[&ON_IMAGE[..], &[LOWER_ON_IMAGE]].concat());
        let stack = [writable, self.blob(2), self.blob(1), overlay];
        let printed = Task::new("image").shell(SCRIPT).run(&stack).success().stdout();
        assert!(printed.starts_with("of the second layer\nwhiteout\nkept\n"), "{printed}");
        // The node does not mount what a guest wrote.
        let kept = run(&["debugfs", "-R", "cat upper/etc/kept", &image]);
        assert_eq!(kept, "kept\n");
        let again = Task::new("again").shell("cat /etc/kept").run(&stack).success();
        assert_eq!(again.stdout(), "kept\n");
        printed
    }

    fn or_to_its_snapshots_directory(&self, expected: &str) {
        let [upper, work] = ["fs", "work"].map(|name| self.path(name));
        fs::create_dir_all(&upper).expect("the snapshot's directory");
        let places = [format!("workdir={work}"), format!("upperdir={upper}"), "lowerdir={{ overlay 0 1 }}".to_owned()];
        let overlay = mount("format/mkdir/overlay", "overlay", &places.each_ref().map(String::as_str));
        let finished = Task::new("directory").shell(SCRIPT).run(&[self.blob(2), self.blob(1), overlay]).success();
        assert_eq!(finished.stdout(), expected);
        assert!(fs::metadata(format!("{upper}/.bulkhead-upper.ext4")).is_ok(), "it wrote elsewhere");
    }

    fn a_merged_image_is_one_layer(&self, expected: &str) {
        let [merged, lower, upper] = ["fsmeta.erofs", "1.erofs", "2.erofs"].map(|name| self.path(name));
        run(&["mkfs.erofs", "--quiet", "--aufs", "--ovlfs-strip=1", &merged, &lower, &upper]);
        let devices = [lower, upper].map(|path| format!("device={path}"));
        let layer = mount("erofs", &merged, &["ro", "loop", &devices[0], &devices[1]]);
        let writable = mount("ext4", &self.image("merged.img", &[]), &["rw", "loop"]);
        let overlay = mount("format/mkdir/overlay", "overlay", &[&ON_IMAGE[..], &["lowerdir={{ mount 1 }}"]].concat());
        let finished = Task::new("merged").shell(SCRIPT).run(&[writable, layer, overlay]).success();
        assert_eq!(finished.stdout(), expected);
    }

    fn an_image_without_layers_is_what_is_written(&self) {
        let content = self.path("content");
        fs::create_dir_all(&content).expect("a directory for the image's content");
        run(&["cp", "-a", &self.path("tree"), &format!("{content}/upper")]);
        let image = self.image("alone.img", &["-d", &content]);
        let options = ["X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "rw", "rbind"];
        let alone = mount("format/mkdir/bind", "{{ mount 0 }}/upper", &options);
        let stack = [mount("ext4", &image, &["rw", "loop"]), alone];
        let finished = Task::new("alone").shell("echo here > /here; cat /here; ls -d /lost+found").run(&stack);
        assert_eq!((finished.code, finished.stdout()), (1, "here\n".to_owned()), "{}", finished.stderr());
    }

    fn what_no_disk_can_be_is_refused(&self) {
        let overlay = |lower: &str| mount("format/mkdir/overlay", "overlay", &[lower]);
        let verified = mount("erofs", &self.path("1.erofs"), &["ro", "loop", "X-containerd.dmverity=/1.dmverity"]);
        let merged = mount("erofs", &self.path("fsmeta.erofs"), &["ro", "loop"]);
        let cases = [
            (vec![verified, overlay("lowerdir={{ mount 0 }}")], "the guest cannot verify layers"),
            (vec![self.blob(1), overlay("lowerdir=/etc")], "the option lowerdir=/etc is not supported there"),
            (vec![mount("mkdir/bind", "/etc", &["ro"])], "mount type \"mkdir/bind\" is not supported"),
            (vec![self.blob(1), mount("bind", "/etc", &["ro"])], "a stack of mounts (erofs, bind) is not supported"),
        ];
        for (number, (stack, expected)) in cases.iter().enumerate() {
            let refused = Task::new(&format!("refused-{number}")).shell("true").run(stack);
            assert!(refused.code != 0 && refused.stderr().contains(expected), "{}", refused.stderr());
        }
        let missing = Task::new("missing").shell("true").run(&[merged, overlay("lowerdir={{ mount 0 }}")]);
        assert!(missing.stderr().contains("it is on 2 more devices, and 0 are named"), "{}", missing.stderr());
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.place).ok();
    }
}
