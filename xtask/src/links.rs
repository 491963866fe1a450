//! Documents name files that exist: links of Markdown, and paths in backquotes that start at a folder of ours.

use crate::run::{output, workspace};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Fails with every name that leads nowhere.
pub fn check() -> Result<()> {
    let root = workspace();
    let tracked = output(Command::new("git").args(["ls-files", "*.md"]).current_dir(&root))?;
    let folders: Vec<String> = std::fs::read_dir(&root)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| root.join(name).is_dir() && name != "target" && !name.starts_with('.'))
        .collect();
    let mut broken = Vec::new();
    for document in tracked.lines() {
        let text = std::fs::read_to_string(root.join(document))?;
        let beside = root.join(document).parent().unwrap_or(&root).to_path_buf();
        for target in links(&text) {
            if !beside.join(target).exists() {
                broken.push(format!("{document}: link to {target}"));
            }
        }
        for path in paths(&text, &folders) {
            if !root.join(path).exists() && !beside.join(path).exists() {
                broken.push(format!("{document}: `{path}`"));
            }
        }
    }
    if !broken.is_empty() {
        bail!("documents name what does not exist:\n{}", broken.join("\n"));
    }
    Ok(())
}

/// Targets of `[text](target)` inside the repository, without their anchors.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local.map(|target| target.split('#').next().unwrap_or(target))
}

/// What stands in backquotes and starts at one of `folders`; patterns and commands are passed over.
fn paths<'a>(text: &'a str, folders: &'a [String]) -> impl Iterator<Item = &'a str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|path| {
        let plain = !path.contains([' ', '*', '<', '{', '$', '\n', '…']);
        let (first, rest) = path.split_once('/').unwrap_or((path, ""));
        // A built product (`target/…`) is not in the checkout, and neither is `/opt/…`.
        plain && !rest.is_empty() && folders.iter().any(|folder| folder == first) && Path::new(path).is_relative()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_links_are_found_without_anchors() {
        let text = "[a](docs/a.md#top), [b](https://example.org/), [c](#here) and [d](../d.md)";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "../d.md"]);
    }

    #[test]
    fn only_paths_below_our_folders_are_checked() {
        let folders = ["shim".to_owned(), "docs".to_owned()];
        let text = "`shim/src/main.rs`, `shim`, `cat shim/x`, `/opt/shim/x`, `docs/<name>.md`, `bin/x`";
        assert_eq!(paths(text, &folders).collect::<Vec<_>>(), ["shim/src/main.rs"]);
    }
}
