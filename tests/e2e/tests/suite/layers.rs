//! Image layers as disks or memory of the guest: the erofs snapshotter of containerd 2.1.

mod access;
mod bad;
mod hostile;
mod image;
mod stacks;

use crate::with_erofs;
use access::Access;
use e2e::container::ctr;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container, FOREVER, Running, eventually};
use image::LayeredImage;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const EROFS: &str = "erofs";

const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots";

/// What a container's writes are in, in its snapshot's directory.
const SCRATCH: &str = ".bulkhead-upper.ext4";

#[test]
fn layers_are_memory_that_a_pods_containers_share() {
    with_erofs(|| a_pods_containers_share_layers(Access::Memory));
}

#[test]
fn layers_are_disks_that_a_pods_containers_share() {
    with_erofs(|| a_pods_containers_share_layers(Access::Disk));
}

fn a_pods_containers_share_layers(access: Access) {
    // containerd mounts the layers for the first container and keeps them.
    container().shell("true").run().success();
    let before = Traces::now();
    let config = access.of_pods();
    let first = container().command(&FOREVER).start();
    assert_eq!(file_servers(), 0, "layers went through a file server");
    access.assert_of(&first);
    it_may_write_up_to_its_limit(&first);
    a_second_container_attaches_only_what_it_writes_to(&first);
    what_was_written_outlives_the_task(&first);
    drop((first, config));
    assert_nothing_left_since(&before);
    // containerd removes a snapshot's files when it collects garbage.
    ctr(&["content", "prune", "references"]).success();
    eventually("the writable layers are gone with their snapshots", || files(SCRATCH).is_empty());
}

/// What containerd does where the kernel cannot mount a file by itself.
#[test]
fn a_layer_on_a_loop_device_is_found() {
    with_erofs(|| {
        container().shell("true").run().success();
        for layer in files("layer.erofs") {
            let place = layer.with_file_name("fs");
            // Layers that no container has used yet are not mounted.
            if run("umount", &[&place]) {
                assert!(run("mount", &[Path::new("-oro,loop"), Path::new("-terofs"), &layer, &place]));
            }
        }
        let before = Traces::now();
        let container = container().command(&["/bin/sleep", "3600"]).start();
        assert_eq!(file_servers(), 0, "layers went through a file server");
        assert_eq!(container.shell("echo here > /here; cat /here").success().stdout(), "here\n");
        drop(container);
        assert_nothing_left_since(&before);
        for layer in files("layer.erofs") {
            run("umount", &[&layer.with_file_name("fs")]);
        }
    });
}

#[test]
#[ignore = "`make test-long`"]
fn an_image_may_have_128_layers() {
    with_erofs(|| {
        let image = LayeredImage::new(&(1..128).map(layer).collect::<Vec<_>>());
        let script = "cat /last; ls /layers | wc -l; test ! -e /gone && echo whiteout; cat /layers/1 /layers/127; \
                      echo new > /layers/1; cat /layers/1; find / -xdev | sort";
        let run = |access: Access| {
            let _config = access.of_pods();
            Container::new(&image.name, EROFS).shell(script).run().success().stdout()
        };
        let printed = run(Access::Memory);
        let lines: Vec<_> = printed.lines().take(6).collect();
        assert_eq!(lines, ["127", "127", "whiteout", "1", "127", "new"]);
        assert_eq!(printed, run(Access::Disk), "a disk shows another tree");
        // What an opaque directory hides is the business of whoever made the layers.
        let line = ["run", "--rm", "--snapshotter", EROFS, &image.name, "e2e-runc", "/bin/sh", "-c", script];
        assert_eq!(printed, ctr(&line).success().stdout(), "runc sees another tree");
        assert_eq!(file_servers(), 0);
    });
}

/// Each adds a file, replaces one, makes a directory opaque, and takes away what the one below added.
fn layer(number: usize) -> Vec<(String, String)> {
    let file = |path: String| (path, format!("{number}\n"));
    let mut files = vec![
        file(format!("layers/{number}")),
        file("last".to_owned()),
        file("opaque/.wh..wh..opq".to_owned()),
        file(format!("opaque/{number}")),
    ];
    files.push(if number.is_multiple_of(2) { file("gone".to_owned()) } else { file(".wh.gone".to_owned()) });
    files
}

