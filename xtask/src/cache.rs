//! Build products kept by the hash of what they are made from.
//!
//! The cache lives outside the checkout (`$BULKHEAD_CACHE`, else `~/.cache/bulkhead`), so that a fresh clone
//! with the same inputs builds neither the kernel nor the node images again. An entry is made in a scratch
//! directory and renamed into place: it is either whole or absent.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Everything that a build product depends on. Two equal hashes mean interchangeable products.
#[derive(Default)]
pub struct Inputs {
    hash: Sha256,
}

impl Inputs {
    /// A literal input: a version, a package list, a flag. `name` keeps two neighbours apart.
    pub fn value(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.hash.update(name.as_bytes());
        self.hash.update((value.len() as u64).to_le_bytes());
        self.hash.update(value);
        self
    }

    /// A file's content, or every file below a directory in name order.
    pub fn path(mut self, path: &Path) -> Result<Self> {
        if path.is_dir() {
            let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
                .with_context(|| format!("cannot list {}", path.display()))?;
            entries.sort();
            for entry in entries {
                self = self.path(&entry)?;
            }
            return Ok(self);
        }
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(self.value(&name, content))
    }

    /// The name of these inputs.
    pub fn digest(&self) -> String {
        let digest = self.hash.clone().finalize();
        digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The directory `<cache>/<name>-<hash>`, made by `build` if it is not there yet.
///
/// `build` gets an empty directory and fills it. What it leaves there is what later callers see.
pub fn entry(name: &str, inputs: &Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let root = root()?;
    let path = root.join(format!("{name}-{}", inputs.digest()));
    if path.is_dir() {
        return Ok(path);
    }
    std::fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
    let scratch = tempfile::Builder::new().prefix(&format!(".{name}-")).tempdir_in(&root)?;
    let started = std::time::Instant::now();
    eprintln!("xtask: building {name} (kept in the cache for the next time)");
    build(scratch.path()).with_context(|| format!("cannot build {name}"))?;
    let made = scratch.keep();
    if let Err(error) = std::fs::rename(&made, &path) {
        std::fs::remove_dir_all(&made).ok();
        // Another process that built the same inputs may have won; its product is as good.
        if !path.is_dir() {
            return Err(error).with_context(|| format!("cannot keep {}", path.display()));
        }
    }
    eprintln!("xtask: built {name} in {} s", started.elapsed().as_secs());
    Ok(path)
}

fn root() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_CACHE") {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").context("neither BULKHEAD_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/bulkhead"))
}
