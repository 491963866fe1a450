//! The `bulkhead` command on a node where it is installed.

use e2e::container::ctr;
use e2e::{BUSYBOX, Container, FOREVER, Finished};
use std::path::Path;
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
    let _container = Container::new(BUSYBOX, "overlayfs").command(&FOREVER).start();
    let refused = bulkhead(&["uninstall"]);
    assert!(refused.code != 0 && refused.stderr().contains("remove them first"), "{}", refused.stderr());
    check_finds_an_installed_node_ready();
}

/// The installer's image, as `cargo xtask installer-image` packs it.
const INSTALLER: &str = "/shares/payload/installer.oci.tar";

/// What the installer is told to restart containerd with, because the node has no systemd.
const RESTARTED: &str = "/tmp/restarted-by-the-installer";

/// Bulkhead is there after the test, however it ends.
struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        for command in [&["/root/bulkhead/bin/bulkhead", "install"][..], &["node-containerd", "restart"]] {
            let done = Command::new(command[0]).args(&command[1..]).status();
            assert!(done.is_ok_and(|status| status.success()), "{command:?} failed");
        }
    }
}

#[test]
#[ignore = "`make test-long`"]
fn the_installers_image_takes_bulkhead_off_a_node_and_puts_it_there() {
    let _installed = Installed;
    let import = ctr(&["image", "import", INSTALLER]).success().stdout();
    let image = import.split_whitespace().find(|word| word.starts_with("bulkhead.io/installer:"));
    let image = image.unwrap_or_else(|| panic!("no installer is in {import}"));

    let report = installer(image, &["--remove"]).success().stdout();
    assert!(report.contains("restarting containerd: touch") && !Path::new("/opt/bulkhead").exists(), "{report}");
    std::fs::remove_file(RESTARTED).expect("the command was run on the node");

    let report = installer(image, &[]).success().stdout();
    assert!(report.ends_with("This node can run pods.\n"), "{report}");
    std::fs::remove_file(RESTARTED).expect("the command was run on the node");
    let again = installer(image, &[]).success().stdout();
    assert!(again.contains("nothing to do") && !again.contains("restarting"), "{again}");
    ctr(&["image", "rm", image]).success();
}

/// As the DaemonSet of `deploy/install/` runs it, but once.
fn installer(image: &str, more: &[&str]) -> Finished {
    let restart = format!("touch {RESTARTED}");
    let mut line = vec!["run", "--rm", "--privileged", "--runtime", "io.containerd.runc.v2", "--mount"];
    line.extend(["type=bind,src=/,dst=/host,options=rbind:rw", image, "installer", "/bulkhead/bin/bulkhead", "daemon"]);
    line.extend(["--root", "/host", "--once", "--restart", &restart]);
    line.extend(more);
    ctr(&line)
}
