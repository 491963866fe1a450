//! How a container's root filesystem gets into the guest: decided by mount type alone, nothing is probed. Pure.

mod stack;

pub(super) use stack::{LayerStack, Upper};

use super::Mount;
use super::mount::{Overlay, TreeOptions};
use super::oci::Root;
use super::spec::SpecError;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootfsPlan {
    /// Mounted on the node, reached through the file server; or layers that become disks, when they turn out to be EROFS.
    Overlay(Overlay),
    /// A directory of the node, reached through the file server.
    Directory { source: PathBuf, options: TreeOptions },
    /// A disk of the guest, mounted there.
    Block { image: PathBuf, read_only: bool, filesystem: String, options: Vec<String> },
    /// Layers of an image: disks of the guest.
    Layers(LayerStack),
}

impl RootfsPlan {
    /// `mounts` is what the snapshotter says; without any, the root is a plain directory (`ctr run --rootfs`).
    pub fn new(mounts: &[Mount], root: Option<&Root>, bundle: &Path) -> Result<Self, SpecError> {
        match mounts {
            [] => {
                let root = root.ok_or_else(|| SpecError::Rootfs("the specification has no root".to_owned()))?;
                let options = TreeOptions { recursive: true, read_only: root.readonly, follows_source: false };
                Ok(Self::Directory { source: bundle.join(&root.path), options })
            }
            [mount] => Self::from_mount(mount),
            mounts => stack::parse(mounts).map(Self::Layers),
        }
    }

    fn from_mount(mount: &Mount) -> Result<Self, SpecError> {
        let has = |option: &str| mount.options.iter().any(|other| other == option);
        let read_only = has("ro");
        let others = |dropped: &[&str]| {
            let kept = mount.options.iter().filter(|option| !dropped.contains(&option.as_str()));
            kept.cloned().collect::<Vec<_>>()
        };
        match mount.kind.as_str() {
            "overlay" => Ok(Self::Overlay(Overlay { read_only, options: others(&["ro", "rw"]) })),
            "bind" => {
                let options = TreeOptions { recursive: has("rbind"), read_only, follows_source: false };
                Ok(Self::Directory { source: mount.source.clone(), options })
            }
            "ext4" | "xfs" => {
                // `loop` is how the node would mount an image file; the guest has a disk.
                let mut options = others(&["loop", "rw"]);
                // Snapshots of one file system have its identity, and XFS mounts an identity once.
                if mount.kind == "xfs" && !has("nouuid") {
                    options.push("nouuid".to_owned());
                }
                let (image, filesystem) = (mount.source.clone(), mount.kind.clone());
                Ok(Self::Block { image, read_only, filesystem, options })
            }
            "erofs" => Ok(Self::Layers(LayerStack { lower: vec![stack::layer(mount)?], upper: Upper::None })),
            kind => Err(SpecError::Rootfs(format!(
                "mount type {kind:?} is not supported: use a snapshotter that gives overlay, bind, ext4, xfs or erofs"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::stack::LayerFile;
    use super::*;

    fn plan(kind: &str, source: &str, options: &[&str]) -> Result<RootfsPlan, SpecError> {
        let options = options.iter().map(ToString::to_string).collect();
        let mount = Mount { kind: kind.into(), source: source.into(), options };
        RootfsPlan::new(&[mount], None, Path::new("/bundle"))
    }

    #[test]
    fn overlays_keep_the_snapshotters_options() {
        let options = ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"];
        let expected = Overlay { read_only: false, options: options.map(str::to_owned).to_vec() };
        assert_eq!(plan("overlay", "overlay", &options).unwrap(), RootfsPlan::Overlay(expected));
    }

    #[test]
    fn a_view_of_one_layer_is_a_read_only_directory() {
        let options = TreeOptions { recursive: true, read_only: true, follows_source: false };
        let expected = RootfsPlan::Directory { source: "/layer".into(), options };
        assert_eq!(plan("bind", "/layer", &["ro", "rbind"]).unwrap(), expected);
    }

    #[test]
    fn filesystem_images_become_disks() {
        let block = |image: &str, read_only, filesystem: &str, options: &[&str]| RootfsPlan::Block {
            image: image.into(),
            read_only,
            filesystem: filesystem.into(),
            options: options.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(plan("ext4", "/s/1.img", &["loop", "rw"]).unwrap(), block("/s/1.img", false, "ext4", &[]));
        assert_eq!(plan("ext4", "/s/1.img", &["loop", "ro"]).unwrap(), block("/s/1.img", true, "ext4", &["ro"]));
        assert_eq!(
            plan("xfs", "/dev/mapper/p", &["nouuid"]).unwrap(),
            block("/dev/mapper/p", false, "xfs", &["nouuid"])
        );
        assert_eq!(
            plan("xfs", "/dev/mapper/p", &["ro"]).unwrap(),
            block("/dev/mapper/p", true, "xfs", &["ro", "nouuid"])
        );
    }

    #[test]
    fn a_view_of_one_erofs_layer_is_a_disk() {
        let lower = vec![LayerFile { blob: "/s/1/layer.erofs".into(), devices: Vec::new() }];
        let expected = RootfsPlan::Layers(LayerStack { lower, upper: Upper::None });
        assert_eq!(plan("erofs", "/s/1/layer.erofs", &["ro", "loop"]).unwrap(), expected);
        let error = plan("erofs", "/s/1/layer.erofs", &["loop"]).unwrap_err().to_string();
        assert!(error.ends_with("it lacks the option ro"), "{error}");
    }

    #[test]
    fn other_types_are_refused_by_name() {
        for kind in ["btrfs", "mkdir/overlay", "format/overlay"] {
            let error = plan(kind, "/layer", &["ro"]).unwrap_err().to_string();
            assert!(error.contains(&format!("{kind:?}")), "{error}");
        }
    }

    #[test]
    fn without_mounts_the_root_is_a_directory() {
        let options = TreeOptions { recursive: true, read_only: false, follows_source: false };
        for (path, source) in [("rootfs", "/bundle/rootfs"), ("/srv/root", "/srv/root")] {
            let root = Root { path: path.into(), ..Root::default() };
            let plan = RootfsPlan::new(&[], Some(&root), Path::new("/bundle")).unwrap();
            assert_eq!(plan, RootfsPlan::Directory { source: source.into(), options });
        }
    }
}
