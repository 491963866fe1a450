//! What bad input gets: one sentence that names the thing, and nothing left behind.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{BUSYBOX, Container, NO_COMMAND};
use std::fs;
use std::path::PathBuf;

const SHARE: &str = "/opt/bulkhead/share";

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

#[test]
fn a_missing_kernel_is_named() {
    let _hidden = Hidden::new(&format!("{SHARE}/vmlinux"));
    refused(container(), &["vmlinux"]);
}

#[test]
fn a_missing_guest_image_is_named() {
    let _hidden = Hidden::new(&format!("{SHARE}/guest.erofs"));
    refused(container(), &["guest.erofs"]);
}

#[test]
fn a_missing_kvm_is_named() {
    let _hidden = Hidden::new("/dev/kvm");
    refused(container(), &["/dev/kvm"]);
}

#[test]
fn a_corrupt_kernel_is_named() {
    let _hidden = Hidden::new(&format!("{SHARE}/vmlinux"));
    let path = format!("{SHARE}/vmlinux");
    fs::write(&path, "not a kernel").expect("the file can be replaced");
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
