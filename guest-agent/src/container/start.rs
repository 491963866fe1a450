//! Running a created container's command.

use super::Container;
use crate::agent::Agent;
use crate::error::Error;

impl Container {
    /// The pid of the first process.
    pub async fn start(&self, agent: &Agent) -> Result<u32, Error> {
        let paused = self.paused.lock().await;
        self.init.begin_start()?;
        let result = agent.crun.start(&self.id, &self.bundle).await;
        drop(paused);
        match result {
            Ok(()) => self.init.started(None),
            Err(error) => {
                self.init.start_failed();
                return Err(error);
            }
        }
        self.init.pid().ok_or_else(|| Error::NoContainer(self.id.clone()))
    }
}
