use super::*;
use std::fs;

/// Mounts need root. A run without says so, as a skip that can be counted.
fn may_mount() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root");
    }
    root
}

/// Unmounts what a failed test leaves.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.path()).unwrap() {
            unmount_all(&entry.unwrap().path()).unwrap();
        }
    }
}

const PLAIN: TreeOptions = TreeOptions { recursive: true, read_only: false, follows_source: false };

#[test]
fn a_read_only_tree_is_read_only_with_all_below_it() {
    if !may_mount() {
        return;
    }
    let scratch = Scratch::new();
    let [source, target] = ["source", "target"].map(|name| scratch.directory(name));
    let below = scratch.directory("source/below");
    mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    DetachedTree::copy(&Resolved::open(&source).unwrap(), TreeOptions { read_only: true, ..PLAIN })
        .unwrap()
        .attach(&target)
        .unwrap();
    for path in [target.join("file"), target.join("below/file")] {
        assert_eq!(fs::write(&path, "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem, "{}", path.display());
    }
    fs::write(source.join("file"), "x").unwrap();
    unmount_all(&target).unwrap();
    unmount_all(&below).unwrap();
}

#[test]
fn a_share_cannot_be_written_between_its_mounts() {
    if !may_mount() {
        return;
    }
    let scratch = Scratch::new();
    let [tree, share, volume] = ["tree", "share", "volume"].map(|name| scratch.directory(name));
    make_share(&tree, &share).unwrap();
    scratch.directory("tree/web/rootfs");
    DetachedTree::copy(&Resolved::open(&volume).unwrap(), PLAIN).unwrap().attach(&share.join("web/rootfs")).unwrap();
    fs::write(share.join("web/rootfs/file"), "x").unwrap();
    assert_eq!(fs::write(share.join("web/file"), "x").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    assert!(!tree.join("web/rootfs/file").exists());
    unmount_all(&share).unwrap();
    assert!(!is_mounted_below(scratch.0.path()).unwrap());
}

#[test]
fn files_can_be_trees() {
    if !may_mount() {
        return;
    }
    let scratch = Scratch::new();
    let [source, target] = ["source", "target"].map(|name| scratch.0.path().join(name));
    fs::write(&source, "content").unwrap();
    fs::write(&target, "").unwrap();
    let tree = DetachedTree::copy(&Resolved::open(&source).unwrap(), PLAIN).unwrap();
    assert!(tree.metadata().unwrap().is_file());
    tree.attach(&target).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"content");
    unmount_all(&target).unwrap();
}

#[test]
fn a_skeleton_with_something_mounted_is_left_alone() {
    if !may_mount() {
        return;
    }
    let scratch = Scratch::new();
    let [precious, skeleton] = ["precious", "skeleton"].map(|name| scratch.directory(name));
    scratch.directory("precious/empty");
    let place = scratch.directory("skeleton/place");
    DetachedTree::copy(&Resolved::open(&precious).unwrap(), PLAIN).unwrap().attach(&place).unwrap();
    assert_eq!(remove_skeleton(&skeleton, &[]).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
    assert!(precious.join("empty").exists());
    unmount_all(&place).unwrap();
    remove_skeleton(&skeleton, &[]).unwrap();
    assert!(!skeleton.exists());
}

#[test]
fn a_skeleton_with_content_of_others_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let skeleton = scratch.path().join("skeleton");
    fs::create_dir(&skeleton).unwrap();
    fs::write(skeleton.join("state.json"), "{}").unwrap();
    fs::write(skeleton.join("data"), "x").unwrap();
    assert!(remove_skeleton(&skeleton, &["state.json"]).is_err());
    assert!(skeleton.join("data").exists());
    fs::remove_file(skeleton.join("data")).unwrap();
    remove_skeleton(&skeleton, &["state.json"]).unwrap();
    remove_skeleton(&skeleton, &["state.json"]).unwrap();
}

#[test]
fn an_overlay_with_very_many_layers_can_be_mounted() {
    if !may_mount() {
        return;
    }
    let scratch = Scratch::new();
    let target = scratch.directory("target");
    let name = |layer: u32| format!("{layer}/fs");
    let layers: Vec<_> = (0..200).map(|layer| scratch.directory(&name(layer)).display().to_string()).collect();
    fs::write(Path::new(&layers[199]).join("file"), "lowest").unwrap();
    let overlay = Overlay { read_only: true, options: vec![format!("lowerdir={}", layers.join(":"))] };
    assert!(overlay.options[0].len() > MAX_OPTIONS);
    let before = std::env::current_dir().unwrap();
    overlay.mount(&target).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"lowest");
    assert_eq!(std::env::current_dir().unwrap(), before);
    unmount_all(&target).unwrap();
}
