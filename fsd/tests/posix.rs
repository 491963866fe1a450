//! What programs expect of a file system, through the kernel's FUSE client.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::{Mounted, run};

/// A tree with files of many lengths, links, modes and names.
fn make_tree(root: &Path) {
    for directory in 0..20 {
        let path = root.join(format!("directory {directory}"));
        fs::create_dir_all(&path).unwrap();
        for file in 0..20 {
            let content = vec![b'a' + file; usize::from(file) * 777];
            fs::write(path.join(format!("file-{file}")), content).unwrap();
        }
        symlink("file-1", path.join("link")).unwrap();
        symlink("/nowhere/at/all", path.join("dangling")).unwrap();
        fs::hard_link(path.join("file-2"), path.join("hard")).unwrap();
        fs::set_permissions(path.join("file-3"), Permissions::from_mode(0o4751)).unwrap();
    }
    fs::write(root.join("\u{fc}n\u{ef}c\u{f6}de"), "name").unwrap();
}

#[test]
fn a_tree_is_copied_and_archived_exactly() {
    let Some(share) = Mounted::start() else { return };
    let source = tempfile::tempdir().unwrap();
    make_tree(source.path());
    run("cp", &[&"-a", &source.path(), &share.path("copy")]);
    run("diff", &[&"-r", &"--no-dereference", &source.path(), &share.path("copy")]);
    run("tar", &[&"-C", &share.path("copy"), &"-cf", &share.path("copy.tar"), &"."]);
    fs::create_dir(share.path("restored")).unwrap();
    run("tar", &[&"-C", &share.path("restored"), &"-xpf", &share.path("copy.tar")]);
    run("diff", &[&"-r", &"--no-dereference", &source.path(), &share.path("restored")]);
    let restored = share.path("restored/directory 7");
    assert_eq!(fs::metadata(restored.join("file-3")).unwrap().mode() & 0o7777, 0o4751);
    assert_eq!(
        fs::metadata(restored.join("hard")).unwrap().ino(),
        fs::metadata(restored.join("file-2")).unwrap().ino()
    );
    assert_eq!(fs::read_link(restored.join("dangling")).unwrap(), Path::new("/nowhere/at/all"));
    run("diff", &[&"-r", &"--no-dereference", &source.path(), &share.host("restored")]);
    fs::remove_dir_all(share.path("copy")).unwrap();
    assert!(!share.host("copy").exists());
}

