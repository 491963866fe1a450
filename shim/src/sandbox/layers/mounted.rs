//! Which file a mounted layer is of, by the kernel's table of mounts.

use super::super::SandboxError;
use super::super::mountinfo::mounts;
use super::blob::{Blob, MAGIC, refused};
use super::loops;
use nix::sys::statfs::{FsType, statfs};
use std::io;
use std::path::{Path, PathBuf};

/// What an EROFS file system was mounted from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Mounted {
    /// The kernel reads the file itself.
    File(PathBuf),
    Loop {
        name: String,
        file: PathBuf,
    },
}

/// The table of mounts, when all directories are EROFS file systems.
pub(super) fn table(directories: &[PathBuf]) -> Result<Option<Vec<u8>>, SandboxError> {
    for directory in directories {
        let found = statfs(directory).map_err(SandboxError::host("look at layer", &directory.display()))?;
        if found.filesystem_type() != FsType(i64::from(MAGIC)) {
            return Ok(None);
        }
    }
    let path = "/proc/self/mountinfo";
    std::fs::read(path).map(Some).map_err(SandboxError::host("read", path))
}

impl Mounted {
    /// `None` when `directory` is no mount, or none of a file.
    pub fn at(directory: &Path, table: &[u8]) -> Option<Self> {
        let source = source(directory, table)?;
        match source.to_str().and_then(|source| source.strip_prefix("/dev/")) {
            None if source.is_absolute() => Some(Self::File(source)),
            None => None,
            Some(name) if loops::is_loop(name) => {
                Some(Self::Loop { name: name.to_owned(), file: loops::backing_file(name)? })
            }
            // A disk of the node, which the pod is not to have whole.
            Some(_) => None,
        }
    }

    pub fn file(&self) -> &Path {
        let (Self::File(file) | Self::Loop { file, .. }) = self;
        file
    }

    /// Opens the layer's file. One that has taken its name meanwhile is refused.
    pub fn open(&self, directory: &Path) -> io::Result<Blob> {
        let blob = Blob::open(self.file())?;
        let same = match self {
            Self::Loop { name, .. } => loops::file_of(name)? == blob.id,
            // The kernel does not tell the file, but the size of the file system on it.
            Self::File(_) => statfs(directory)?.blocks() == blob.blocks,
        };
        if same { Ok(blob) } else { Err(refused("it is not the file that is mounted".to_owned())) }
    }
}

/// What the file system at the mount point `directory` was mounted from, if it is EROFS, mounted whole.
fn source(directory: &Path, table: &[u8]) -> Option<PathBuf> {
    // The last one hides the others.
    let mount = mounts(table).rfind(|mount| mount.point == directory)?;
    let (kind, source) = mount.source?;
    (mount.root == Path::new("/") && kind == b"erofs").then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
90 22 0:50 / /s/1/fs ro,relatime shared:9 - erofs /s/1/layer.erofs ro,user_xattr,acl,cache_strategy=readaround\n\
91 22 7:3 / /s/2/fs ro,relatime shared:9 - erofs /dev/loop3 ro,user_xattr\n\
92 22 0:51 /etc /s/3/fs ro,relatime - erofs /s/3/layer.erofs ro\n\
93 22 0:52 / /s/with\\040blank/fs ro,relatime shared:9 master:1 - erofs /s/with\\040blank/layer.erofs ro\n\
94 22 0:53 / /s/5/fs ro,relatime - ext4 /s/5/layer.ext4 ro\n\
95 22 0:54 / /s/6/fs ro,relatime - erofs /s/6/old.erofs ro\n\
96 22 0:55 / /s/6/fs ro,relatime - erofs /s/6/new.erofs ro\n\
97 22 8:1 / /s/7/fs ro,relatime - erofs /dev/sda1 ro\n\
98 22 0:56 / /s/8/fs ro,relatime - erofs none ro\n\
99 22 0:57 / /s/9";

    #[test]
    fn a_mount_point_leads_to_its_file() {
        let of = |directory: &str| source(Path::new(directory), TABLE);
        assert_eq!(of("/s/1/fs").unwrap(), Path::new("/s/1/layer.erofs"));
        assert_eq!(of("/s/2/fs").unwrap(), Path::new("/dev/loop3"));
        assert_eq!(of("/s/with blank/fs").unwrap(), Path::new("/s/with blank/layer.erofs"));
        assert_eq!(of("/s/6/fs").unwrap(), Path::new("/s/6/new.erofs"), "the last mount is the one that is seen");
    }

    #[test]
    fn what_is_no_whole_erofs_of_a_file_leads_nowhere() {
        for directory in ["/s/3/fs", "/s/5/fs", "/s/7/fs", "/s/8/fs", "/s/9", "/s/1/fs/etc", "/none"] {
            assert_eq!(Mounted::at(Path::new(directory), TABLE), None, "{directory}");
        }
    }

    #[test]
    fn directories_of_other_file_systems_have_no_table() {
        assert!(table(&[PathBuf::from("/proc")]).unwrap().is_none());
        let error = table(&[PathBuf::from("/nonexistent")]).unwrap_err().to_string();
        assert!(error.starts_with("cannot look at layer /nonexistent: "), "{error}");
    }
}
