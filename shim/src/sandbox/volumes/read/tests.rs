use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

/// A configMap as kubelet writes it.
struct Volume {
    root: tempfile::TempDir,
}

impl Volume {
    fn new(keys: &[(&str, &[u8])]) -> Self {
        let volume = Self { root: tempfile::tempdir().unwrap() };
        volume.write("..1", keys);
        volume
    }

    fn path(&self) -> PathBuf {
        self.root.path().canonicalize().unwrap()
    }

    fn key(&self) -> FileId {
        FileId::of(&fs::metadata(self.root.path()).unwrap())
    }

    fn write(&self, version: &str, keys: &[(&str, &[u8])]) {
        let root = self.root.path();
        fs::create_dir(root.join(version)).unwrap();
        for (key, content) in keys {
            fs::write(root.join(version).join(key), content).unwrap();
            symlink(format!("..data/{key}"), root.join(key)).ok();
        }
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join(DATA)).unwrap();
    }

    fn read(&self) -> Result<Option<Tree>, ReadError> {
        read_volume(&self.path(), self.key())
    }

    fn refusal(&self) -> String {
        self.read().err().unwrap().to_string()
    }
}

fn shown(tree: &Tree) -> Vec<String> {
    let show = |entry: &Entry| {
        let path = entry.path.display();
        match &entry.what {
            What::Directory => format!("{path}/"),
            What::Link(target) => format!("{path} -> {}", target.display()),
            What::File(content) => format!("{path}: {}", String::from_utf8_lossy(content)),
        }
    };
    tree.entries.iter().map(show).collect()
}

#[test]
fn a_configuration_is_read_with_its_links() {
    let volume = Volume::new(&[("a", b"one"), ("b", b"")]);
    fs::set_permissions(volume.root.path().join("..1/a"), fs::Permissions::from_mode(0o440)).unwrap();
    let tree = volume.read().unwrap().unwrap();
    assert_eq!(shown(&tree), ["..1/", "..1/a: one", "..1/b: ", "..data -> ..1", "a -> ..data/a", "b -> ..data/b"]);
    assert_eq!((tree.bytes, tree.entries[1].mode), (3, 0o440));
}

#[test]
fn only_the_version_in_use_is_read() {
    let volume = Volume::new(&[("a", b"one")]);
    // Kubelet is about to replace it.
    fs::create_dir(volume.root.path().join("..2")).unwrap();
    symlink("..2", volume.root.path().join("..data_tmp")).unwrap();
    // A place for a mount below the volume.
    fs::create_dir(volume.root.path().join("sub")).unwrap();
    let tree = volume.read().unwrap().unwrap();
    assert_eq!(shown(&tree), ["..1/", "..1/a: one", "..data -> ..1", "a -> ..data/a", "sub/"]);
}

#[test]
fn a_new_version_has_another_fingerprint() {
    let volume = Volume::new(&[("a", b"one")]);
    let before = volume.read().unwrap().unwrap().fingerprint();
    assert_eq!(volume.read().unwrap().unwrap().fingerprint(), before);
    fs::set_permissions(volume.root.path().join("..1/a"), fs::Permissions::from_mode(0o400)).unwrap();
    let changed = volume.read().unwrap().unwrap().fingerprint();
    assert_ne!(changed, before);
    volume.write("..2", &[("a", b"one")]);
    assert_ne!(volume.read().unwrap().unwrap().fingerprint(), changed);
    assert_eq!(version(&volume.path(), volume.key()).unwrap(), Some("..2".into()));
}

#[test]
fn other_layouts_are_left_to_the_share() {
    let root = tempfile::tempdir().unwrap();
    let read = || read_volume(&root.path().canonicalize().unwrap(), FileId::of(&fs::metadata(root.path()).unwrap()));
    assert!(read().unwrap().is_none());
    for target in ["/etc", "..", "a/b", "../x"] {
        symlink(target, root.path().join(DATA)).unwrap();
        assert!(read().unwrap().is_none(), "{target}");
        fs::remove_file(root.path().join(DATA)).unwrap();
    }
}

#[test]
fn what_is_too_much_is_refused_in_a_sentence() {
    let full = vec![b'x'; usize::try_from(MAX_VOLUME).unwrap()];
    Volume::new(&[("a", &full)]).read().unwrap().unwrap();
    let words = "it is larger than 8 MiB, which is the most that is copied into a microVM";
    assert_eq!(Volume::new(&[("a", &full), ("b", b"x")]).refusal(), words);
    let volume = Volume::new(&[]);
    for number in 0..=MAX_ENTRIES {
        symlink("x", volume.root.path().join(number.to_string())).unwrap();
    }
    assert_eq!(volume.refusal(), "it has more than 4096 files, directories and links");
}

#[test]
fn links_out_of_the_volume_are_copied_and_not_followed() {
    let volume = Volume::new(&[]);
    symlink("/etc/passwd", volume.root.path().join("..1/outside")).unwrap();
    let tree = volume.read().unwrap().unwrap();
    assert_eq!(shown(&tree), ["..1/", "..1/outside -> /etc/passwd", "..data -> ..1"]);
}

#[test]
fn devices_sockets_and_fifos_are_refused_by_name() {
    let volume = Volume::new(&[]);
    nix::unistd::mkfifo(&volume.root.path().join("..1/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(volume.refusal(), "\"..1/fifo\" in it is neither a regular file nor a directory nor a link");
}

#[test]
fn what_took_the_name_of_a_source_is_not_read() {
    let volume = Volume::new(&[("a", b"one")]);
    let other = tempfile::tempdir().unwrap();
    let key = FileId::of(&fs::metadata(other.path()).unwrap());
    assert!(matches!(read_volume(&volume.path(), key), Err(ReadError::Replaced)));
    let link = other.path().canonicalize().unwrap().join("link");
    symlink(volume.path(), &link).unwrap();
    assert!(matches!(read_volume(&link, volume.key()), Err(ReadError::Io(_))));
    assert!(matches!(read_file(&volume.path().join("..1/a"), key), Err(ReadError::Replaced)));
}

#[test]
fn a_file_alone_is_one_entry() {
    let volume = Volume::new(&[("a", b"one")]);
    let path = volume.path().join("..1/a");
    let tree = read_file(&path, FileId::of(&fs::metadata(&path).unwrap())).unwrap();
    assert_eq!(shown(&tree), ["file: one"]);
}

#[test]
fn nothing_shows_a_content() {
    let tree = Volume::new(&[("a", b"topsecret")]).read().unwrap().unwrap();
    assert_eq!(format!("{tree:?}"), "Tree { entries: 4, bytes: 9 }");
}
