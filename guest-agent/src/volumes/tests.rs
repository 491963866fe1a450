use super::*;
use agent_protocol::agent::{Empty, file_entry::What};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

pub(super) fn id() -> VolumeId {
    VolumeId::parse("v1").unwrap()
}

/// A volume in a plain directory.
pub(super) fn volume(root: &Path) -> (Volumes, PathBuf) {
    let volumes = Volumes::new(root.join("v"));
    volumes.prepare_with(&id(), &PushedVolume { limit: 1, ..Default::default() }, |_, _| Ok(())).unwrap();
    (volumes, root.join("v/v1"))
}

fn entry(path: &str, mode: u32, what: What) -> FileEntry {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    FileEntry { path: path.into(), mode, uid, gid, what: Some(what), ..Default::default() }
}

fn directory(path: &str) -> FileEntry {
    entry(path, 0o755, What::Directory(Empty::new()))
}

fn file(path: &str, content: &str) -> FileEntry {
    entry(path, 0o640, What::Content(content.into()))
}

fn link(path: &str, target: &str) -> FileEntry {
    entry(path, 0o777, What::Link(target.into()))
}

/// As kubelet lays out one version.
fn version(number: u32, keys: &[&str]) -> Vec<FileEntry> {
    let data = format!("..version-{number}");
    let mut entries = vec![directory(&data), link("..data", &data)];
    for key in keys {
        entries.push(file(&format!("{data}/{key}"), &format!("{key} {number}")));
        entries.push(link(key, &format!("..data/{key}")));
    }
    entries
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_volume_is_what_kubelet_wrote() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    let mut entries = version(1, &["greeting"]);
    entries.extend([directory("..version-1/sub"), file("..version-1/sub/key", "deep"), link("sub", "..data/sub")]);
    volumes.put(&id(), 1, &entries, true).unwrap();
    assert_eq!(names(&path), ["..data", "..version-1", "greeting", "sub"]);
    assert_eq!((read(path.join("greeting")), read(path.join("sub/key"))), ("greeting 1".into(), "deep".into()));
    let metadata = std::fs::metadata(path.join("greeting")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o640, nix::unistd::geteuid().as_raw()));
    assert_eq!(std::fs::metadata(path.join("sub")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn an_incomplete_generation_is_not_seen() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    volumes.put(&id(), 1, &version(1, &["greeting"]), true).unwrap();
    volumes.put(&id(), 2, &version(2, &["greeting"]), false).unwrap();
    assert_eq!(read(path.join("greeting")), "greeting 1");
    // The newest wins, and what the other one left goes.
    volumes.put(&id(), 3, &version(3, &["greeting"]), true).unwrap();
    assert_eq!(
        (names(&path), read(path.join("greeting"))),
        (vec!["..data".to_owned(), "..version-3".to_owned(), "greeting".to_owned()], "greeting 3".to_owned())
    );
    let late = volumes.put(&id(), 2, &version(2, &["greeting"]), true).unwrap_err();
    assert_eq!(late.to_string(), "generation \"2\" is not valid: 3 has begun");
}

#[test]
fn keys_come_and_go_with_their_generation() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    volumes.put(&id(), 1, &version(1, &["a", "b"]), true).unwrap();
    volumes.put(&id(), 2, &version(2, &["b", "c"]), true).unwrap();
    assert_eq!(names(&path), ["..data", "..version-2", "b", "c"]);
    assert_eq!((read(path.join("b")), read(path.join("c"))), ("b 2".into(), "c 2".into()));
    volumes.put(&id(), 3, &version(3, &[]), true).unwrap();
    assert_eq!(names(&path), ["..data", "..version-3"]);
}

