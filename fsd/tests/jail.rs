//! The jail, seen from outside, and requests that no honest kernel sends.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::raw::{GETATTR, GETXATTR, LOOKUP, MKDIR, OPEN, READ, RENAME, ROOT, UNLINK, request};
use support::{Mounted, Server};

/// Chown, DAC override and read-search, fowner, fsetid, setgid, setuid, mknod, setfcap.
const CAPABILITIES: &str = "00000000880000df";

fn proc(server: &Server, name: &str) -> PathBuf {
    Path::new("/proc").join(server.process.id().to_string()).join(name)
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
}

/// The status of each thread, once all are there and serve.
fn statuses(server: &Server) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let threads = fs::read_dir(proc(server, "task")).unwrap();
        let read =
            |entry: std::io::Result<fs::DirEntry>| fs::read_to_string(entry.unwrap().path().join("status")).unwrap();
        let statuses: Vec<String> = threads.map(read).collect();
        let ready = statuses.len() == 4 && statuses.iter().all(|status| field(status, "Seccomp") == "2");
        if ready || Instant::now() > deadline {
            return statuses;
        }
    }
}

#[test]
fn each_thread_is_confined() {
    let Some(server) = Server::greeted() else { return };
    let statuses = statuses(&server);
    assert_eq!(statuses.len(), 4);
    for status in statuses {
        assert_eq!(field(&status, "Seccomp"), "2");
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(&status, set), CAPABILITIES, "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(field(&status, "Groups"), "");
    }
}

#[test]
fn the_root_has_the_share_and_nothing_else() {
    let Some(server) = Server::greeted() else { return };
    let root = proc(&server, "root");
    let mut names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["proc", "share"]);
    assert!(fs::write(root.join("file"), "").is_err());
    let mounts = fs::read_to_string(proc(&server, "mounts")).unwrap();
    assert_eq!(mounts.lines().count(), 3, "{mounts}");
    for name in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let ours = fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap();
        assert_ne!(fs::read_link(proc(&server, "ns").join(name)).unwrap(), ours, "{name}");
    }
    let interfaces = fs::read_to_string(proc(&server, "net/dev")).unwrap();
    assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
    assert!(interfaces.contains("lo:"));
}