#[test]
fn a_big_file_keeps_its_bytes_and_travels_in_big_requests() {
    let Some(share) = Mounted::start() else { return };
    let block: Vec<u8> = (0..1 << 20).map(|byte: u32| (byte.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = File::create(share.path("big")).unwrap();
    let mut written = Sha256::new();
    for index in 0..48_u8 {
        let block: Vec<u8> = block.iter().map(|byte| byte.wrapping_add(index)).collect();
        file.write_all(&block).unwrap();
        written.update(&block);
    }
    file.sync_all().unwrap();
    drop(file);
    assert!(share.largest_request() > 64 * 1024, "{}", share.largest_request());
    let mut read = Sha256::new();
    let mut file = File::open(share.path("big")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).unwrap() {
            0 => break,
            count => read.update(&buffer[..count]),
        }
    }
    assert_eq!(written.finalize(), read.finalize());
    assert_eq!(fs::metadata(share.host("big")).unwrap().len(), 48 << 20);
}

#[test]
fn a_large_directory_lists_each_entry_once() {
    let Some(share) = Mounted::start() else { return };
    fs::create_dir(share.host("many")).unwrap();
    for index in 0..10_000 {
        File::create(share.host(&format!("many/a rather long name of entry {index}"))).unwrap();
    }
    let listed: Vec<_> = fs::read_dir(share.path("many")).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(listed.len(), 10_000);
    let names: BTreeSet<_> = listed.iter().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 10_000);
    for name in names.iter().take(50) {
        fs::remove_file(share.path("many").join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(share.path("many")).unwrap().count(), 9_950);
}

#[test]
fn entries_of_all_kinds_are_made_renamed_and_removed() {
    let Some(share) = Mounted::start() else { return };
    run("mkfifo", &[&share.path("fifo")]);
    run("mknod", &[&share.path("device"), &"c", &"1", &"3"]);
    let socket = std::os::unix::net::UnixListener::bind(share.path("socket")).unwrap();
    let kind = |name: &str| fs::symlink_metadata(share.host(name)).unwrap().file_type();
    assert!(kind("fifo").is_fifo());
    assert!(kind("device").is_char_device());
    assert!(kind("socket").is_socket());
    drop(socket);
    fs::write(share.path("old"), "content").unwrap();
    fs::write(share.path("other"), "other").unwrap();
    fs::rename(share.path("old"), share.path("new")).unwrap();
    run("mv", &[&"-n", &share.path("new"), &share.path("other")]);
    assert_eq!(fs::read_to_string(share.path("other")).unwrap(), "other");
    fs::rename(share.path("new"), share.path("other")).unwrap();
    assert_eq!(fs::read_to_string(share.path("other")).unwrap(), "content");
    assert_eq!(fs::metadata(share.path("old")).unwrap_err().kind(), ErrorKind::NotFound);
    fs::create_dir(share.path("full")).unwrap();
    fs::write(share.path("full/file"), "").unwrap();
    assert_eq!(fs::remove_dir(share.path("full")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    let long = "x".repeat(256);
    assert_eq!(fs::write(share.path(&long), "").unwrap_err().raw_os_error(), Some(libc::ENAMETOOLONG));
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    let Some(share) = Mounted::start() else { return };
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(share.path("file")).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(share.path("file")).unwrap();
    file.write_all(b" and after").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut content = String::new();
    file.read_to_string(&mut content).unwrap();
    assert_eq!(content, "before and after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.set_len(3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 3);
}

#[test]
fn files_are_appended_truncated_and_sparse() {
    let Some(share) = Mounted::start() else { return };
    fs::write(share.path("file"), "one").unwrap();
    let mut file = OpenOptions::new().append(true).open(share.path("file")).unwrap();
    file.write_all(b" two").unwrap();
    assert_eq!(fs::read_to_string(share.host("file")).unwrap(), "one two");
    File::create(share.path("file")).unwrap();
    assert_eq!(fs::metadata(share.host("file")).unwrap().len(), 0);
    let sparse = File::create(share.path("sparse")).unwrap();
    sparse.write_all_at(b"end", 1 << 30).unwrap();
    sparse.sync_all().unwrap();
    let metadata = fs::metadata(share.path("sparse")).unwrap();
    assert_eq!(metadata.len(), (1 << 30) + 3);
    assert!(metadata.blocks() * 512 < 1 << 20);
    run("fallocate", &[&"--punch-hole", &"--offset", &"0", &"--length", &"4096", &share.path("sparse")]);
}

#[test]
fn owners_modes_and_times_are_kept() {
    let Some(share) = Mounted::start() else { return };
    fs::write(share.path("file"), "").unwrap();
    run("chown", &[&"1234:5678", &share.path("file")]);
    run("chmod", &[&"2640", &share.path("file")]);
    run("touch", &[&"-d", &"2001-02-03 04:05:06.789", &share.path("file")]);
    symlink("file", share.path("link")).unwrap();
    run("chown", &[&"-h", &"42:43", &share.path("link")]);
    run("touch", &[&"-h", &"-d", &"2002-02-03", &share.path("link")]);
    let (seen, real) = (fs::metadata(share.path("file")).unwrap(), fs::metadata(share.host("file")).unwrap());
    assert_eq!((real.uid(), real.gid(), real.mode() & 0o7777), (1234, 5678, 0o2640));
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (real.mtime(), 789_000_000));
    let link = fs::symlink_metadata(share.host("link")).unwrap();
    assert_eq!((link.uid(), link.gid()), (42, 43));
}

#[test]
fn extended_attributes_are_kept_also_of_capabilities() {
    let Some(share) = Mounted::start() else { return };
    fs::write(share.path("file"), "").unwrap();
    let path = share.path("file");
    let script = "
import os, struct, sys
path = sys.argv[1]
os.setxattr(path, 'user.one', b'1' * 1000)
assert os.getxattr(path, 'user.one') == b'1' * 1000
capability = struct.pack('<IIIII', 0x02000001, 1 << 10, 0, 0, 0)
os.setxattr(path, 'security.capability', capability)
assert os.getxattr(path, 'security.capability') == capability
assert sorted(os.listxattr(path)) == ['security.capability', 'user.one'], os.listxattr(path)
handle = open(path)
os.unlink(path)
assert os.getxattr(handle.fileno(), 'user.one') == b'1' * 1000
os.removexattr(handle.fileno(), 'user.one')
";
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("SKIPPED: extended attributes need python3");
        return;
    }
    run("/usr/bin/python3", &[&"-c", &script, &path]);
}

#[test]
fn a_user_creates_files_with_the_rights_of_all_its_groups() {
    let Some(share) = Mounted::start() else { return };
    // The user must be able to reach the mount at all.
    fs::set_permissions(share.path("").parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("of-group", 0o770), ("of-others", 0o700)] {
        fs::create_dir(share.path(name)).unwrap();
        run("chown", &[&"0:2000", &share.path(name)]);
        fs::set_permissions(share.path(name), Permissions::from_mode(mode)).unwrap();
    }
    let touch = |path: &str| {
        let arguments = ["--reuid=1000", "--regid=1000", "--groups=2000", "touch"];
        Command::new("setpriv").args(arguments).arg(share.path(path)).output().unwrap().status.success()
    };
    assert!(touch("of-group/file"));
    assert!(!touch("of-others/file"));
    let file = fs::metadata(share.host("of-group/file")).unwrap();
    assert_eq!((file.uid(), file.gid()), (1000, 1000));
}

#[test]
fn a_directory_goes_when_nfs_lets_go_of_what_is_removed_from_it() {
    let Some(share) = Mounted::start() else { return };
    fs::create_dir(share.path("directory")).unwrap();
    // As NFS calls a file that was removed and is open.
    let removed = share.host("directory/.nfs0000000000000001");
    fs::write(&removed, "").unwrap();
    assert_eq!(fs::remove_dir(share.path("directory")).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(3));
            fs::remove_file(&removed).unwrap();
        });
        fs::remove_dir(share.path("directory")).unwrap();
    });
}

