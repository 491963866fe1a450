//! A node with Bulkhead on it, installed the way an operator does it: from the archive, with `bulkhead install`.

use crate::{dist, node_image};
use anyhow::{Context, Result, bail};
use node_vm::{Builder, DEFAULT_DEADLINE, Edition, NodeVm};
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

const INSTALL: &str = "
    set -e
    cd /root
    tar xf /shares/payload/bulkhead.tar.gz
    cd bulkhead
    ./bin/bulkhead install
    node-containerd restart
";

/// What the node gets besides its image: the bundle's archive, and more files beside it in `/shares/payload`.
pub struct Payload {
    directory: TempDir,
}

impl Payload {
    /// With the archive `bundle`, or with this checkout's, which is built first.
    pub fn new(bundle: Option<&Path>) -> Result<Self> {
        let bundle = match bundle {
            Some(path) => path.to_owned(),
            None => dist::bundle()?.archive,
        };
        let payload = Payload { directory: tempfile::Builder::new().prefix("payload-").tempdir_in("/var/tmp")? };
        payload.add("bulkhead.tar.gz", &bundle)?;
        Ok(payload)
    }

    pub fn add(&self, name: &str, file: &Path) -> Result<()> {
        let copied = std::fs::copy(file, self.directory.path().join(name));
        copied.map(drop).with_context(|| format!("cannot take {} into the node", file.display()))
    }

    /// Boots what `configure` makes of a node of `edition` with the test images, and installs the bundle.
    pub fn start(
        &self,
        edition: Edition,
        artifacts: &Path,
        configure: impl FnOnce(Builder) -> Result<Builder>,
        progress: &mut dyn Write,
    ) -> Result<NodeVm> {
        let image = node_image::seeded(edition)?;
        let builder = Builder::new(image).artifacts(artifacts).share("payload", self.directory.path());
        let builder = configure(builder)?;
        writeln!(progress, "booting a {edition} node")?;
        let mut node = builder.start()?;
        writeln!(progress, "the node is up after {:.1} s; installing", node.uptime().as_secs_f64())?;
        let code = node.run(INSTALL, DEFAULT_DEADLINE, progress)?;
        if code != 0 {
            bail!("`bulkhead install` failed in the {edition} node with exit code {code}");
        }
        writeln!(progress, "installed after {:.1} s", node.uptime().as_secs_f64())?;
        Ok(node)
    }
}
