//! Image layers as disks: the erofs snapshotter of containerd 2.1.

mod image;

use e2e::container::ctr;
use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container, Running, eventually};
use image::LayeredImage;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const EROFS: &str = "erofs";

const SNAPSHOTS: &str = "/var/lib/containerd/io.containerd.snapshotter.v1.erofs/snapshots";

/// What a container's writes are in, in its snapshot's directory.
const SCRATCH: &str = ".bulkhead-upper.ext4";

/// Runs a test where containerd has the snapshotter.
pub(crate) fn with_erofs(test: fn()) {
    let plugins = ctr(&["plugins", "ls"]).success().stdout();
    let ok = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        words.first().is_some_and(|kind| kind.ends_with("snapshotter.v1"))
            && words.get(1) == Some(&EROFS)
            && words.last() == Some(&"ok")
    };
    if plugins.lines().any(ok) { test() } else { println!("test skipped: this containerd has no erofs snapshotter") }
}

#[test]
fn layers_are_disks_that_a_pods_containers_share() {
    with_erofs(|| {
        // containerd mounts the layers for the first container and keeps them.
        container().shell("true").run().success();
        let before = Traces::now();
        let first = container().command(&["/bin/sleep", "3600"]).start();
        assert_eq!(file_servers(), 0, "layers went through a file server");
        it_may_write_up_to_its_limit(&first);
        a_second_container_attaches_only_what_it_writes_to(&first);
        what_was_written_outlives_the_task(&first);
        drop(first);
        assert_nothing_left_since(&before);
        // containerd removes a snapshot's files when it collects garbage.
        ctr(&["content", "prune", "references"]).success();
        eventually("the writable layers are gone with their snapshots", || files(SCRATCH).is_empty());
    });
}

#[test]
fn a_layer_that_is_cut_or_missing_is_named() {
    with_erofs(|| {
        container().shell("true").run().success();
        let before = Traces::now();
        // Of the image's one layer; other images have other ones.
        let layers = files("layer.erofs");
        let changed: Vec<_> = layers.iter().map(|layer| Changed::cut(layer)).collect();
        let error = container().shell("true").run();
        assert_ne!(error.code, 0);
        let cut = changed.iter().find(|layer| error.stderr().contains(layer.text())).expect("the layer is named");
        let expected = format!("it is cut: {} of {} bytes are there", cut.length / 2, cut.length);
        assert!(error.stderr().contains(&expected), "{}", error.stderr());
        drop(changed);

        let changed: Vec<_> = layers.iter().map(|layer| Changed::hide(layer)).collect();
        let error = container().shell("true").run();
        assert_ne!(error.code, 0);
        let named = changed.iter().any(|layer| error.stderr().contains(layer.text()));
        assert!(named && error.stderr().to_lowercase().contains("no such file"), "{}", error.stderr());
        drop(changed);
        container().shell("true").run().success();
        assert_nothing_left_since(&before);
    });
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
        let finished = Container::new(&image.name, EROFS).shell(script).run().success();
        let printed = finished.stdout();
        let lines: Vec<_> = printed.lines().take(6).collect();
        assert_eq!(lines, ["127", "127", "whiteout", "1", "127", "new"]);
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
    let devices = |container: &Running| {
        let printed = container.shell("ls /sys/bus/pci/devices | wc -l").success().stdout();
        printed.trim().parse::<usize>().expect("a number")
    };
    let alone = devices(first);
    let member = [("container-type", "container"), ("sandbox-id", first.id())];
    let member = member.map(|(key, value)| format!("io.kubernetes.cri.{key}={value}"));
    let second = member.iter().fold(container(), |made, pair| made.argument("--annotation").argument(pair));
    let second = second.command(&["/bin/sleep", "3600"]).start();
    assert_eq!(devices(first), alone + 1, "more than a writable layer was attached");
    assert_ne!(second.shell("test -e /etc/kept").code, 0, "the second container sees what the first one wrote");
    second.shell("echo mine > /etc/kept").success();
    assert_eq!(first.shell("cat /etc/kept").success().stdout(), "kept\n");
    drop(second);
    assert_eq!(devices(first), alone, "a device stayed");
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

/// A layer's file that is cut or elsewhere until this is dropped.
struct Changed {
    path: PathBuf,
    length: u64,
    /// What was cut off.
    rest: Option<Vec<u8>>,
}

impl Changed {
    fn new(path: &Path) -> Self {
        // The snapshotter protects it.
        Command::new("chattr").arg("-i").arg(path).status().expect("chattr is there");
        Self { path: path.to_owned(), length: fs::metadata(path).expect("the layer").len(), rest: None }
    }

    fn cut(path: &Path) -> Self {
        let mut layer = Self::new(path);
        layer.rest = Some(fs::read(path).expect("the layer"));
        let file = fs::File::options().write(true).open(path).expect("the layer can be cut");
        file.set_len(layer.length / 2).expect("the layer is cut");
        layer
    }

    fn hide(path: &Path) -> Self {
        let layer = Self::new(path);
        fs::rename(path, path.with_extension("hidden")).expect("the layer can be renamed");
        layer
    }

    fn text(&self) -> &str {
        self.path.to_str().expect("a plain path")
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        match &self.rest {
            // The same file: the node has it mounted.
            Some(content) => fs::write(&self.path, content),
            None => fs::rename(self.path.with_extension("hidden"), &self.path),
        }
        .expect("the layer is whole again");
    }
}
