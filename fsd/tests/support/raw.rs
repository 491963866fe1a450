//! Requests made by hand, as a kernel in an attacker's hands would send them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Server;

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const READLINK: u32 = 5;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const STATFS: u32 = 17;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;
pub const SETXATTR: u32 = 21;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const REMOVEXATTR: u32 = 24;
pub const FLUSH: u32 = 25;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const GETLK: u32 = 31;
pub const SETLK: u32 = 32;
pub const ACCESS: u32 = 34;
pub const CREATE: u32 = 35;
pub const INTERRUPT: u32 = 36;
pub const BMAP: u32 = 37;
pub const DESTROY: u32 = 38;
pub const IOCTL: u32 = 39;
pub const POLL: u32 = 40;
pub const NOTIFY_REPLY: u32 = 41;
pub const BATCH_FORGET: u32 = 42;
pub const FALLOCATE: u32 = 43;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;
pub const COPY_FILE_RANGE: u32 = 47;
pub const SETUPMAPPING: u32 = 48;
pub const REMOVEMAPPING: u32 = 49;
pub const SYNCFS: u32 = 50;
pub const TMPFILE: u32 = 51;

/// The share's own inode.
pub const ROOT: u64 = 1;

/// What the next request of [`Server::exchange`] and [`Server::settle`] is known by: above all that tests choose themselves.
static NEXT: AtomicU64 = AtomicU64::new(1 << 32);

/// A whole request, in the name of root.
pub fn request(opcode: u32, unique: u64, node: u64, body: &[u8]) -> Vec<u8> {
    let mut packet = u32::try_from(40 + body.len()).unwrap().to_le_bytes().to_vec();
    packet.extend(opcode.to_le_bytes());
    packet.extend(unique.to_le_bytes());
    packet.extend(node.to_le_bytes());
    packet.resize(40, 0);
    packet.extend(body);
    packet
}

/// Numbers as they lie in a request.
pub fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A name with its end.
pub fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// The number at the start of a reply's body: of an inode, or of an open file.
pub fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(*body.first_chunk().unwrap())
}

impl Server {
    /// A server that has been greeted. `None` where the test has to be skipped.
    pub fn greeted() -> Option<Self> {
        let server = Self::start()?;
        server.greet();
        Some(server)
    }

    /// Says which protocol is spoken.
    pub fn greet(&self) {
        assert_eq!(self.exchange(INIT, 0, &words(&[7, 31, 131_072, 0])).0, 0);
    }

    /// Error number and body of the reply to a request. Late replies to others are passed over, and second ones: some requests are
    /// answered by the library, and by the server when the library has failed.
    pub fn exchange(&self, opcode: u32, node: u64, body: &[u8]) -> (i32, Vec<u8>) {
        let reply = self.reply(opcode, node, body);
        (-i32::from_le_bytes(*reply[4..].first_chunk().unwrap()), reply[16..].to_vec())
    }

    /// The inode of an entry; fails the test if there is none.
    pub fn lookup(&self, parent: u64, entry: &str) -> u64 {
        let (error, body) = self.exchange(LOOKUP, parent, &name(entry));
        assert_eq!(error, 0, "looking up {entry}");
        number(&body)
    }

    /// A handle of an inode, for reading and writing.
    pub fn open(&self, node: u64) -> u64 {
        let (error, body) = self.exchange(OPEN, node, &words(&[libc::O_RDWR.cast_unsigned(), 0]));
        assert_eq!(error, 0, "opening {node}");
        number(&body)
    }

    /// Takes replies until one to a request of our own: whatever was sent before has been taken up by then.
    pub fn settle(&self) {
        self.reply(GETATTR, ROOT, &[0; 16]);
    }

    fn reply(&self, opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        self.send(&request(opcode, unique, node, body));
        loop {
            let reply = self.receive();
            if reply[8..16] == unique.to_le_bytes() {
                return reply;
            }
        }
    }
}
