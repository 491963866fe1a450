//! The jail of the file server.
//!
//! What is left to a process that an attacker has taken over: the files of the share, with the rights that a file
//! server needs, and its own entries of `/proc`. It has no network, no other process, no way to more rights, and no
//! system call besides those on files.
//!
//! ```text
//!  /        empty, read-only
//!  /proc    this process only: the library opens files again through /proc/self/fd
//!  /share   the served directory; mounts that the host makes below it later appear here
//! ```

mod enter;
mod filter;
mod plan;

pub use enter::{JailError, enter};
pub use filter::confine_thread;
pub use plan::SHARE;

#[cfg(test)]
mod tests;