#[test]
fn a_write_takes_set_user_rights_away() {
    let Some(share) = Mounted::start() else { return };
    fs::set_permissions(share.path("").parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::write(share.path("program"), "old").unwrap();
    fs::set_permissions(share.path("program"), Permissions::from_mode(0o6777)).unwrap();
    let script = format!("echo new >> {}", share.path("program").display());
    run("setpriv", &[&"--reuid=1000", &"--regid=1000", &"--clear-groups", &"sh", &"-c", &script]);
    assert_eq!(fs::metadata(share.host("program")).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn many_threads_work_at_once() {
    let Some(share) = Mounted::start() else { return };
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let share = &share;
            scope.spawn(move || {
                let directory = share.path(&format!("worker-{worker}"));
                fs::create_dir(&directory).unwrap();
                for round in 0..100 {
                    let path = directory.join(format!("file-{round}"));
                    let content = vec![worker; 5000 + round];
                    fs::write(&path, &content).unwrap();
                    assert_eq!(fs::read(&path).unwrap(), content);
                    fs::rename(&path, directory.join("renamed")).unwrap();
                }
            });
        }
    });
    for worker in 0..8 {
        assert_eq!(fs::read_dir(share.host(&format!("worker-{worker}"))).unwrap().count(), 1);
    }
}

#[test]
fn locks_are_taken_and_awaited() {
    let Some(share) = Mounted::start() else { return };
    let file = File::create(share.path("lock")).unwrap();
    file.lock().unwrap();
    let held = Command::new("flock").args(["-n"]).arg(share.path("lock")).arg("true").status().unwrap();
    assert!(!held.success());
    file.unlock().unwrap();
    run("flock", &[&"-n", &share.path("lock"), &"true"]);
}

