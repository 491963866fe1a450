//! Build products kept by the hash of what they are made from.
//!
//! The cache lives outside the checkout (`$BULKHEAD_CACHE`, else `~/.cache/bulkhead`), so that a fresh clone
//! with the same inputs builds neither the kernel nor the node images again. An entry is made in a scratch
//! directory and renamed into place: it is either whole or absent. What an interrupted build left behind is
//! removed by the next one.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
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
    entry_below(&root()?, name, inputs, build)
}

fn entry_below(root: &Path, name: &str, inputs: &Inputs, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = root.join(format!("{name}-{}", inputs.digest()));
    if path.is_dir() {
        return Ok(path);
    }
    std::fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
    // One build of a name at a time: a second process waits, and finds the product instead of making it again.
    let _lock = lock(&root.join(format!(".{name}.lock")))?;
    if path.is_dir() {
        return Ok(path);
    }
    let scratch = root.join(format!(".{name}.building"));
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    std::fs::create_dir(&scratch)?;
    let started = std::time::Instant::now();
    eprintln!("xtask: building {name} (kept in the cache for the next time)");
    if let Err(error) = build(&scratch) {
        std::fs::remove_dir_all(&scratch).ok();
        return Err(error).with_context(|| format!("cannot build {name}"));
    }
    std::fs::rename(&scratch, &path).with_context(|| format!("cannot keep {}", path.display()))?;
    eprintln!("xtask: built {name} in {} s", started.elapsed().as_secs());
    Ok(path)
}

/// Holds `path` as a lock until the result is dropped, or this process ends.
pub fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

fn root() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BULKHEAD_CACHE") {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").context("neither BULKHEAD_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/bulkhead"))
}

#[cfg(test)]
mod tests {
    use super::{Inputs, entry_below};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn two_builders_of_the_same_inputs_build_once() {
        let root = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        let build = || {
            entry_below(root.path(), "thing", &Inputs::default().value("version", "1"), |into| {
                builds.fetch_add(1, Ordering::Relaxed);
                Ok(std::fs::write(into.join("product"), "made")?)
            })
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(build);
            assert_eq!(build().unwrap(), other.join().unwrap().unwrap());
        });
        assert_eq!(builds.into_inner(), 1);
    }

    #[test]
    fn a_failed_build_leaves_no_entry() {
        let root = tempfile::tempdir().unwrap();
        let inputs = Inputs::default().value("version", "1");
        assert!(entry_below(root.path(), "thing", &inputs, |_| anyhow::bail!("no")).is_err());
        std::fs::create_dir(root.path().join(".thing.building")).unwrap();
        let path = entry_below(root.path(), "thing", &inputs, |into| Ok(std::fs::write(into.join("a"), "")?)).unwrap();
        assert!(path.join("a").exists());
    }

    #[test]
    fn neighbouring_values_do_not_run_together() {
        let one = Inputs::default().value("a", "bc").value("d", "");
        let two = Inputs::default().value("a", "b").value("cd", "");
        assert_ne!(one.digest(), two.digest());
    }
}
