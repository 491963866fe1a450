//! Mount stacks of containerd 2.2 and later: image layers, and a last entry that says what to make of them. Pure.
//!
//! ```text
//! ext4 <image> rw,loop                      what the container writes to; first, if at all
//! erofs <blob> ro,loop[,device=<blob>…]     a layer each, top first
//! format/mkdir/overlay                      lowerdir={{ overlay 1 4 }}, upperdir={{ mount 0 }}/upper, …
//! ```
//!
//! `{{ mount 0 }}` is where the first entry would be mounted. Only the forms that containerd's erofs snapshotter writes are
//! understood. Everything else is refused by name: containerd mounts nothing of what this shim claims (`-info`), whichever snapshotter
//! it is of.

use super::super::Mount;
use super::super::spec::{SpecError, shown};
use agent_protocol::MAX_LAYERS;
use std::path::{Path, PathBuf};

/// A root filesystem of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct LayerStack {
    /// Top first. None: it is what `upper` has.
    pub lower: Vec<LayerFile>,
    pub upper: Upper,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct LayerFile {
    pub blob: PathBuf,
    /// Files with the content that `blob` only describes.
    pub devices: Vec<PathBuf>,
}

/// Where a container writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Upper {
    /// Nowhere.
    None,
    /// The snapshot's own directory.
    Directory(PathBuf),
    /// A file with an ext4 that containerd made, whose directory `upper` takes it.
    Image(PathBuf),
}

pub(super) fn parse(mounts: &[Mount]) -> Result<LayerStack, SpecError> {
    let (last, entries) = mounts.split_last().ok_or_else(|| unknown(mounts))?;
    let (image, layers) = match entries.split_first() {
        Some((first, rest)) if matches!(first.kind.as_str(), "ext4" | "mkfs/ext4") => (Some(image(first)?), rest),
        _ => (None, entries),
    };
    if let Some(other) = layers.iter().find(|mount| mount.kind != "erofs") {
        return Err(refused(other, "it is not known in a stack of mounts"));
    }
    let lower = layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    if lower.len() > MAX_LAYERS {
        return Err(refused(last, &format!("{} layers are more than {MAX_LAYERS}", lower.len())));
    }
    let upper = match (last.kind.as_str(), image) {
        ("format/mkdir/overlay" | "format/overlay", image) if !lower.is_empty() => overlay(last, lower.len(), image)?,
        ("format/mkdir/bind", Some(image)) if lower.is_empty() => written_alone(last, image)?,
        ("format/bind", None) if lower.len() == 1 => view(last)?,
        _ => return Err(unknown(mounts)),
    };
    Ok(LayerStack { lower, upper })
}

/// A layer. By itself, it is a whole root filesystem to be read.
pub(super) fn layer(mount: &Mount) -> Result<LayerFile, SpecError> {
    let (mut read_only, mut devices) = (false, Vec::new());
    for option in &mount.options {
        match option.split_once('=') {
            None if option == "ro" => read_only = true,
            None if option == "loop" => {}
            Some(("device", path)) if Path::new(path).is_absolute() => devices.push(PathBuf::from(path)),
            Some(("X-containerd.dmverity", _)) => {
                return Err(refused(mount, "the guest cannot verify layers: set dmverity_mode to \"off\""));
            }
            _ => return Err(refused_option(mount, option)),
        }
    }
    if !read_only {
        return Err(refused(mount, "it lacks the option ro"));
    }
    if devices.len() > MAX_LAYERS {
        return Err(refused(mount, &format!("{} devices are more than {MAX_LAYERS}", devices.len())));
    }
    Ok(LayerFile { blob: mount.source.clone(), devices })
}

/// containerd makes the image: what it should have been made like is its own business.
fn image(mount: &Mount) -> Result<PathBuf, SpecError> {
    let known = |option: &str| match option.split_once('=') {
        None => ["rw", "loop"].contains(&option),
        Some((key, value)) if mount.kind == "mkfs/ext4" => match key {
            "X-containerd.mkfs.fs" => value == "ext4",
            "X-containerd.mkfs.size" => value.parse::<u64>().is_ok(),
            "X-containerd.mkfs.uuid" => true,
            _ => false,
        },
        Some(_) => false,
    };
    match mount.options.iter().find(|option| !known(option)) {
        Some(option) => Err(refused_option(mount, option)),
        None => Ok(mount.source.clone()),
    }
}

