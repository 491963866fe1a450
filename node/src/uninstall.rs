//! `bulkhead uninstall`: removes what is ours and restores what we changed.

use crate::containerd;
use crate::install::{Access, read, write};
use crate::layout::{Layout, PREFIX, SHIM};
use crate::record::Record;
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// Refuses while pods run: their VMMs would lose nothing, but nobody could clean up after them.
pub fn uninstall(layout: &Layout, dry_run: bool) -> Result<()> {
    let running = running_pods(layout);
    if running > 0 && !dry_run {
        let pods = if running == 1 { "a pod still runs" } else { "pods still run" };
        bail!("{pods} on this node ({running} in all): remove them first");
    }
    uninstall_from(layout, dry_run)
}

pub fn uninstall_from(layout: &Layout, dry_run: bool) -> Result<()> {
    let Some(record) = Record::load(layout)? else {
        println!("Bulkhead is not installed; nothing to do.");
        return Ok(());
    };
    let act = |what: String, action: &dyn Fn() -> Result<()>| {
        println!("{}{what}", if dry_run { "would " } else { "" });
        if dry_run { Ok(()) } else { action() }
    };

    let path = layout.containerd_config();
    let restart = || write(&layout.restart_needed(), "", Access::Owner);
    match restored(&record, read(&path)?).with_context(|| path.display().to_string())? {
        Restored::Unchanged => {}
        Restored::Text(text) => act(format!("restore {}", path.display()), &|| {
            restart().and_then(|()| write(&path, &text, Access::AsBefore))
        })?,
        Restored::Absent => {
            act(format!("remove {}", path.display()), &|| restart().and_then(|()| remove_file(&path)))?;
        }
    }

    let config = layout.config();
    let untouched = read(&config)?.is_some_and(|text| record.config_written == Some(text));
    if untouched {
        act(format!("remove {}", config.display()), &|| {
            remove_file(&config)?;
            // Fails when an operator keeps more there, which is fine.
            fs::remove_dir(config.parent().unwrap_or(&config)).ok();
            Ok(())
        })?;
    } else if config.exists() {
        println!("kept {}: it was changed since the installation", config.display());
    }

    let link = layout.shim_link();
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(PREFIX).join("bin").join(SHIM)) {
        act(format!("remove {}", link.display()), &|| remove_file(&link))?;
    }
    let volumes = layout.direct_volumes();
    if volumes.exists() {
        // Nobody else knows what they mean.
        act(format!("remove {}", volumes.display()), &|| {
            fs::remove_dir_all(&volumes).with_context(|| format!("cannot remove {}", volumes.display()))
        })?;
    }
    let templates = crate::template::directory(layout);
    if templates.exists() {
        act(format!("remove {}", templates.display()), &|| crate::template::remove(layout))?;
    }
    let prefix = layout.at(PREFIX);
    act(format!("remove {}", prefix.display()), &|| {
        fs::remove_dir_all(&prefix).with_context(|| format!("cannot remove {}", prefix.display()))
    })?;
    if !dry_run {
        println!("Removed. Restart containerd to forget the runtime.");
    }
    Ok(())
}

/// What containerd's configuration should become.
enum Restored {
    Unchanged,
    Text(String),
    Absent,
}

fn restored(record: &Record, present: Option<String>) -> Result<Restored, containerd::ConfigError> {
    let Some(present) = present else { return Ok(Restored::Unchanged) };
    if present == record.containerd_after {
        return Ok(record.containerd_before.clone().map_or(Restored::Absent, Restored::Text));
    }
    // Edited since: take out what is ours and leave the rest.
    let text = containerd::without_runtime(&present)?;
    Ok(if text == present { Restored::Unchanged } else { Restored::Text(text) })
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Pods that have recorded state on the node.
fn running_pods(layout: &Layout) -> usize {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(&layout.at(bulkhead_config::RUN_DIRECTORY).join("pods"))
        .flat_map(|namespace| entries(&namespace).collect::<Vec<_>>())
        .filter(|pod| pod.join("state.json").exists())
        .count()
}
