//! Installation and removal in a scratch root.

use super::*;
use crate::uninstall::{uninstall, uninstall_from};
use tempfile::TempDir;

const CONTAINERD: &str = "version = 2\n# kept\n[debug]\n  level = \"info\"\n";

struct Node {
    scratch: TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { scratch: tempfile::tempdir().unwrap() };
        for (name, _) in FILES {
            let path = node.bundle().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        node
    }

    fn bundle(&self) -> PathBuf {
        self.scratch.path().join("bundle")
    }

    fn layout(&self) -> Layout {
        Layout::new(&self.scratch.path().join("root"))
    }

    fn with_containerd(self, text: &str) -> Self {
        let path = self.layout().containerd_config();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn plan(&self) -> Vec<Step> {
        plan(&self.bundle(), &self.layout()).unwrap()
    }

    fn install(&self) {
        for step in self.plan() {
            carry_out(&step).unwrap();
        }
    }

    fn containerd(&self) -> Option<String> {
        read(&self.layout().containerd_config()).unwrap()
    }
}

#[test]
fn a_second_plan_is_empty() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    assert_eq!(node.plan(), []);
}

#[test]
fn a_missing_file_of_the_bundle_is_named() {
    let node = Node::new();
    fs::remove_file(node.bundle().join("share/vmlinux")).unwrap();
    let error = plan(&node.bundle(), &node.layout()).unwrap_err().to_string();
    assert!(error.contains("share/vmlinux is missing"), "{error}");
}

#[test]
fn uninstall_restores_what_was_there() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    assert_ne!(node.containerd().unwrap(), CONTAINERD);
    uninstall_from(&node.layout(), false).unwrap();
    assert_eq!(node.containerd().unwrap(), CONTAINERD);
    assert!(!node.layout().at(PREFIX).exists() && !node.layout().config().exists());
    assert!(fs::symlink_metadata(node.layout().shim_link()).is_err());
}

#[test]
fn uninstall_removes_a_containerd_configuration_that_it_made() {
    let node = Node::new();
    node.install();
    uninstall_from(&node.layout(), false).unwrap();
    assert_eq!(node.containerd(), None);
}

#[test]
fn uninstall_keeps_what_an_operator_changed_since() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    let edited = node.containerd().unwrap().replace("\"info\"", "\"debug\"");
    fs::write(node.layout().containerd_config(), &edited).unwrap();
    fs::write(node.layout().config(), "vcpus = 2\n").unwrap();
    uninstall_from(&node.layout(), false).unwrap();
    let left = node.containerd().unwrap();
    assert!(left.starts_with(&CONTAINERD.replace("\"info\"", "\"debug\"")) && !left.contains("bulkhead"), "{left}");
    assert_eq!(read(&node.layout().config()).unwrap().unwrap(), "vcpus = 2\n");
}

#[test]
fn uninstall_remembers_the_original_across_two_installations() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    fs::write(node.bundle().join("VERSION"), "newer").unwrap();
    node.install();
    uninstall_from(&node.layout(), false).unwrap();
    assert_eq!(node.containerd().unwrap(), CONTAINERD);
}

/// As after a power cut.
#[test]
fn a_damaged_record_does_not_keep_an_installation() {
    for text in ["", "{", "{\"containerd_after\": 7}"] {
        let node = Node::new().with_containerd(CONTAINERD);
        node.install();
        let configured = node.containerd();
        fs::write(node.layout().record(), text).unwrap();
        node.install();
        assert_eq!((node.plan(), node.containerd()), (vec![], configured), "{text}");
        uninstall_from(&node.layout(), false).unwrap();
        let left = node.containerd().unwrap();
        assert!(left.starts_with(CONTAINERD) && !left.contains("bulkhead"), "{text}: {left}");
        assert!(!node.layout().at(PREFIX).exists(), "{text}");
    }
}

#[test]
fn a_damaged_record_does_not_prevent_removal() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    fs::write(node.layout().record(), "").unwrap();
    uninstall_from(&node.layout(), false).unwrap();
    let left = node.containerd().unwrap();
    assert!(left.starts_with(CONTAINERD) && !left.contains("bulkhead"), "{left}");
    assert!(!node.layout().at(PREFIX).exists());
}

#[test]
fn a_dry_uninstall_changes_nothing() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    let before = node.containerd();
    uninstall_from(&node.layout(), true).unwrap();
    assert_eq!(node.containerd(), before);
    assert_eq!(node.plan(), []);
}

#[test]
fn an_unreadable_containerd_configuration_is_named_and_left_alone() {
    let node = Node::new().with_containerd("version = = 2\n");
    let error = format!("{:#}", plan(&node.bundle(), &node.layout()).unwrap_err());
    assert!(error.contains("etc/containerd/config.toml") && error.contains("is not TOML"), "{error}");
}

#[test]
fn file_modes_are_those_of_the_bundle_list() {
    let node = Node::new();
    node.install();
    let mode = |name| fs::metadata(node.layout().installed(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("bin/bulkhead-vmm"), mode("share/vmlinux")), (0o755, 0o644));
}

#[test]
fn what_containerd_keeps_secret_stays_secret() {
    let node = Node::new().with_containerd(CONTAINERD);
    let path = node.layout().containerd_config();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    node.install();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&node.layout().record())), (0o600, 0o600));
    uninstall_from(&node.layout(), false).unwrap();
    assert_eq!((mode(&path), node.containerd().unwrap().as_str()), (0o600, CONTAINERD));
}

#[test]
fn a_configuration_kept_elsewhere_is_edited_there() {
    let node = Node::new().with_containerd(CONTAINERD);
    let (link, file) = (node.layout().containerd_config(), node.scratch.path().join("elsewhere.toml"));
    fs::rename(&link, &file).unwrap();
    symlink(&file, &link).unwrap();
    node.install();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&file).unwrap().contains("bulkhead"));
}

#[test]
fn uninstall_refuses_while_a_pod_runs() {
    let node = Node::new().with_containerd(CONTAINERD);
    node.install();
    let pod = node.layout().at(bulkhead_config::RUN_DIRECTORY).join("pods/default/web");
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("state.json"), "{}").unwrap();
    let error = uninstall(&node.layout(), false).unwrap_err().to_string();
    assert!(error.contains("remove them first"), "{error}");
    assert_eq!(node.plan(), []);
    fs::remove_dir_all(&pod).unwrap();
    uninstall(&node.layout(), false).unwrap();
}