/// An overlay of all layers, over which the image lies or a directory of the node, if anything does.
fn overlay(mount: &Mount, layers: usize, image: Option<PathBuf>) -> Result<Upper, SpecError> {
    if mount.source != Path::new("overlay") {
        return Err(refused(mount, "its source is not \"overlay\""));
    }
    let first = usize::from(image.is_some());
    let lower = match layers {
        1 => format!("lowerdir={{{{ mount {first} }}}}"),
        _ => format!("lowerdir={{{{ overlay {first} {} }}}}", first + layers - 1),
    };
    let (mut has_lower, mut upper, mut work) = (false, None, None);
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", _)) if *option == lower && !has_lower => has_lower = true,
            Some(("upperdir", path)) if upper.is_none() => upper = Some(path),
            Some(("workdir", path)) if work.is_none() => work = Some(path),
            Some(("X-containerd.mkdir.path", UPPER_MADE | WORK_MADE)) if image.is_some() => {}
            // What the guest's kernel does anyway.
            Some(("index", "off")) => {}
            _ => return Err(refused_option(mount, option)),
        }
    }
    let of_node = |path: &str| Path::new(path).is_absolute() && !path.contains("{{");
    match (image, upper, work) {
        _ if !has_lower => Err(refused(mount, "it lacks the option lowerdir")),
        (Some(image), Some(UPPER), Some(WORK)) => Ok(Upper::Image(image)),
        (None, Some(upper), Some(work)) if of_node(upper) && of_node(work) => Ok(Upper::Directory(upper.into())),
        (None, None, None) => Ok(Upper::None),
        _ => Err(refused(mount, "its upperdir and workdir do not belong to the rest of its stack")),
    }
}

const UPPER: &str = "{{ mount 0 }}/upper";
const WORK: &str = "{{ mount 0 }}/work";
const UPPER_MADE: &str = "{{ mount 0 }}/upper:0755";
const WORK_MADE: &str = "{{ mount 0 }}/work:0755";

/// A root filesystem of an image without layers.
fn written_alone(mount: &Mount, image: PathBuf) -> Result<Upper, SpecError> {
    if mount.source != Path::new(UPPER) {
        return Err(refused(mount, "its source is not the directory upper of its stack's image"));
    }
    let known = |option: &str| match option.split_once('=') {
        None => ["rw", "rbind"].contains(&option),
        Some((key, value)) => key == "X-containerd.mkdir.path" && value == UPPER_MADE,
    };
    match mount.options.iter().find(|option| !known(option)) {
        Some(option) => Err(refused_option(mount, option)),
        None => Ok(Upper::Image(image)),
    }
}

/// One layer, to be read.
fn view(mount: &Mount) -> Result<Upper, SpecError> {
    if mount.source != Path::new("{{ mount 0 }}") {
        return Err(refused(mount, "its source is not the layer of its stack"));
    }
    match mount.options.iter().find(|option| !["ro", "rbind"].contains(&option.as_str())) {
        Some(option) => Err(refused_option(mount, option)),
        None if !mount.options.iter().any(|option| option == "ro") => Err(refused(mount, "it lacks the option ro")),
        None => Ok(Upper::None),
    }
}

fn refused(mount: &Mount, reason: &str) -> SpecError {
    SpecError::Rootfs(format!("mount {:?} of {}: {reason}", mount.kind, shown(&mount.source.to_string_lossy())))
}

fn refused_option(mount: &Mount, option: &str) -> SpecError {
    refused(mount, &format!("the option {} is not supported there", shown(option)))
}

fn unknown(mounts: &[Mount]) -> SpecError {
    let kinds: Vec<_> = mounts.iter().map(|mount| shown(&mount.kind)).collect();
    SpecError::Rootfs(format!("a stack of mounts ({}) is not supported", kinds.join(", ")))
}

#[cfg(test)]
mod tests;
