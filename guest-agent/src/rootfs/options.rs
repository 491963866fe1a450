//! Mount options of a disk: those of containerd's snapshotters, each known here.

use crate::error::Error;
use nix::mount::MsFlags;

/// What mount(2) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    pub flags: MsFlags,
    /// For the filesystem itself, comma-separated.
    pub data: String,
}

impl MountOptions {
    pub fn parse(options: &[String]) -> Result<Self, Error> {
        let mut flags = MsFlags::empty();
        let mut data = Vec::new();
        for option in options.iter().flat_map(|option| option.split(',')) {
            match option {
                // The loop device was the node's way to mount a file; here it is a disk.
                "" | "loop" | "rw" | "defaults" => {}
                "ro" => flags |= MsFlags::MS_RDONLY,
                "nosuid" => flags |= MsFlags::MS_NOSUID,
                "nodev" => flags |= MsFlags::MS_NODEV,
                "noexec" => flags |= MsFlags::MS_NOEXEC,
                "noatime" => flags |= MsFlags::MS_NOATIME,
                "relatime" => flags |= MsFlags::MS_RELATIME,
                "discard" | "nodiscard" | "nouuid" | "noload" | "norecovery" => data.push(option),
                other => return Err(Error::invalid("mount option", other, "it is not known for a root filesystem")),
            }
        }
        Ok(Self { flags, data: data.join(",") })
    }

    /// The same for a read-only mount that leaves the journal alone, where the filesystem has one.
    pub fn without_replay(&self, filesystem: &str) -> Option<Self> {
        let option = match filesystem {
            "ext4" => "noload",
            "xfs" => "norecovery",
            _ => return None,
        };
        let separator = if self.data.is_empty() { "" } else { "," };
        let read_only = self.flags.contains(MsFlags::MS_RDONLY);
        read_only.then(|| Self { flags: self.flags, data: format!("{}{separator}{option}", self.data) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<MountOptions, Error> {
        MountOptions::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let options = parse(&["loop", "ro,noatime", "nouuid", "discard"]).unwrap();
        assert_eq!(options.flags, MsFlags::MS_RDONLY | MsFlags::MS_NOATIME);
        assert_eq!(options.data, "nouuid,discard");
    }

    #[test]
    fn only_a_read_only_mount_goes_without_its_journal() {
        let data =
            |options: &[&str], filesystem| parse(options).unwrap().without_replay(filesystem).map(|made| made.data);
        assert_eq!(data(&["ro", "nouuid"], "xfs").as_deref(), Some("nouuid,norecovery"));
        assert_eq!(data(&["ro"], "ext4").as_deref(), Some("noload"));
        assert_eq!(data(&["ro"], "erofs"), None);
        assert_eq!(data(&[], "ext4"), None);
    }

    #[test]
    fn an_unknown_option_is_named() {
        let error = parse(&["ro", "journal_path=/dev/vda"]).unwrap_err();
        assert!(error.to_string().contains("journal_path=/dev/vda"), "{error}");
    }
}
