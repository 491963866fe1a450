//! A process id on the node for a container of a pod.
//!
//! containerd names a container's namespaces by its process id when another one is to share them, so containers of a pod
//! need ids that differ. The processes in the guest have none here; a thread of the shim that does nothing stands for
//! each container. Nobody else can get its id as long as the container is there.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

/// The least that the C library takes is enough for a thread that waits.
const STACK: usize = 16 * 1024;

#[derive(Debug)]
pub struct NodePid {
    pub number: u32,
    /// The thread ends with this.
    _thread: Sender<()>,
}

impl NodePid {
    pub fn new() -> io::Result<Self> {
        let (release, released) = channel();
        let (tell, told) = channel();
        Builder::new().name("container".to_owned()).stack_size(STACK).spawn(move || {
            // The receiver waits for it.
            let _ = tell.send(nix::unistd::gettid());
            let _ = released.recv();
        })?;
        let number = told.recv().map_err(io::Error::other)?;
        Ok(Self { number: number.as_raw().unsigned_abs(), _thread: release })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::time::Duration;

    #[test]
    fn an_id_is_taken_until_it_is_dropped() {
        let (one, other) = (NodePid::new().unwrap(), NodePid::new().unwrap());
        assert_ne!(one.number, other.number);
        let thread = PathBuf::from(format!("/proc/self/task/{}", one.number));
        assert!(thread.join("ns/pid").exists() && !PathBuf::from(format!("/proc/self/task/{}", u32::MAX)).exists());
        drop(one);
        while thread.exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
