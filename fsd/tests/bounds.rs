//! What a guest may take of the node through the file server, and that it gets no more.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use std::fs::{self, File};
use std::time::{Duration, Instant};
use support::Server;
use support::raw::{
    CREATE, FLUSH, FORGET, LOOKUP, MKDIR, MKNOD, OPEN, OPENDIR, READDIR, READDIRPLUS, RELEASE, ROOT, SYMLINK, longs,
    name, number, request, words,
};

/// A server whose guest remembers as much as it may: `directory`, and files in it.
struct Full {
    server: Server,
    directory: u64,
    /// As many are known, `0` and on. The directory has a few more.
    files: usize,
}

fn full() -> Option<Full> {
    let server = Server::greeted()?;
    // Half of the files that the server may have open are for those that the guest remembers.
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.process.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let limit: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(limit <= 131_072, "{line}");
    let path = server.share().join("directory");
    fs::create_dir(&path).unwrap();
    let directory = server.lookup(ROOT, "directory");
    let files = limit / 2 - 1;
    for number in 0..files + 10 {
        File::create(path.join(number.to_string())).unwrap();
    }
    for number in 0..files {
        server.lookup(directory, &number.to_string());
    }
    Some(Full { server, directory, files })
}

#[test]
fn one_file_too_many_is_refused_until_another_is_forgotten() {
    let Some(Full { server, directory, files }) = full() else { return };
    let new = name(&files.to_string());
    assert_eq!(server.exchange(LOOKUP, directory, &new).0, libc::ENFILE);

    let made = [
        (MKDIR, [words(&[0o755, 0]), name("made")].concat()),
        (MKNOD, [words(&[libc::S_IFREG | 0o644, 0, 0, 0]), name("made")].concat()),
        (SYMLINK, [name("made"), name("target")].concat()),
        (CREATE, [words(&[libc::O_RDWR.cast_unsigned(), 0o644, 0, 0]), name("made")].concat()),
    ];
    for (opcode, body) in made {
        assert_eq!(server.exchange(opcode, directory, &body).0, libc::ENFILE, "opcode {opcode}");
        assert!(!server.share().join("directory/made").exists(), "refused, but made");
    }

    // What the guest knows it can use.
    let known = server.lookup(directory, "0");
    let handle = server.open(known);
    assert_eq!(server.exchange(FLUSH, known, &longs(&[handle, 0, 0])).0, 0);

    // Names are no files: a directory is listed, with and without what else is known of the entries.
    let (_, opened) = server.exchange(OPENDIR, directory, &[0; 8]);
    for opcode in [READDIR, READDIRPLUS] {
        let body = [longs(&[number(&opened), 0]), words(&[65_536, 0]), longs(&[0, 0])].concat();
        let (error, entries) = server.exchange(opcode, directory, &body);
        assert!(error == 0 && entries.len() > 10_000, "opcode {opcode}: {error}, {} bytes", entries.len());
    }

    server.send(&request(FORGET, 8, known, &longs(&[u64::MAX])));
    // Nothing answers FORGET, and a request after it is another thread's, which may be quicker.
    let patience = Instant::now() + Duration::from_secs(10);
    while server.exchange(LOOKUP, directory, &new).0 == libc::ENFILE && Instant::now() < patience {}
    assert_eq!(server.exchange(LOOKUP, directory, &new).0, 0);
    assert_eq!(server.exchange(LOOKUP, directory, &name("0")).0, libc::ENFILE);
}

#[test]
fn open_files_are_bounded_and_can_be_closed_at_the_bound() {
    let Some(Full { server, directory, files }) = full() else { return };
    let node = server.lookup(directory, "0");
    let handle = server.open(node);
    let flags = words(&[libc::O_RDWR.cast_unsigned(), 0]);
    let mut opened = 0;
    let error = loop {
        let (error, _) = server.exchange(OPEN, node, &flags);
        if error != 0 {
            break error;
        }
        opened += 1;
        assert!(opened < 2 * files, "no bound");
    };
    assert_eq!(error, libc::ENFILE);
    assert!(opened > files / 2, "{opened}");
    // Here not even a descriptor for a moment is left.
    assert_eq!(server.exchange(FLUSH, node, &longs(&[handle, 0, 0])).0, 0);
    assert_eq!(server.exchange(LOOKUP, directory, &name("0")).0, libc::ENFILE);
    assert_eq!(server.exchange(RELEASE, node, &longs(&[handle, 0, 0])).0, 0);
    assert_eq!(server.exchange(LOOKUP, directory, &name("0")).0, 0);
    server.open(node);
}
