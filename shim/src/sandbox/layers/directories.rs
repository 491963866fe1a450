//! What an overlay is made of, as the snapshotter's options say it. Pure.

use super::super::mount::Overlay;
use std::path::PathBuf;

/// The directories of an overlay that is nothing but directories.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Directories {
    /// Top first.
    pub lower: Vec<PathBuf>,
    pub upper: Option<PathBuf>,
}

impl Directories {
    /// `None` when an option means more than where the directories are: the guest's overlay could not honour it.
    pub fn of(overlay: &Overlay) -> Option<Self> {
        let (mut lower, mut upper, mut work) = (Vec::new(), None, None);
        for option in &overlay.options {
            match option.split_once('=') {
                // A backslash makes a colon part of a name.
                Some(("lowerdir", list)) if lower.is_empty() && !list.contains('\\') => {
                    lower = list.split(':').map(PathBuf::from).collect();
                }
                Some(("upperdir", path)) if upper.is_none() => upper = Some(PathBuf::from(path)),
                Some(("workdir", path)) if work.is_none() => work = Some(path),
                // What the guest's kernel does anyway.
                Some(("index", "off")) => {}
                _ => return None,
            }
        }
        // `::` separates directories of data from the others.
        let absolute = lower.iter().chain(&upper).all(|path| path.is_absolute());
        let writable = upper.is_some() && work.is_some() && !overlay.read_only;
        let read_only = upper.is_none() && work.is_none();
        (!lower.is_empty() && absolute && (writable || read_only)).then_some(Self { lower, upper })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(read_only: bool, options: &[&str]) -> Option<Directories> {
        let options = options.iter().map(ToString::to_string).collect();
        Directories::of(&Overlay { read_only, options })
    }

    #[test]
    fn a_containers_overlay_has_an_upper_directory_and_a_view_has_none() {
        let made = directories(false, &["workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"]).unwrap();
        assert_eq!(made.lower, [PathBuf::from("/s/2/fs"), PathBuf::from("/s/1/fs")]);
        assert_eq!(made.upper, Some(PathBuf::from("/s/3/fs")));
        assert_eq!(directories(true, &["lowerdir=/s/2/fs:/s/1/fs", "index=off"]).unwrap().upper, None);
    }

    #[test]
    fn options_that_mean_more_leave_the_overlay_to_the_node() {
        for options in [
            &["lowerdir=/a", "userxattr"][..],
            &["lowerdir=/a", "metacopy=on"],
            &["lowerdir=/a", "index=on"],
            &["lowerdir=/a\\:b"],
            &["lowerdir=/a::/data"],
            &["lowerdir=a:b"],
            &["lowerdir=/a", "lowerdir=/b"],
            &["lowerdir+=/a"],
            &["lowerdir=/a", "upperdir=/u"],
            &["upperdir=/u", "workdir=/w"],
            &["lowerdir="],
            &[],
        ] {
            assert_eq!(directories(false, options), None, "{options:?}");
        }
        assert_eq!(directories(true, &["lowerdir=/a", "upperdir=/u", "workdir=/w"]), None);
    }
}