#[test]
fn a_watcher_sees_one_rename() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    volumes.put(&id(), 1, &version(1, &["greeting"]), true).unwrap();
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    inotify.add_watch(&path, AddWatchFlags::IN_MOVED_TO).unwrap();
    inotify.add_watch(&path.join("greeting"), AddWatchFlags::IN_DELETE_SELF).unwrap();
    volumes.put(&id(), 2, &version(2, &["greeting"]), true).unwrap();
    let events = inotify.read_events().unwrap();
    assert_eq!(events[0].name.as_deref(), Some("..data".as_ref()));
    assert!(events[1].mask.contains(AddWatchFlags::IN_DELETE_SELF), "{events:?}");
}

#[test]
fn a_long_file_comes_in_parts() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    let part = |content| vec![file("d/long", content)];
    volumes.put(&id(), 1, &[directory("d")], false).unwrap();
    for content in ["one ", "two ", "three"] {
        volumes.put(&id(), 1, &part(content), false).unwrap();
    }
    volumes.put(&id(), 1, &[], true).unwrap();
    assert_eq!(read(path.join("d/long")), "one two three");
}

#[test]
fn a_file_at_the_top_is_written_in_place() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    let file_path = path.join(VOLUME_FILE);
    volumes.put(&id(), 1, &[file(VOLUME_FILE, "127.0.0.1 localhost")], true).unwrap();
    let inode = std::fs::metadata(&file_path).unwrap().ino();
    volumes.put(&id(), 2, &[file(VOLUME_FILE, "short")], true).unwrap();
    assert_eq!((std::fs::metadata(&file_path).unwrap().ino(), read(file_path)), (inode, "short".to_owned()));
}

#[test]
fn what_a_container_wrote_is_taken_up_to_the_limit() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    volumes.put(&id(), 1, &[file(VOLUME_FILE, "")], true).unwrap();
    assert_eq!(volumes.take_file(&id(), 10).unwrap(), (Vec::new(), false));
    std::fs::write(path.join(VOLUME_FILE), "so long").unwrap();
    assert_eq!(volumes.take_file(&id(), 7).unwrap(), (b"so long".to_vec(), false));
    assert_eq!(volumes.take_file(&id(), 2).unwrap(), (b"ng".to_vec(), true));
    std::fs::remove_file(path.join(VOLUME_FILE)).unwrap();
    symlink("/etc/passwd", path.join(VOLUME_FILE)).unwrap();
    assert!(volumes.take_file(&id(), 7).is_err());
}

#[test]
fn hostile_entries_stay_below_the_volume() {
    let root = tempfile::tempdir().unwrap();
    let outside = root.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let (volumes, path) = volume(root.path());
    symlink(&outside, path.join("escape")).unwrap();
    std::fs::write(outside.join("kept"), "kept").unwrap();
    symlink(outside.join("kept"), path.join("file")).unwrap();
    let absolute = outside.join("x").to_str().unwrap().to_owned();
    for hostile in [
        file("../outside/x", ""),
        file(&absolute, ""),
        file("escape/x", ""),
        file("file", "changed"),
        directory("escape/x"),
        directory("escape"),
        link("escape/x", "y"),
        link("../outside/x", "y"),
        file("missing/x", ""),
        file("..data_tmp", ""),
        file("", ""),
        FileEntry { path: b"x".to_vec(), ..Default::default() },
        link("l", ""),
    ] {
        let refused = volumes.put(&id(), 1, std::slice::from_ref(&hostile), false);
        assert!(refused.is_err(), "{}", String::from_utf8_lossy(&hostile.path));
    }
    assert_eq!((names(&outside), read(outside.join("kept"))), (vec!["kept".to_owned()], "kept".to_owned()));
    // A swap removes links that are not in it, and nothing that they lead to.
    volumes.put(&id(), 2, &[], true).unwrap();
    assert!(names(&path).is_empty() && outside.join("kept").exists());
}

