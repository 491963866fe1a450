//! `bulkhead install`: a plan computed from what is there, then carried out.
//!
//! Every file is written beside its place and renamed into it. A shim or VMM that runs keeps the file that it
//! started from, so that installing over running pods is safe.

use crate::containerd;
use crate::layout::{FILES, Layout, PREFIX, SHIM};
use crate::record::Record;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};

/// `config.toml` for an operator to edit; every key stands at its default.
const CONFIG: &str = include_str!("config.toml");

/// One step. The plan holds only steps that change something.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    Copy { from: PathBuf, to: PathBuf, mode: u32 },
    Link { from: PathBuf, to: PathBuf },
    Write { path: PathBuf, text: String, access: Access },
}

/// Who may read a file that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, for a file of ours.
    Everybody,
    /// Its owner: it may hold what containerd's configuration holds, such as a registry's password.
    Owner,
    /// Whoever could read it before; the owner alone if there was no such file.
    AsBefore,
}

/// Installs the bundle that this executable is part of.
pub fn install(layout: &Layout, dry_run: bool) -> Result<()> {
    let executable = std::env::current_exe().context("cannot find the path of this command")?;
    let bundle = executable.parent().and_then(Path::parent).context("this command is not inside a bundle")?;
    let steps = plan(bundle, layout)?;
    if steps.is_empty() {
        println!("Bulkhead is installed in {PREFIX}; nothing to do.");
        if !dry_run {
            // The node's kernel may be another than at the installation.
            crate::template::ensure(layout);
        }
        return Ok(());
    }
    for step in &steps {
        println!("{}{}", if dry_run { "would " } else { "" }, describe(step));
        if !dry_run {
            carry_out(step)?;
        }
    }
    if !dry_run {
        crate::template::ensure(layout);
        println!("Installed. Restart containerd to load the runtime, then run `bulkhead check`.");
    }
    Ok(())
}

/// What has to change on the node for the bundle to be installed.
fn plan(bundle: &Path, layout: &Layout) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (name, mode) in FILES {
        let (from, to) = (bundle.join(name), layout.installed(name));
        if !from.is_file() {
            bail!("{} is missing: run this command from an unpacked bundle (bulkhead-*.tar.gz)", from.display());
        }
        if from != to && !same_content(&from, &to)? {
            steps.push(Step::Copy { from, to, mode });
        }
    }

    let (link, target) = (layout.shim_link(), Path::new(PREFIX).join("bin").join(SHIM));
    if fs::read_link(&link).ok().as_deref() != Some(&target) {
        steps.push(Step::Link { from: link, to: target });
    }

    let earlier = Record::load(layout)?;
    let mut record = earlier.clone().unwrap_or_default();
    if read(&layout.config())?.is_none() {
        steps.push(Step::Write { path: layout.config(), text: CONFIG.into(), access: Access::Everybody });
        record.config_written = Some(CONFIG.into());
    }

    let path = layout.containerd_config();
    let present = read(&path)?;
    let text = present.clone().unwrap_or_default();
    let wanted = containerd::with_runtime(&text).with_context(|| path.display().to_string())?;
    if earlier.is_none() {
        record.containerd_before = present;
    }
    let edit = wanted != text;
    if edit || earlier.is_none() {
        record.containerd_after.clone_from(&wanted);
    }
    // The record comes first: what it describes can be undone even if the edit never happens.
    if read(&layout.record())? != Some(record.text()) {
        steps.push(Step::Write { path: layout.record(), text: record.text(), access: Access::Owner });
    }
    if edit {
        // Before the edit: should this process end between the two, one restart too many does no harm.
        steps.push(Step::Write { path: layout.restart_needed(), text: String::new(), access: Access::Owner });
        steps.push(Step::Write { path, text: wanted, access: Access::AsBefore });
    }
    Ok(steps)
}

fn describe(step: &Step) -> String {
    match step {
        Step::Copy { to, .. } => format!("write {}", to.display()),
        Step::Link { from, to } => format!("link {} to {}", from.display(), to.display()),
        Step::Write { path, .. } => format!("write {}", path.display()),
    }
}

fn carry_out(step: &Step) -> Result<()> {
    match step {
        Step::Copy { from, to, mode } => replace(to, |scratch| {
            fs::copy(from, scratch)?;
            fs::set_permissions(scratch, fs::Permissions::from_mode(*mode))
        }),
        Step::Link { from, to } => replace(from, |scratch| symlink(to, scratch)),
        Step::Write { path, text, access } => write(path, text, *access),
    }
}

/// Writes a file whole or not at all. A link is followed: the operator keeps the file elsewhere.
pub fn write(path: &Path, text: &str, access: Access) -> Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let before = fs::metadata(&path).ok().filter(|_| access == Access::AsBefore);
    let mode = match (access, &before) {
        (Access::Everybody, _) => 0o644,
        (_, Some(before)) => before.mode() & 0o777,
        (_, None) => 0o600,
    };
    replace(&path, |scratch| {
        // The mode comes with the file: nobody reads it in between.
        let mut file = fs::File::options().write(true).create_new(true).mode(mode).open(scratch)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(before) = &before {
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
        file.write_all(text.as_bytes())
    })
}

/// Puts a new file in place of `path`, whole or not at all, also after a power cut.
fn replace(path: &Path, make: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    let place = || format!("cannot write {}", path.display());
    let parent = path.parent().with_context(place)?;
    fs::create_dir_all(parent).with_context(place)?;
    let name = path.file_name().with_context(place)?.to_string_lossy().into_owned();
    let scratch = parent.join(format!(".{name}.new"));
    match fs::remove_file(&scratch) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(place),
        _ => {}
    }
    make(&scratch)
        .and_then(|()| if scratch.is_symlink() { Ok(()) } else { fs::File::open(&scratch)?.sync_all() })
        .and_then(|()| fs::rename(&scratch, path))
        .and_then(|()| fs::File::open(parent)?.sync_all())
        .inspect_err(|_| {
            fs::remove_file(&scratch).ok();
        })
        .with_context(place)
}

fn same_content(left: &Path, right: &Path) -> Result<bool> {
    let length = |path: &Path| fs::metadata(path).map(|data| data.len()).ok();
    if length(left) != length(right) {
        return Ok(false);
    }
    let content = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    Ok(content(left)? == content(right)?)
}

/// A file's text; `None` if there is no such file.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