fn it_may_write_up_to_its_limit(container: &Running) {
    let script = "set -e; echo kept > /etc/kept; mkdir /d; mknod /d/null c 1 3; ln -s kept /etc/link; chown 7:8 /d; \
                  dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; sync; \
                  df -Pm / | tail -1 | awk '{ print $2 }'; stat -c %a:%u:%g /";
    let printed = container.shell(script).success().stdout();
    let [size, root] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    let size: u64 = size.parse().expect("a size");
    assert!((64..=10_240).contains(&size), "{size} MiB");
    assert_eq!(root, "755:0:0");
    let image = &files(SCRATCH)[0];
    let allocated = || fs::metadata(image).map(|image| image.blocks() / (1 << 11));
    let written = allocated().expect("the writable layer's file");
    assert!((64..128).contains(&written), "{written} MiB of the node for 64 MiB");
    container.shell("rm /big; sync").success();
    eventually("what was deleted is the node's again", || allocated().is_ok_and(|now| now < 32));
}

fn a_second_container_attaches_only_what_it_writes_to(first: &Running) {
    let alone = devices(first);
    let second = member_of(first, container()).command(&FOREVER).start();
    assert_eq!(devices(first), alone + 1, "more than a writable layer was attached");
    assert_ne!(second.shell("test -e /etc/kept").code, 0, "the second container sees what the first one wrote");
    second.shell("echo mine > /etc/kept").success();
    assert_eq!(first.shell("cat /etc/kept").success().stdout(), "kept\n");
    drop(second);
    assert_eq!(devices(first), alone, "a device stayed");
}

fn member_of(pod: &Running, container: Container) -> Container {
    let member = [("container-type", "container"), ("sandbox-id", pod.id())];
    let member = member.map(|(key, value)| format!("io.kubernetes.cri.{key}={value}"));
    member.iter().fold(container, |made, pair| made.argument("--annotation").argument(pair))
}

/// How many devices its machine has.
fn devices(container: &Running) -> usize {
    let printed = container.shell("ls /sys/bus/pci/devices | wc -l").success().stdout();
    printed.trim().parse().expect("a number")
}

/// As `ctr task start` after the task was deleted: the snapshot is still there.
fn what_was_written_outlives_the_task(container: &Running) {
    let id = container.id().to_owned();
    container.kill("SIGKILL").success();
    eventually("the task has stopped", || container.status() == "STOPPED");
    ctr(&["task", "delete", &id]);
    ctr(&["task", "start", "--detach", "--null-io", &id]).success();
    assert_eq!(container.shell("cat /etc/link; stat -c %u:%g /d").success().stdout(), "kept\n7:8\n");
}

fn container() -> Container {
    Container::new(BUSYBOX, EROFS)
}

fn file_servers() -> usize {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| fs::read_to_string(entry.path().join("comm")).ok());
    names.filter(|name| name.trim() == "bulkhead-fsd").count()
}

fn run(program: &str, arguments: &[&Path]) -> bool {
    Command::new(program).args(arguments).status().expect("the program is there").success()
}

/// Files of this name in the snapshots.
fn files(name: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(SNAPSHOTS).into_iter().flatten().flatten();
    let places = entries.flat_map(|entry| [entry.path(), entry.path().join("fs")]);
    places.map(|place| place.join(name)).filter(|file| file.is_file()).collect()
}

/// A mount that goes when this is dropped.
struct Mounted(PathBuf);

#[track_caller]
fn mount_on(place: &Path, arguments: &[&str]) -> Mounted {
    let place = place.to_owned();
    let line: Vec<_> = arguments.iter().map(Path::new).chain([place.as_path()]).collect();
    assert!(run("mount", &line), "{line:?}");
    Mounted(place)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &[&self.0]);
    }
}
