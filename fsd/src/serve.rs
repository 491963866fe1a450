//! Receives requests and sends replies, on a few threads that share one socket.
//!
//! The socket keeps packets apart, so a thread takes one request, acts, and sends one reply. Replies leave in any
//! order. The end of the socket is the end of the process.

use crate::jail;
use crate::request::{MAX_PACKET, bound, error_reply};
use crate::share::Share;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader};
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{MsgFlags, getsockopt, recv, setsockopt, sockopt};
use nix::unistd::write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// A slow disk or an `fsync` holds up one thread; the others go on.
const THREADS: usize = 4;

/// A thread's stack; the library keeps its buffers on the heap.
const STACK: usize = 256 * 1024;

/// Why serving ended, or did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot give the socket room for a packet")]
    Socket(#[source] io::Error),
    #[error("cannot open the share")]
    Share(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot confine a thread")]
    Confine(#[source] io::Error),
    #[error("cannot receive a request")]
    Receive(#[source] io::Error),
}

/// Makes sure that the largest reply fits the socket: one that does not would never be sent. For a process that is not
/// jailed yet.
pub fn prepare(socket: &impl AsFd) -> Result<(), ServeError> {
    // The kernel doubles the value and takes its own headers from it.
    let room = 2 * MAX_PACKET;
    if setsockopt(&socket.as_fd(), sockopt::SndBufForce, &room).is_ok() {
        return Ok(());
    }
    match getsockopt(&socket.as_fd(), sockopt::SndBuf) {
        Ok(has) if has >= MAX_PACKET + 4096 => Ok(()),
        Ok(_) => Err(ServeError::Socket(Errno::EMSGSIZE.into())),
        Err(error) => Err(ServeError::Socket(error.into())),
    }
}

/// Serves `root` on standard input until the other side closes it. Call it in the jail.
pub fn run(root: &Path) -> Result<(), ServeError> {
    let root = root.to_str().ok_or_else(|| ServeError::Share(Errno::EINVAL.into()))?;
    let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| ServeError::Share(error.into()))?;
    let server = Arc::new(Server::new(Share::new(root, open_files).map_err(ServeError::Share)?));
    for _ in 1..THREADS {
        let server = Arc::clone(&server);
        let builder = thread::Builder::new().name("files".into()).stack_size(STACK);
        builder.spawn(move || finish(serve(&server))).map_err(ServeError::Thread)?;
    }
    serve(&server)
}

/// Ends the process from a thread that is not the first.
fn finish(result: Result<(), ServeError>) -> ! {
    match result {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("ERROR cannot serve: {error}");
            std::process::exit(1)
        }
    }
}

fn serve(server: &Server<Share>) -> Result<(), ServeError> {
    jail::confine_thread().map_err(ServeError::Confine)?;
    let stdin = io::stdin();
    let socket = stdin.as_fd();
    let mut request = vec![0; MAX_PACKET];
    let mut reply = vec![0; MAX_PACKET];
    loop {
        match recv(socket.as_raw_fd(), &mut request, MsgFlags::MSG_TRUNC) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(()),
            Ok(length) => {
                // Longer than the buffer and thus cut: not what the other side ever sends.
                if let Some(packet) = request.get_mut(..length) {
                    answer(server, socket, packet, &mut reply);
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(ServeError::Receive(error.into())),
        }
    }
}

/// Acts on one packet. Every request that expects a reply gets one: the guest would wait for it without end.
fn answer(server: &Server<Share>, socket: BorrowedFd<'_>, packet: &mut [u8], reply: &mut [u8]) {
    let Some(request) = bound(packet) else { return };
    let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(packet));
    let writer = FuseDevWriter::<()>::new(socket.as_raw_fd(), reply);
    let handled = match (reader, writer) {
        (Ok(reader), Ok(writer)) => server.handle_message(reader, writer.into(), None, None).is_ok(),
        _ => false,
    };
    if !handled && request.replied {
        // When the library has replied before it failed, the client drops this one.
        let _ = write(socket, &error_reply(request.unique, libc::EIO));
    }
}
