//! What bad input gets: one sentence that names the thing, and nothing left behind.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container, NO_COMMAND, run};
use std::fs;
use std::path::{Path, PathBuf};

const SHARE: &str = "/opt/bulkhead/share";
const CHANGES: &str = "/run/e2e-changes";

fn container() -> Container {
    Container::new(BUSYBOX, "overlayfs").shell("true")
}

/// Runs a container that can't start; `named` are words of the sentence that says why.
#[track_caller]
fn refused(container: Container, named: &[&str]) {
    let before = Traces::now();
    let finished = container.run();
    assert_ne!(finished.code, 0);
    let error = finished.stderr();
    for word in named {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    let lines: Vec<&str> = error.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "not one sentence: {error}");
    assert_nothing_left_since(&before);
}

/// A file that is elsewhere while the test runs.
struct Hidden {
    path: PathBuf,
}

impl Hidden {
    fn new(path: &str) -> Self {
        let path = PathBuf::from(path);
        fs::rename(&path, path.with_extension("hidden")).expect("the file is there");
        Self { path }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::rename(self.path.with_extension("hidden"), &self.path).expect("the file comes back");
    }
}

fn with_config(name: &str, text: &str) -> Container {
    let path = std::env::temp_dir().join(name);
    fs::write(&path, text).expect("the scratch directory takes a file");
    container().argument("--runtime-config-path").argument(path.to_str().expect("a plain path"))
}

/// The installed files with a change. Renamed or written to, they would not be those any more that the node's template was made with, and
/// whatever is tested after that would boot.
struct Changed;

impl Changed {
    fn new(change: impl FnOnce(&Path)) -> Self {
        let [upper, work] = ["upper", "work"].map(|name| Path::new(CHANGES).join(name));
        fs::create_dir_all(&upper).and_then(|()| fs::create_dir_all(&work)).expect("new directories");
        change(&upper);
        let options = format!("lowerdir={SHARE},upperdir={},workdir={}", upper.display(), work.display());
        run(&["mount", "-t", "overlay", "overlay", "-o", &options, SHARE]);
        Self
    }

    fn without(name: &str) -> Self {
        Self::new(|upper| drop(run(&["mknod", &upper.join(name).display().to_string(), "c", "0", "0"])))
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        run(&["umount", SHARE]);
        fs::remove_dir_all(CHANGES).expect("nobody has it mounted");
    }
}

#[test]
fn a_missing_kernel_is_named() {
    let _changed = Changed::without("vmlinux");
    refused(container(), &["vmlinux"]);
}

#[test]
fn a_missing_guest_image_is_named() {
    let _changed = Changed::without("guest.erofs");
    refused(container(), &["guest.erofs"]);
}

#[test]
fn a_missing_kvm_is_named() {
    let _hidden = Hidden::new("/dev/kvm");
    refused(container(), &["/dev/kvm"]);
}

#[test]
fn a_corrupt_kernel_is_named() {
    let _changed = Changed::new(|upper| fs::write(upper.join("vmlinux"), "not a kernel").expect("a new file"));
    refused(container(), &["kernel"]);
}

#[test]
fn a_corrupt_configuration_is_named() {
    refused(with_config("corrupt.toml", "vcpus = = 1\n"), &["corrupt.toml"]);
}

#[test]
fn an_unknown_key_is_named() {
    refused(with_config("unknown.toml", "vcpu = 1\n"), &["unknown.toml", "vcpu"]);
}

#[test]
fn an_image_without_a_command_is_refused() {
    let before = Traces::now();
    let finished = Container::new(NO_COMMAND, "overlayfs").run();
    assert_ne!(finished.code, 0);
    assert!(finished.stderr().contains("args"), "{}", finished.stderr());
    assert_nothing_left_since(&before);
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    refused(Container::new(BUSYBOX, "overlayfs").command(&["/no/such/command"]), &["/no/such/command"]);
}

#[test]
fn annotation_values_that_make_no_sense_are_named() {
    let cases = [
        ("io.bulkhead.vcpus=many", ["io.bulkhead.vcpus", "many"]),
        ("io.bulkhead.vcpus=33", ["io.bulkhead.vcpus", "33"]),
        ("io.bulkhead.kernel=/tmp/vmlinux", ["io.bulkhead.kernel", "annotation"]),
    ];
    for (annotation, named) in cases {
        refused(container().argument("--annotation").argument(annotation), &named);
    }
}

#[test]
fn too_little_memory_is_refused() {
    refused(container().argument("--annotation").argument("io.bulkhead.memory_mib=16"), &["memory", "16", "64"]);
}

#[test]
fn a_profile_of_the_node_is_refused_by_name() {
    let named = ["AppArmor profile \"mine\"", "cannot be applied in a microVM"];
    refused(container().argument("--apparmor-profile").argument("mine"), &named);
}
