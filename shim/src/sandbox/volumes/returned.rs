//! Termination logs: a file that a container writes and kubelet reads when it learns of the container's end.

use super::PlaceError;
use super::placed::{Source, one_file, prepare};
use super::push::push;
use crate::identifier::Identifier;
use crate::sandbox::SandboxError;
use crate::sandbox::agent::Agent;
use crate::sandbox::attach::blocking;
use crate::sandbox::policy::Resolved;
use agent_protocol::agent::TakeFileRequest;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

/// Most bytes that come back, the last ones. kubelet shows 4 KiB of them.
const MAX_CONTENT: u32 = 64 * 1024;

/// Room in the guest. A container that writes more finds the volume full.
const MAX_FILE: u64 = 1 << 20;

/// A volume whose file comes back.
#[derive(Clone, Debug)]
pub(super) struct Returned {
    volume: String,
    file: Arc<File>,
}

/// Opens the file of the node that was found, to write to it when its container has ended.
pub(super) fn open(found: &Resolved) -> io::Result<File> {
    // A regular file, as the classification has seen on the same descriptor.
    let path = format!("/proc/self/fd/{}", found.fd.as_raw_fd());
    File::options().write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

/// Makes the volume and copies what the file holds: nothing, usually.
pub(super) async fn place(agent: &Agent, id: &str, source: Source) -> Result<(), PlaceError> {
    let tree = source.read().await?.unwrap_or_default();
    prepare(agent, id, one_file(MAX_FILE.max(tree.bytes))).await?;
    Ok(push(agent, id, 1, tree).await?)
}

impl Returned {
    pub fn new(volume: String, file: File) -> Self {
        Self { volume, file: Arc::new(file) }
    }

    pub async fn take_back(&self, agent: &Agent, container: &Identifier) {
        if let Err(error) = self.copy(agent).await {
            tracing::warn!(%container, %error, "the termination log did not come back");
        }
    }

    async fn copy(&self, agent: &Agent) -> Result<(), SandboxError> {
        let request = TakeFileRequest { volume: self.volume.clone(), limit: MAX_CONTENT, ..TakeFileRequest::default() };
        let content = agent.take_file(&request).await?.content;
        let file = self.file.clone();
        let write = move || write(&file, &content).map_err(SandboxError::host("write", "the termination log"));
        blocking(write).await
    }

    pub async fn release(&self, agent: &Agent) {
        agent.forget_volume(&self.volume).await;
    }
}

/// The guest may answer more than it was asked for.
fn write(file: &File, content: &[u8]) -> io::Result<()> {
    let content = &content[..content.len().min(MAX_CONTENT as usize)];
    file.write_all_at(content, 0)?;
    file.set_len(content.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_replaces_what_was_there_and_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "something longer").unwrap();
        let file = open(&Resolved::open(&path).unwrap()).unwrap();
        write(&file, b"so long").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"so long");
        write(&file, &vec![b'x'; MAX_CONTENT as usize + 1]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), u64::from(MAX_CONTENT));
    }
}
