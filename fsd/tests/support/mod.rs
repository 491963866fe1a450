//! A file server with a share, reached through the kernel's FUSE client or by hand-made requests.
//!
//! Every fixture lives in a mount namespace of its own thread, so that a test that fails leaves no mount behind.
#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part")]

pub mod raw;
pub mod sentinel;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt};
use nix::unistd::geteuid;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const NONE: Option<&str> = None;
const MAX_PACKET: usize = 256 * 1024;

/// A running server.
pub struct Server {
    directory: tempfile::TempDir,
    pub process: Child,
    socket: Option<Arc<OwnedFd>>,
}

/// True where a server can run; says so and counts where it cannot.
fn possible() -> bool {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    if geteuid().is_root() && Path::new("/dev/fuse").exists() {
        return true;
    }
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    eprintln!("SKIPPED ({count}): needs root and /dev/fuse");
    false
}

impl Server {
    /// `None` where the test has to be skipped.
    pub fn start() -> Option<Self> {
        Self::start_on(|share| mount(Some(share), share, NONE, MsFlags::MS_BIND, NONE))
    }

    /// The same with a share in memory, that takes 8 MiB and 4096 files.
    pub fn start_in_memory() -> Option<Self> {
        let options = Some("size=8m,nr_inodes=4096");
        Self::start_on(|share| mount(Some("share"), share, Some("tmpfs"), MsFlags::empty(), options))
    }

    fn start_on(mount_share: impl FnOnce(&Path) -> nix::Result<()>) -> Option<Self> {
        if !possible() {
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        std::fs::create_dir(&share).unwrap();
        mount_share(&share).unwrap();
        mount(NONE, &share, NONE, MsFlags::MS_SHARED, NONE).unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-fsd"))
            .arg("--root")
            .arg(&share)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { directory, process, socket: Some(Arc::new(ours)) })
    }

    /// The served directory, on the host's side.
    pub fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// Sends a packet as it is.
    pub fn send(&self, packet: &[u8]) {
        let socket = self.socket.as_ref().unwrap();
        send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
    }

    /// Receives a packet; fails the test if none comes.
    pub fn receive(&self) -> Vec<u8> {
        let socket = self.socket.as_ref().unwrap();
        setsockopt(socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(10, 0)).unwrap();
        let mut packet = vec![0; MAX_PACKET];
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        packet.truncate(length);
        packet
    }

    /// Closes the socket and returns how the server ended.
    pub fn close(mut self) -> std::process::ExitStatus {
        self.socket = None;
        self.process.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = umount2(&self.share(), MntFlags::MNT_DETACH);
    }
}

/// A share that is mounted through the kernel's FUSE client.
pub struct Mounted {
    mount: PathBuf,
    largest_request: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    pub server: Server,
}

impl Mounted {
    /// `None` where the test has to be skipped.
    pub fn start() -> Option<Self> {
        let server = Server::start()?;
        let mount_point = server.directory.path().join("mounted");
        std::fs::create_dir(&mount_point).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=131072",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID;
        mount(Some("share"), &mount_point, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let largest_request = Arc::new(AtomicUsize::new(0));
        let requests = Arc::new(AtomicUsize::new(0));
        let (counter, largest) = (Arc::clone(&requests), Arc::clone(&largest_request));
        let count = move |length| {
            counter.fetch_add(1, Ordering::Relaxed);
            largest.fetch_max(length, Ordering::Relaxed);
        };
        relay(device, Arc::clone(server.socket.as_ref().unwrap()), count);
        Some(Self { mount: mount_point, largest_request, requests, server })
    }

    /// A path in the mounted share.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mount.join(name)
    }

    /// The same on the host's side.
    pub fn host(&self, name: &str) -> PathBuf {
        self.server.share().join(name)
    }

    /// How many requests the kernel has sent.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    pub fn largest_request(&self) -> usize {
        self.largest_request.load(Ordering::Relaxed)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
    }
}

/// Passes requests of the kernel to the server and replies back, until either side ends.
fn relay(device: File, socket: Arc<OwnedFd>, count: impl Fn(usize) + Send + 'static) {
    let device = Arc::new(device);
    let (requests, server) = (Arc::clone(&device), Arc::clone(&socket));
    thread::spawn(move || {
        let mut packet = vec![0; 2 << 20];
        while let Ok(length @ 1..) = (&*requests).read(&mut packet) {
            count(length);
            if send(server.as_raw_fd(), &packet[..length], MsgFlags::MSG_NOSIGNAL).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        let mut packet = vec![0; 2 << 20];
        while let Ok(length @ 1..) = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            // A reply to a request that was interrupted is refused, which is no fault.
            let _ = (&*device).write(&packet[..length]);
        }
    });
}

/// Runs a command and returns what it printed; fails the test if it fails.
pub fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