#[test]
fn open_files_are_accounted_for() {
    let Some(server) = Server::greeted() else { return };
    let targets: Vec<_> = fs::read_dir(proc(&server, "fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .collect();
    for target in &targets {
        let known = ["socket:", "pipe:", "/dev/", "/share", "/proc", "/"];
        assert!(known.iter().any(|prefix| target.starts_with(prefix)), "{targets:?}");
    }
    assert!(targets.len() <= 7, "{targets:?}");
    let limits = fs::read_to_string(proc(&server, "limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let limit: u64 = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(limit == 2 * 65_536 || limit == most, "{files}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let Some(server) = Server::greeted() else { return };
    fs::write(server.share().join("inside"), "").unwrap();
    for name in ["..", ".", "", "../x", "a/b", "/", "/etc", "../../../../etc/passwd"] {
        let name = [name.as_bytes(), b"\0"].concat();
        assert_eq!(server.exchange(LOOKUP, ROOT, &name).0, libc::EINVAL, "{name:?}");
        assert_eq!(server.exchange(UNLINK, ROOT, &name).0, libc::EINVAL, "{name:?}");
        let directory = [&0o755_u64.to_le_bytes()[..], &name].concat();
        assert_eq!(server.exchange(MKDIR, ROOT, &directory).0, libc::EINVAL, "{name:?}");
        let renamed = [&ROOT.to_le_bytes()[..], b"inside\0", &name].concat();
        assert_ne!(server.exchange(RENAME, ROOT, &renamed).0, 0, "{name:?}");
    }
    let names: Vec<_> = fs::read_dir(server.share()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["inside"]);
    assert!(!server.share().parent().unwrap().join("x").exists());
}

#[test]
fn symbolic_links_are_not_followed() {
    let Some(server) = Server::greeted() else { return };
    std::os::unix::fs::symlink("/proc/1/root", server.share().join("link")).unwrap();
    let (error, entry) = server.exchange(LOOKUP, ROOT, b"link\0");
    assert_eq!(error, 0);
    let node = u64::from_le_bytes(*entry.first_chunk().unwrap());
    assert_ne!(server.exchange(LOOKUP, node, b"etc\0").0, 0);
    assert_ne!(server.exchange(OPEN, node, &[0; 8]).0, 0);
}

#[test]
fn malformed_packets_do_not_stop_the_server() {
    let Some(server) = Server::greeted() else { return };
    server.send(&[1]);
    server.send(&[0xff; 39]);
    server.send(&[0xff; 40]);
    server.send(&vec![0xff; 150_000]);
    let mut random = 0x5eed_u64;
    for round in 0..2000_u32 {
        let mut body = Vec::new();
        for _ in 0..round % 17 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            body.extend(random.to_le_bytes());
        }
        let opcode = round % 53;
        // Requests that end the session, and those that have no reply.
        if [2, 36, 38, 41, 42].contains(&opcode) {
            server.send(&request(opcode, 1000 + u64::from(round), random % 4, &body));
            if opcode == 38 {
                server.receive();
            }
        } else {
            server.send(&request(opcode, 7, random % 4, &body));
            server.receive();
            server.settle();
        }
    }
    // Random requests may have made entries in the share, nowhere else.
    server.settle();
    assert_eq!(server.exchange(GETATTR, ROOT, &[0; 16]).0, 0);
}

#[test]
fn sizes_that_the_guest_makes_up_cost_nothing() {
    let Some(server) = Server::greeted() else { return };
    fs::write(server.share().join("file"), vec![7; 1 << 20]).unwrap();
    let (_, entry) = server.exchange(LOOKUP, ROOT, b"file\0");
    let node = u64::from_le_bytes(*entry.first_chunk().unwrap());
    let (error, opened) = server.exchange(OPEN, node, &[0; 8]);
    assert_eq!(error, 0);
    let mut body = opened[..8].to_vec();
    body.extend(0_u64.to_le_bytes());
    body.extend(u32::MAX.to_le_bytes());
    body.resize(40, 0);
    let (error, content) = server.exchange(READ, node, &body);
    assert_eq!((error, content.len()), (0, 128 * 1024));
    let attribute = [&u32::MAX.to_le_bytes()[..], &[0; 4], b"user.none\0"].concat();
    assert_eq!(server.exchange(GETXATTR, node, &attribute).0, libc::ENODATA);
}

#[test]
fn mounts_made_later_appear_and_read_only_ones_stay_so() {
    let Some(share) = Mounted::start() else { return };
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "volume").unwrap();
    // A bind mount copies the flags of the mount that it copies, and so does its copy in the server. A flag that is
    // set later would stay on the host's side.
    let prepared = tempfile::tempdir().unwrap();
    let (none, bind) = (None::<&str>, MsFlags::MS_BIND);
    mount(Some(volume.path()), prepared.path(), none, bind, none).unwrap();
    mount(none, prepared.path(), none, MsFlags::MS_REMOUNT | bind | MsFlags::MS_RDONLY, none).unwrap();
    for (name, source) in [("writable", volume.path()), ("read-only", prepared.path())] {
        fs::create_dir(share.host(name)).unwrap();
        mount(Some(source), &share.host(name), none, bind, none).unwrap();
    }
    umount2(prepared.path(), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(fs::read_to_string(share.path("writable/file")).unwrap(), "volume");
    assert_eq!(fs::read_to_string(share.path("read-only/file")).unwrap(), "volume");
    fs::write(share.path("writable/file"), "changed").unwrap();
    let error = fs::write(share.path("read-only/file"), "changed").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    assert!(fs::remove_file(share.path("read-only/file")).is_err());
    umount2(&share.host("writable"), MntFlags::MNT_DETACH).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert!(fs::read_dir(share.path("writable")).unwrap().next().is_none());
}

#[test]
fn files_of_different_file_systems_differ() {
    let Some(share) = Mounted::start() else { return };
    let mut numbers = Vec::new();
    for name in ["one", "two"] {
        fs::create_dir(share.host(name)).unwrap();
        mount(Some("test"), &share.host(name), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(share.host(name).join("file"), name).unwrap();
        assert_eq!(fs::metadata(share.host(name).join("file")).unwrap().ino(), 2);
        let seen = fs::metadata(share.path(name).join("file")).unwrap();
        let listed = fs::read_dir(share.path(name)).unwrap().next().unwrap().unwrap();
        assert_eq!(std::os::unix::fs::DirEntryExt::ino(&listed), seen.ino());
        numbers.push((seen.dev(), seen.ino()));
    }
    assert_ne!(numbers[0], numbers[1]);
}

#[test]
fn the_server_ends_with_its_socket() {
    let Some(server) = Server::greeted() else { return };
    assert!(server.close().success());
}

#[test]
fn bad_arguments_are_one_sentence() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bulkhead-fsd")).arg("--rot").output().unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "ERROR usage: bulkhead-fsd --root <directory>\n");
}

#[test]
fn a_container_that_is_gone_is_let_go_of_when_the_guest_looks_again() {
    let Some(share) = Mounted::start() else { return };
    let root = share.host("container/rootfs");
    fs::create_dir_all(&root).unwrap();
    mount(Some("test"), &root, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    for number in 0..100 {
        fs::write(root.join(number.to_string()), "").unwrap();
        fs::metadata(share.path("container/rootfs").join(number.to_string())).unwrap();
    }
    let open = || fs::read_dir(proc(&share.server, "fd")).unwrap().count();
    let before = open();
    assert!(before > 100);
    umount2(&root, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir_all(share.host("container")).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(open(), before, "the guest remembers what it does not look at");
    assert!(fs::metadata(share.path("container")).is_err());
    let deadline = Instant::now() + Duration::from_secs(10);
    while open() > before - 100 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(open() <= before - 100, "{} of {before} files are open still", open());
}
