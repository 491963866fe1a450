//! In whose name a request is carried out.
//!
//! To a file system of this node the user matters little, since the guest's kernel has decided and we have the capabilities. A
//! server elsewhere (NFS) decides by user and group alone, and most take the node's root for nobody (`root_squash`).
#![expect(unsafe_code, reason = "libc's own calls change the user of all threads, these that of one")]

use fuse_backend_rs::api::filesystem::Context;
use libc::c_long;
use std::io;

/// What stands for "leave it" in these calls.
const SAME: libc::uid_t = libc::uid_t::MAX;

/// Acts as root; when that is refused, as the user and the group that ask. For what may be repeated when it has failed.
pub fn on_behalf<T>(caller: &Context, mut act: impl FnMut(&Context) -> io::Result<T>) -> io::Result<T> {
    match act(caller) {
        Err(error) if is_refusal(&error) && !is_root(caller) => as_caller(caller, act),
        result => result,
    }
}

/// The same the other way around, for what makes a file and then looks at it: root may do the first and not the second. To link
/// and to look, a server that trusts root lets it do what the caller may by its other groups, which a request does not tell.
pub fn making<T>(caller: &Context, mut act: impl FnMut(&Context) -> io::Result<T>) -> io::Result<T> {
    match as_caller(caller, &mut act) {
        Err(error) if is_refusal(&error) && !is_root(caller) => act(caller),
        result => result,
    }
}

/// Acts as the user and the group that ask. `act` gets the context for the library, which by itself takes their ids for the one
/// call that makes a file, and is root again afterwards.
pub fn as_caller<T>(caller: &Context, act: impl FnOnce(&Context) -> io::Result<T>) -> io::Result<T> {
    if is_root(caller) {
        return act(caller);
    }
    let _identity = Identity::take(caller)?;
    act(&Context { uid: 0, gid: 0, ..*caller })
}

fn is_root(caller: &Context) -> bool {
    caller.uid == 0 && caller.gid == 0
}

pub fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

/// This thread has the effective ids of a caller for as long as this lives.
struct Identity;

impl Identity {
    fn take(caller: &Context) -> io::Result<Self> {
        let identity = Self;
        set(libc::SYS_setresgid, caller.gid)?;
        set(libc::SYS_setresuid, caller.uid)?;
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        if set(libc::SYS_setresuid, 0).and_then(|()| set(libc::SYS_setresgid, 0)).is_err() {
            // The next request would be carried out in the wrong name.
            eprintln!("ERROR cannot become root again");
            std::process::exit(1);
        }
    }
}

fn set(call: c_long, id: u32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(call, SAME, id, SAME) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
