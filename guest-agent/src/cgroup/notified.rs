//! Files of cgroups whose changes the kernel notifies pollers of.

#![expect(unsafe_code, reason = "registration of a descriptor with the event loop")]

use std::fs::File;
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Notified(AsyncFd<File>);

impl Notified {
    pub fn new(file: File) -> io::Result<Self> {
        // SAFETY: a `File` is open and stays the same descriptor until it is dropped, with the registration.
        let registered = unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// Returns when the file has changed since the last call. The first call returns at once.
    pub async fn next(&self) -> io::Result<()> {
        // Cleared before the caller reads: a change in between notifies again.
        self.0.ready(Interest::PRIORITY).await?.clear_ready();
        Ok(())
    }
}