#[test]
fn what_only_the_guest_changes_is_not_asked_for_again() {
    let Some(share) = Mounted::start() else { return };
    for name in ["container/rootfs", ".volumes/0"] {
        fs::create_dir_all(share.host(name)).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("test"), &share.host(name), Some("tmpfs"), flags, None::<&str>).unwrap();
        fs::write(share.host(name).join("file"), name).unwrap();
    }
    let requests = |name: &str| {
        fs::metadata(share.path(name)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        let before = share.requests();
        fs::metadata(share.path(name)).unwrap();
        share.requests() - before
    };
    // The directories above are the host's, and so is what is mounted there: the share's attributes, two names.
    assert_eq!(requests("container/rootfs/file"), 3);
    assert_eq!(requests(".volumes/0/file"), 4);
    fs::write(share.host(".volumes/0/file"), "changed by the host").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(fs::read_to_string(share.path(".volumes/0/file")).unwrap(), "changed by the host");
}

#[test]
fn a_program_may_read_and_write_past_the_caches() {
    let Some(share) = Mounted::start() else { return };
    if nix::sys::statfs::statfs(&share.host("")).unwrap().filesystem_type() == nix::sys::statfs::TMPFS_MAGIC {
        eprintln!("the share is in memory, where the host's O_DIRECT asks for nothing: the test proves less");
    }
    let open = |flags: i32, create: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).custom_flags(flags).open(share.path("file")).unwrap()
    };
    // Neither the buffer's address nor its length is what a disk wants.
    let content: Vec<u8> = (0..10_001_u32).map(|byte| (byte % 251) as u8).collect();
    let check = |file: &File, what: &str| {
        file.write_all_at(&content[1..], 3).unwrap_or_else(|error| panic!("writing, {what}: {error}"));
        let mut read = vec![0; content.len() - 1];
        file.read_exact_at(&mut read, 3).unwrap_or_else(|error| panic!("reading, {what}: {error}"));
        assert_eq!(read, content[1..], "{what}");
        assert_eq!(fs::read(share.host("file")).unwrap()[3..], content[1..], "{what}");
    };
    check(&open(libc::O_DIRECT, true), "made with O_DIRECT");
    check(&open(libc::O_DIRECT, false), "opened with O_DIRECT");
    let later = open(0, false);
    check(&later, "opened without");
    nix::fcntl::fcntl(&later, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_DIRECT)).unwrap();
    check(&later, "switched over");
}

#[test]
fn a_directory_is_listed_while_the_node_removes_entries() {
    let Some(share) = Mounted::start() else { return };
    fs::create_dir(share.host("busy")).unwrap();
    fs::write(share.host("busy/that stays"), "").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for number in 0..20 {
                    fs::write(share.host(&format!("busy/{number}")), "").unwrap();
                }
                for number in 0..20 {
                    fs::remove_file(share.host(&format!("busy/{number}"))).unwrap();
                }
            }
        });
        let lists = (0..2000).map(|_| -> std::io::Result<bool> {
            let names = fs::read_dir(share.path("busy"))?.map(|entry| Ok(entry?.file_name()));
            Ok(names.collect::<std::io::Result<Vec<_>>>()?.contains(&"that stays".into()))
        });
        let lists: Vec<_> = lists.collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let wrong: Vec<_> = lists.iter().filter(|list| !matches!(list, Ok(true))).collect();
        assert!(wrong.is_empty(), "{} of {} lists: {:?}", wrong.len(), lists.len(), wrong[0]);
    });
}

/// The same cases run on each snapshotter's root filesystem in a guest, on a node.
#[test]
fn programs_find_the_file_system_that_they_expect() {
    let Some(share) = Mounted::start() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("SKIPPED: the cases need python3");
        return;
    }
    fs::set_permissions(share.path("").parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(share.path("cases")).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/e2e/programs/posix.py");
    let output = Command::new("/usr/bin/python3").arg(script).arg(share.path("cases")).output().unwrap();
    let (printed, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{printed}{errors}");
}