#[test]
fn a_volume_has_so_many_entries() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, _) = volume(root.path());
    let links: Vec<_> = (0..=MAX_ENTRIES).map(|number| link(&number.to_string(), "x")).collect();
    volumes.put(&id(), 1, &links[..MAX_ENTRIES], false).unwrap();
    let error = volumes.put(&id(), 1, &links[MAX_ENTRIES..], false).unwrap_err();
    assert_eq!(error.to_string(), "cannot have more than 4096 entries of a volume");
}

#[test]
fn errors_hold_no_content() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, _) = volume(root.path());
    for path in ["../x", "missing/x"] {
        let error = volumes.put(&id(), 1, &[file(path, "topsecret")], true).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("topsecret"));
    }
    volumes.put(&id(), 2, &[file("key", "topsecret")], false).unwrap();
    assert!(!format!("{volumes:?}").contains("topsecret"));
}

#[test]
fn the_memory_of_a_volume_is_bounded() {
    let volume = PushedVolume { limit: 8192, entries: 3, mode: 0o2775, uid: 0, gid: 2000, ..Default::default() };
    assert_eq!(tmpfs_options(&volume).unwrap(), "size=40960,nr_inodes=10,mode=2775,uid=0,gid=2000");
    for (limit, entries) in [(u64::MAX, 1), (1, u32::MAX), (MAX_BYTES + 1, 0)] {
        assert!(tmpfs_options(&PushedVolume { limit, entries, ..Default::default() }).is_err());
    }
}

#[test]
fn volumes_are_made_once_and_forgotten_once() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, path) = volume(root.path());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    let again = |_: &Path, _: &str| panic!("it is mounted again");
    volumes.prepare_with(&id(), &PushedVolume::default(), again).unwrap();
    for _ in 0..2 {
        volumes.release(&id()).unwrap();
        assert!(!path.exists());
    }
    assert_eq!(volumes.put(&id(), 1, &[], true).unwrap_err().to_string(), "there is no volume v1");
    let failing = volumes.prepare_with(&id(), &PushedVolume::default(), |_, _| Err(Errno::ENOMEM));
    assert!(failing.is_err() && !path.exists());
}

#[test]
fn a_volume_that_hangs_holds_up_no_other() {
    let root = tempfile::tempdir().unwrap();
    let (volumes, _) = volume(root.path());
    let slow = VolumeId::parse("v2").unwrap();
    let (begun, begins) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let hang = move |_: &Path| {
        begun.send(()).unwrap();
        goes_on.recv().unwrap();
        Ok(None)
    };
    std::thread::scope(|scope| {
        let (all, id_of_slow) = (&volumes, &slow);
        let making = scope.spawn(move || all.add(id_of_slow, Kind::Directory, hang));
        begins.recv().unwrap();
        volumes.put(&id(), 1, &version(1, &["key"]), true).unwrap();
        let other = VolumeId::parse("v3").unwrap();
        volumes.add(&other, Kind::Directory, |_| Ok(None)).unwrap();
        volumes.release(&other).unwrap();
        volumes.write_back();
        volumes.shut_down();
        // Whoever wants the same one waits for it.
        let same = scope.spawn(|| volumes.add(&slow, Kind::Directory, |_| unreachable!()));
        go_on.send(()).unwrap();
        making.join().unwrap().unwrap();
        same.join().unwrap().unwrap();
    });
    volumes.release(&slow).unwrap();
    assert!(!root.path().join("v/v2").exists());
}

#[test]
fn a_volume_that_could_not_be_made_takes_no_place() {
    let root = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(root.path().join("v"));
    let fail = |_: &Path| Err(Error::system("mount", "it")(Errno::EIO));
    volumes.add(&id(), Kind::Directory, fail).unwrap_err();
    assert!(lock(&volumes.all).is_empty() && !root.path().join("v/v1").exists());
    volumes.add(&id(), Kind::Directory, |_| Ok(None)).unwrap();
    volumes.release(&id()).unwrap();
    volumes.release(&id()).unwrap();
    assert!(lock(&volumes.all).is_empty());
}
