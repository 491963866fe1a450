//! Pausing: the kernel freezes the group and says when the last thread stands still.

use super::{Cgroup, POLL};
use crate::error::Error;
use std::time::Duration;

/// A thread in an uninterruptible wait freezes late.
const DEADLINE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Returns once every process stands still; thaws again if that takes too long.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.write("cgroup.freeze", "1")?;
        let frozen = async {
            while self.event("frozen").is_some_and(|frozen| frozen == 0) {
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(DEADLINE, frozen).await.is_ok() {
            return Ok(());
        }
        self.thaw()?;
        let object = self.path.display().to_string();
        Err(Error::Deadline { operation: "freezing", object, seconds: DEADLINE.as_secs() })
    }

    pub fn thaw(&self) -> Result<(), Error> {
        self.write("cgroup.freeze", "0")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_group_that_does_not_freeze_is_thawed_again() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        std::fs::write(root.path().join("cgroup.freeze"), "0").unwrap();
        let error = Cgroup::new(root.path().to_owned()).freeze().await.unwrap_err();
        assert!(error.to_string().starts_with("freezing "), "{error}");
        assert_eq!(std::fs::read_to_string(root.path().join("cgroup.freeze")).unwrap(), "0");
    }
}
