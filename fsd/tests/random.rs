//! Random requests, of a guest that tries everything: the server lives, keeps to the share, and takes no more than before.
//!
//! They are not noise: numbers, names and handles are mostly such as the server has given, so that requests get far.
//! `BULKHEAD_SEED` repeats a run.
#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod support;

use std::fs;
use support::Server;
use support::raw::*;
use support::sentinel::Sentinel;

const REQUESTS: usize = 10_000;

const ALL: [u32; 48] = [
    LOOKUP,
    FORGET,
    GETATTR,
    SETATTR,
    READLINK,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    LINK,
    OPEN,
    READ,
    WRITE,
    STATFS,
    RELEASE,
    FSYNC,
    SETXATTR,
    GETXATTR,
    LISTXATTR,
    REMOVEXATTR,
    FLUSH,
    INIT,
    OPENDIR,
    READDIR,
    GETLK,
    SETLK,
    ACCESS,
    CREATE,
    INTERRUPT,
    BMAP,
    DESTROY,
    IOCTL,
    POLL,
    NOTIFY_REPLY,
    BATCH_FORGET,
    FALLOCATE,
    READDIRPLUS,
    RENAME2,
    LSEEK,
    COPY_FILE_RANGE,
    SETUPMAPPING,
    REMOVEMAPPING,
    SYNCFS,
    TMPFILE,
    33,
    30,
];

/// Most of its own memory that the server may take, in KiB: its threads' buffers and the library's tables.
const MEMORY: usize = 32 * 1024;

/// xorshift: the same numbers each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next().to_le_bytes()[3]).collect()
    }
}

/// What an attacker would have learned.
struct Guest {
    random: Random,
    nodes: Vec<u64>,
    /// Open files, each with its inode.
    handles: Vec<(u64, u64)>,
}

impl Guest {
    fn node(&mut self) -> u64 {
        match self.random.below(10) {
            0 => self.random.next() >> self.random.below(64),
            1..4 => ROOT,
            _ => self.random.of(&self.nodes),
        }
    }

    /// An inode with a handle, of the same file mostly.
    fn opened(&mut self) -> (u64, u64) {
        let (node, handle) = self.random.of(&self.handles);
        match self.random.below(10) {
            0 => (self.node(), handle),
            1 => (node, self.random.next() >> self.random.below(64)),
            _ => (node, handle),
        }
    }

    fn long(&mut self) -> u64 {
        match self.random.below(4) {
            0 => self.random.of(&[0, 1, 4095, 4096, u64::MAX, 1 << 63, i64::MAX.cast_unsigned()]),
            1 => self.random.next() >> self.random.below(64),
            _ => self.random.below(10_000) as u64,
        }
    }

    fn word(&mut self) -> u32 {
        self.long().to_le_bytes().first_chunk().map(|half| u32::from_le_bytes(*half)).unwrap()
    }

    fn name(&mut self) -> Vec<u8> {
        let honest = ["file", "a", "b", "c", "d", "e", "directory", "link"];
        let hostile = ["", ".", "..", "../beside/secret", "/etc/passwd", "a/b"];
        match self.random.below(10) {
            0 => {
                let length = self.random.of(&[1, 255, 256, 5000]);
                let mut name = self.random.bytes(length);
                name.push(0);
                name
            }
            1 => self.random.bytes(9),
            2 => name(self.random.of(&hostile)),
            _ => name(self.random.of(&honest)),
        }
    }

    /// What kind of request: each, those more often that give the guest something, and some that nobody knows.
    fn opcode(&mut self) -> u32 {
        match self.random.below(100) {
            0..30 => self.random.of(&[LOOKUP, LOOKUP, CREATE, OPEN, OPENDIR, MKDIR, MKNOD]),
            30..33 => self.word(),
            // The end of the session forgets all that was learned.
            _ if self.random.one_in(1000) => DESTROY,
            _ => loop {
                let opcode = self.random.of(&ALL);
                if opcode != DESTROY {
                    return opcode;
                }
            },
        }
    }

    /// Inode and body that a request should have, with numbers that are anything.
    fn request(&mut self, opcode: u32) -> (u64, Vec<u8>) {
        let (mut node, handle) = self.opened();
        let named = match opcode {
            LOOKUP | UNLINK | RMDIR | REMOVEXATTR => Some((0, 1)),
            SYMLINK => Some((0, 2)),
            MKDIR | SETXATTR | GETXATTR | LISTXATTR => Some((1, 1)),
            MKNOD | CREATE => Some((2, 1)),
            LINK => Some((1, 1)),
            RENAME => Some((1, 2)),
            RENAME2 => Some((2, 2)),
            _ => None,
        };
        let mut body = match opcode {
            LINK | RENAME | RENAME2 => longs(&[self.node()]),
            OPEN | OPENDIR => words(&[self.word() & 0o7_777_777, 0]),
            SETATTR => [words(&[self.word() & 0x1ff, 0]), longs(&[handle])].concat(),
            _ if named.is_none() => longs(&[handle]),
            _ => Vec::new(),
        };
        let (numbers, names) = named.unwrap_or((self.random.below(12), 0));
        while body.len() < 8 * numbers {
            body.extend(longs(&[self.long()]));
        }
        for _ in 0..names {
            body.extend(self.name());
        }
        if named.is_some() || [OPEN, OPENDIR].contains(&opcode) {
            node = self.node();
        }
        match self.random.below(10) {
            0 => body.truncate(self.random.below(body.len() + 1)),
            1 => {
                let more = self.random.of(&[1, 7, 100, 4096, 100_000]);
                body.extend(self.random.bytes(more));
            }
            _ => {}
        }
        (node, body)
    }

