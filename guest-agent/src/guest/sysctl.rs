//! Kernel settings that are the pod's: they are made in the guest itself, whose network and IPC its containers share.

use crate::error::Error;
use std::path::{Path, PathBuf};

/// Names are dotted, as in `net.ipv4.ip_forward`.
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let path = path(name).ok_or_else(|| Error::invalid("sysctl", name, "it is no name of a sysctl"))?;
    std::fs::write(path, value).map_err(Error::system("set the sysctl", name))
}

/// None: not a name.
fn path(name: &str) -> Option<PathBuf> {
    let part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-/".contains(&byte))
    };
    // A dot within a part, as in an interface's name, is spelled as a slash: the other way round in the path.
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let relative = || name.chars().map(swap).collect::<String>();
    let hidden = |relative: &str| relative.split('/').any(|part| part.starts_with('.'));
    (name.split('.').all(part) && !hidden(&relative())).then(|| Path::new("/proc/sys").join(relative()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        assert_eq!(path("kernel.shmmax"), Some("/proc/sys/kernel/shmmax".into()));
        let vlan = "/proc/sys/net/ipv4/conf/eth0.100/forwarding";
        assert_eq!(path("net.ipv4.conf.eth0/100.forwarding"), Some(vlan.into()));
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["", ".", "net..x", "net.", "net.a b", "net.\0", "net.//.x", "/", "//.etc"] {
            assert_eq!(path(name), None, "{name:?}");
        }
    }
}
