//! New limits for a container, translated and written by crun.

use super::Container;
use crate::agent::Agent;
use crate::error::Error;
use crate::spec::with_devices;

impl Container {
    /// `resources` is an OCI `linux.resources` object.
    pub async fn update(&self, agent: &Agent, resources: &[u8]) -> Result<(), Error> {
        let _whole = self.paused.lock().await;
        self.check_running("update")?;
        let document = self.bundle.join("resources.json");
        // crun replaces all rules about devices when it is given any.
        let resources = with_devices(resources, &self.devices)?;
        std::fs::write(&document, resources).map_err(Error::system("write", document.display()))?;
        agent.crun.update(&self.id, &self.bundle, &document).await
    }
}