    /// Keeps what a reply gives: an inode of an entry, a handle of an open file.
    fn learn(&mut self, opcode: u32, node: u64, reply: &[u8]) {
        let number_at = |offset: usize| reply.get(offset..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        match opcode {
            LOOKUP | MKDIR | MKNOD | SYMLINK | LINK | CREATE => {
                let made = number_at(0);
                self.nodes.extend(made);
                // The entry of a made file is followed by its handle.
                let handle = number_at(128).filter(|_| opcode == CREATE);
                self.handles.extend(made.zip(handle));
            }
            OPEN | OPENDIR => self.handles.extend(number_at(0).map(|handle| (node, handle))),
            _ => {}
        }
        // The newest, and the share itself.
        if self.nodes.len() > 32 {
            self.nodes.remove(1);
        }
        if self.handles.len() > 32 {
            self.handles.remove(0);
        }
    }
}

#[test]
fn random_requests_neither_end_the_server_nor_leave_the_share() {
    let Some(mut server) = Server::start_in_memory() else { return };
    let sentinel = Sentinel::beside(&server);
    server.greet();
    for name in ["file", "a", "b"] {
        fs::write(server.share().join(name), name).unwrap();
    }
    fs::create_dir(server.share().join("directory")).unwrap();
    std::os::unix::fs::symlink("../beside/secret", server.share().join("link")).unwrap();
    let seed = std::env::var("BULKHEAD_SEED").map_or(0x5eed_cafe, |seed| seed.parse().unwrap());
    eprintln!("BULKHEAD_SEED={seed}");
    let nodes = vec![ROOT, server.lookup(ROOT, "file"), server.lookup(ROOT, "directory"), server.lookup(ROOT, "link")];
    let handles = vec![(nodes[1], server.open(nodes[1]))];
    let mut guest = Guest { random: Random(seed), nodes, handles };
    let (mut done, mut refused) = (0, 0);
    for _ in 0..REQUESTS {
        let opcode = guest.opcode();
        let (node, body) = guest.request(opcode);
        let mut packet = request(opcode, 8, node, &body);
        if guest.random.one_in(4) {
            // In the name of a user.
            packet[24..32].copy_from_slice(&longs(&[guest.long()]));
        }
        if guest.random.one_in(50) {
            packet[..4].copy_from_slice(&guest.word().to_le_bytes());
        }
        server.send(&packet);
        server.send(&request(GETATTR, 99, ROOT, &[0; 16]));
        loop {
            let reply = server.receive();
            match number(&reply[8..]) {
                99 => break,
                _ if reply[4..8] == [0; 4] => {
                    done += 1;
                    guest.learn(opcode, node, &reply[16..]);
                }
                _ => refused += 1,
            }
        }
        if opcode == DESTROY {
            guest.nodes.truncate(1);
            server.greet();
        }
    }
    assert!(server.process.try_wait().unwrap().is_none(), "the server has ended");
    eprintln!("{done} requests were done, {refused} refused");
    // A test that gets nowhere tests nothing.
    assert!(done > REQUESTS / 10 && refused > REQUESTS / 20);
    sentinel.check().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let memory: usize = memory.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(memory < MEMORY, "{memory} KiB");
    assert!(server.close().success());
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let Some(server) = Server::greeted() else { return };
    fs::write(server.share().join("file"), vec![7; 1 << 20]).unwrap();
    let node = server.lookup(ROOT, "file");
    let handle = server.open(node);
    let body = [longs(&[handle, 0]), words(&[u32::MAX, 0]), longs(&[0]), words(&[0, 0])].concat();
    let (requests, mut answered) = (2000_u64, vec![false; 2000]);
    std::thread::scope(|scope| {
        // Nobody reads yet when most are sent: the socket is full, both ways.
        let server = &server;
        let body = &body;
        scope.spawn(move || (0..requests).for_each(|unique| server.send(&request(READ, unique, node, body))));
        std::thread::sleep(std::time::Duration::from_millis(200));
        for _ in 0..requests {
            let reply = server.receive();
            assert_eq!(reply.len(), 16 + 128 * 1024);
            let unique = usize::try_from(number(&reply[8..])).unwrap();
            assert!(!std::mem::replace(&mut answered[unique], true), "{unique} is answered twice");
        }
    });
    assert!(answered.iter().all(|answered| *answered));
    assert_eq!(server.exchange(GETATTR, ROOT, &[0; 16]).0, 0);
}
