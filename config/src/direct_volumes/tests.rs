use super::*;

const VOLUME: &str = "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/data/mount";

fn volume() -> DirectVolume {
    DirectVolume::new(VOLUME.into(), "/dev/vdb".into(), FileSystem::Ext4, true)
}

fn parse(text: &str) -> Result<DirectVolume, String> {
    let record = DirectVolume::file(Path::new("/run/r"), Path::new(VOLUME));
    DirectVolume::parse(&record, Some(Path::new(VOLUME)), text.as_bytes()).map_err(|error| error.to_string())
}

fn is_root() -> bool {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    let root = scratch.as_file().metadata().unwrap().uid() == 0;
    if !root {
        eprintln!("SKIPPED: records belong to root");
    }
    root
}

#[test]
fn the_format_is_what_drivers_write() {
    let text =
        format!(r#"{{"version":1,"volume_path":"{VOLUME}","device":"/dev/vdb","fs_type":"ext4","read_only":true}}"#);
    assert_eq!(parse(&text).unwrap(), volume());
    assert_eq!(serde_json::to_string(&volume()).unwrap(), text);
    let hash = "6a50dc8584134c7de537c0052ff6d236bf874355e050c90523e0c5ff2a543a28";
    assert_eq!(DirectVolume::file(Path::new("/r"), Path::new("/a")), Path::new("/r").join(format!("{hash}.json")));
}

#[test]
fn a_record_that_makes_no_sense_is_named_with_its_volume() {
    let of = |rest: &str| format!(r#"{{"version":1,"volume_path":"{VOLUME}",{rest}}}"#);
    for (text, words) in [
        (String::new(), "it is malformed"),
        ("[]".to_owned(), "it is malformed"),
        (r#"{"version":2,"anything":1}"#.to_owned(), "it is of version 2, and 1 is known"),
        (of(r#""device":"/dev/vdb""#), "missing field `fs_type`"),
        (of(r#""device":"/dev/vdb","fs_type":"btrfs""#), "unknown variant `btrfs`"),
        (of(r#""device":"/dev/vdb","fs_type":"xfs","options":[]"#), "unknown field `options`"),
        (of(r#""device":"vdb","fs_type":"xfs""#), "its device is not an absolute path"),
        (
            r#"{"version":1,"volume_path":"/other","device":"/dev/vdb","fs_type":"xfs"}"#.to_owned(),
            "it is about /other, for which it has the wrong name",
        ),
    ] {
        let error = parse(&text).unwrap_err();
        let start = "the record /run/r/";
        assert!(error.starts_with(start) && error.contains(VOLUME) && error.contains(words), "{error}");
    }
}

#[test]
fn what_is_written_is_found_until_it_is_removed() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("run/records");
    assert_eq!(DirectVolume::find(&directory, Path::new(VOLUME)).unwrap(), None);
    assert!(DirectVolume::all(&directory).unwrap().is_empty());
    volume().write(&directory).unwrap();
    volume().write(&directory).unwrap();
    assert_eq!(DirectVolume::find(&directory, Path::new(VOLUME)).unwrap(), Some(volume()));
    assert_eq!(DirectVolume::find(&directory, Path::new("/other")).unwrap(), None);
    let all = DirectVolume::all(&directory).unwrap();
    assert!(matches!(&all[..], [Ok(found)] if *found == volume()));
    assert!(DirectVolume::remove(&directory, Path::new(VOLUME)).unwrap());
    assert!(!DirectVolume::remove(&directory, Path::new(VOLUME)).unwrap());
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
}

#[test]
fn only_roots_own_small_files_are_records() {
    if !is_root() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let record = DirectVolume::file(root.path(), Path::new(VOLUME));
    let refusal = || DirectVolume::find(root.path(), Path::new(VOLUME)).unwrap_err().to_string();
    volume().write(root.path()).unwrap();
    std::fs::set_permissions(&record, Permissions::from_mode(0o640)).unwrap();
    assert!(refusal().ends_with("it has to belong to root, with mode 0600"), "{}", refusal());
    std::fs::set_permissions(&record, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&record, Some(1000), None).unwrap();
    assert!(refusal().ends_with("it has to belong to root, with mode 0600"), "{}", refusal());
    std::fs::remove_file(&record).unwrap();
    volume().write(root.path()).unwrap();
    let mut text = std::fs::read(&record).unwrap();
    text.resize(20_000, b' ');
    std::fs::write(&record, text).unwrap();
    assert!(refusal().ends_with("it is longer than 16 KiB"), "{}", refusal());
    std::fs::rename(&record, root.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &record).unwrap();
    assert!(refusal().contains("symbolic links"), "{}", refusal());
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    assert!(refusal().ends_with("it is not a regular file"), "{}", refusal());
}
