//! The pod's file server, started for the first container that needs it.

use super::super::process::Process;
use super::super::{Inner, SandboxError, share};
use super::blocking;
use std::os::fd::AsFd;
use vmm_protocol::{Device, FdSlot};

impl Inner {
    /// A later container may try again: what a failed attempt made is removed.
    pub(super) async fn start_file_server(&self) -> Result<Process, SandboxError> {
        let result = self.serve_share().await;
        let directory = self.directory.clone();
        if result.is_err()
            && let Err(error) = blocking(move || share::remove(&directory)).await
        {
            tracing::error!(%error, "the failed file server left something behind");
        }
        result
    }

    async fn serve_share(&self) -> Result<Process, SandboxError> {
        let directory = self.directory.clone();
        blocking(move || share::make(&directory)).await?;
        let (server, socket) = share::serve(&self.host, &self.directory, &self.cgroup, self.oom_score)?;
        let device = Device::Fs { tag: agent_protocol::SHARE_TAG.to_owned(), server: FdSlot(0) };
        if let Err(error) = self.vmm.attach("the file share", device, socket.as_fd()).await {
            server.kill();
            return Err(error);
        }
        self.end_with(&server);
        Ok(server)
    }
}
