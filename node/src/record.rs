//! What `install` did to files that are not ours, so that `uninstall` can undo it.

use crate::containerd;
use crate::install::read;
use crate::layout::Layout;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;

/// Kept as JSON in the installation directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// containerd's configuration before the first installation; `None` if there was no such file.
    pub containerd_before: Option<String>,
    /// The same file as the last installation left it. If it still reads so, `uninstall` restores the first.
    pub containerd_after: String,
    /// `config.toml` as the installation wrote it; an operator's changes to it survive `uninstall`.
    pub config_written: Option<String>,
}

impl Record {
    /// The node's record, if Bulkhead is installed. One that cannot be understood, such as after a power cut, is made up from what is there.
    pub fn load(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.record();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let record = match serde_json::from_str(&text) {
            Ok(record) => record,
            Err(error) => {
                eprintln!(
                    "bulkhead: {} is damaged ({error}): what was there before Bulkhead is guessed",
                    path.display()
                );
                Self::guess(layout)?
            }
        };
        Ok(Some(record))
    }

    /// containerd's configuration before was what it is now without us. `config.toml` may be the operator's, and stays.
    fn guess(layout: &Layout) -> Result<Self> {
        let path = layout.containerd_config();
        let present = read(&path)?;
        let before = present.as_deref().map(containerd::without_runtime).transpose();
        let before = before.with_context(|| path.display().to_string())?;
        Ok(Self { containerd_before: before, containerd_after: present.unwrap_or_default(), config_written: None })
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record is plain data")
    }
}
