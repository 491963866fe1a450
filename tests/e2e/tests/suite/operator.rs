//! The `bulkhead` command on a node where it is installed.

use e2e::{BUSYBOX, Container, Finished};
use std::process::Command;

fn bulkhead(arguments: &[&str]) -> Finished {
    let output = Command::new("/opt/bulkhead/bin/bulkhead").args(arguments).output();
    Finished::from(output.expect("bulkhead is installed"))
}

#[test]
fn check_finds_an_installed_node_ready() {
    let report = bulkhead(&["check"]).success().stdout();
    assert!(report.ends_with("This node can run pods.\n") && !report.contains("FAIL"), "{report}");
}

#[test]
fn installing_again_changes_nothing() {
    let report = bulkhead(&["install"]).success().stdout();
    assert!(report.contains("nothing to do"), "{report}");
}

#[test]
fn uninstall_refuses_while_a_pod_runs() {
    let _container = Container::new(BUSYBOX, "overlayfs").command(&["/bin/sleep", "3600"]).start();
    let refused = bulkhead(&["uninstall"]);
    assert!(refused.code != 0 && refused.stderr().contains("remove them first"), "{}", refused.stderr());
    check_finds_an_installed_node_ready();
}
