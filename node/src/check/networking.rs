//! What a pod's interface needs of the node's kernel: a tap, and a redirection between the two (`ingress`, `u32`, `mirred`).

use super::Finding;
use crate::layout::Layout;
use std::fs;
use std::path::Path;

const TAP: &str = "/dev/net/tun";

/// The kernel loads them when the first pod asks for them.
const MODULES: [&str; 4] = ["tun", "sch_ingress", "cls_u32", "act_mirred"];

pub(super) fn check(layout: &Layout) -> Finding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    find(layout, release.map_err(|error| format!("the kernel's release is not known: {error}"))?.trim())
}

fn find(layout: &Layout, release: &str) -> Finding {
    let loaded = |module: &&str| layout.at("/sys/module").join(module).is_dir();
    let unloaded: Vec<&str> = MODULES.into_iter().filter(|module| !loaded(module)).collect();
    let directory = Path::new("/lib/modules").join(release);
    let list = |name: &str| fs::read_to_string(layout.at(directory.join(name))).ok();
    let lists: Vec<String> = ["modules.builtin", "modules.dep"].into_iter().filter_map(list).collect();
    let missing: Vec<&str> =
        unloaded.iter().copied().filter(|module| !lists.iter().any(|list| names(list, module))).collect();
    if !lists.is_empty() && !missing.is_empty() {
        return Err(format!(
            "this kernel ({release}) lacks {}: install the package with the rest of its modules (such as \
             kernel-modules-extra or linux-modules-extra), or use a kernel that has them",
            missing.join(", ")
        ));
    }
    if !layout.at(TAP).exists() {
        return Err(format!("{TAP} is missing: load the module tun, at each boot (/etc/modules-load.d)"));
    }
    Ok(match (lists.is_empty(), unloaded.as_slice()) {
        (false, _) | (true, []) => format!("{TAP} and the kernel's {}", MODULES[1..].join(", ")),
        // A kernel that was built without modules has no such directory.
        (true, unloaded) => {
            format!("{TAP}; {} must be built in, as {} is not there", unloaded.join(", "), directory.display())
        }
    })
}

/// Whether a list of module files has a module: `kernel/net/sched/cls_u32.ko.xz: …`.
fn names(list: &str, module: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_") == module
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTIN: &str = "kernel/net/sched/sch_ingress.ko\n";
    const LOADABLE: &str = "kernel/drivers/net/tun.ko.xz:\nkernel/net/sched/cls-u32.ko.zst: kernel/net/x.ko.zst\n";

    /// A node with a kernel 6.1, and files that hold something.
    fn node(files: &[(&str, &str)]) -> (tempfile::TempDir, Finding) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        for (path, text) in files {
            let path = layout.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let finding = find(&layout, "6.1");
        (root, finding)
    }

    #[test]
    fn a_module_is_there_loaded_built_in_or_loadable() {
        let (_root, finding) = node(&[
            (TAP, ""),
            ("/sys/module/act_mirred/refcnt", "0"),
            ("/lib/modules/6.1/modules.builtin", BUILTIN),
            ("/lib/modules/6.1/modules.dep", LOADABLE),
        ]);
        assert_eq!(finding, Ok("/dev/net/tun and the kernel's sch_ingress, cls_u32, act_mirred".into()));
    }

    #[test]
    fn a_kernel_without_a_module_is_told_with_the_modules_name() {
        let files = [(TAP, ""), ("/lib/modules/6.1/modules.dep", LOADABLE)];
        let problem = node(&files).1.unwrap_err();
        assert!(problem.starts_with("this kernel (6.1) lacks sch_ingress, act_mirred: install"), "{problem}");
        let other = [(TAP, ""), ("/lib/modules/6.0/modules.builtin", BUILTIN)];
        assert!(node(&other).1.unwrap().contains("/lib/modules/6.1 is not there"));
    }

    #[test]
    fn a_missing_device_is_told_with_what_makes_it() {
        let modules = ["tun", "sch_ingress", "cls_u32", "act_mirred"].map(|name| format!("/sys/module/{name}/refcnt"));
        let mut files: Vec<_> = modules.iter().map(|path| (path.as_str(), "0")).collect();
        assert!(node(&files).1.unwrap_err().starts_with("/dev/net/tun is missing: load the module tun"));
        files.push((TAP, ""));
        assert_eq!(node(&files).1, Ok("/dev/net/tun and the kernel's sch_ingress, cls_u32, act_mirred".into()));
    }

    #[test]
    fn a_kernel_without_modules_must_have_them_built_in() {
        let (_root, finding) = node(&[(TAP, "")]);
        let fact =
            "/dev/net/tun; tun, sch_ingress, cls_u32, act_mirred must be built in, as /lib/modules/6.1 is not there";
        assert_eq!(finding, Ok(fact.into()));
    }
}
