//! A root filesystem does what programs expect of a file system, whatever brings it into the guest.

use e2e::leaks::{Traces, assert_nothing_left_since};
use e2e::{Container, DEBIAN};

crate::for_each_snapshotter!(long: programs_find_the_file_system_that_they_expect);

/// The cases, and what they say.
const CASES: &str = include_str!("../../programs/posix.py");

/// As many as there must be at least: a script that ends early proves nothing.
const MANY: usize = 45;

fn programs_find_the_file_system_that_they_expect(snapshotter: &str) {
    let before = Traces::now();
    let directory = "/var/cases";
    let script = format!("mkdir {directory} && exec /usr/bin/python3 - {directory}");
    let finished = Container::new(DEBIAN, snapshotter).shell(&script).run_with_input(CASES.as_bytes());
    let (printed, errors) = (finished.stdout(), finished.stderr());
    assert!(finished.code == 0 && !printed.contains("FAILED"), "{printed}{errors}");
    let done = printed.lines().filter(|line| line.starts_with("ok ")).count();
    assert!(done >= MANY, "{done} cases: {printed}");
    assert_nothing_left_since(&before);
}
