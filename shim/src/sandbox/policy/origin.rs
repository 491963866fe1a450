//! Other names of what a bind mount shows, from the kernel's table of mounts. Pure.

use crate::sandbox::mountinfo::mounts;
use std::path::{Path, PathBuf};

/// The names that `path`, which lies on the mount `id`, has below the other mounts of the same device. A place that
/// another mount hides is named too.
pub(super) fn other_names(table: &[u8], id: &str, path: &Path) -> Vec<PathBuf> {
    let mounts: Vec<_> = mounts(table).collect();
    let Some(own) = mounts.iter().find(|mount| mount.id == id.as_bytes()) else { return Vec::new() };
    let Ok(rest) = path.strip_prefix(&own.point) else { return Vec::new() };
    let on_device = join(&own.root, rest);
    let others = mounts.iter().filter(|mount| mount.id != own.id && mount.device == own.device);
    others.filter_map(|mount| Some(join(&mount.point, on_device.strip_prefix(&mount.root).ok()?))).collect()
}

/// Without a slash at the end where there is nothing to add.
fn join(path: &Path, rest: &Path) -> PathBuf {
    path.components().chain(rest.components()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / /run rw,nosuid shared:9 - tmpfs tmpfs rw
41 22 254:16 / /data rw shared:12 - xfs /dev/vdb rw
50 22 254:16 /claims/one /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/one/mount rw - xfs /dev/vdb rw
51 22 254:16 /claims/one/sub /var/lib/kubelet/pods/u/volume-subpaths/one/web/0 rw - xfs /dev/vdb rw
52 22 254:0 /etc /var/lib/kubelet/pods/u/volume-subpaths/host/web/0 rw - ext4 /dev/vda rw
53 22 254:0 /srv/a\040b//deleted /var/lib/kubelet/pods/u/volume-subpaths/gone/web/0 rw - ext4 /dev/vda rw
54 22 254:0 /srv/a\040b/file /mnt/file rw - ext4 /dev/vda rw

broken
";

    fn names(id: &str, path: &str) -> Vec<String> {
        let names = other_names(TABLE.as_bytes(), id, Path::new(path));
        names.iter().map(|name| name.display().to_string()).collect()
    }

    #[test]
    fn a_bind_mount_is_found_below_its_source() {
        let place = "/var/lib/kubelet/pods/u/volume-subpaths/host/web/0";
        assert_eq!(names("52", place), ["/etc"]);
        assert_eq!(names("52", &format!("{place}/ssh/key")), ["/etc/ssh/key"]);
    }

    #[test]
    fn it_may_have_several_sources() {
        let place = "/var/lib/kubelet/pods/u/volume-subpaths/one/web/0/x";
        let expected = ["/data/claims/one/sub/x", "/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/one/mount/sub/x"];
        assert_eq!(names("51", place), expected);
    }

    #[test]
    fn names_with_blanks_are_read() {
        assert_eq!(names("54", "/mnt/file"), ["/srv/a b/file"]);
    }

    #[test]
    fn what_the_table_does_not_have_has_no_other_names() {
        assert_eq!(names("99", "/etc"), [""; 0]);
        assert_eq!(names("30", "/run/x"), [""; 0]);
        assert_eq!(names("30", "/etc"), [""; 0]);
    }
}
