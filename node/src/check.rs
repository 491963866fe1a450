//! `bulkhead check`: one line for each thing that a pod needs, in plain words.

mod networking;

use crate::containerd;
use crate::install::read;
use crate::layout::{FILES, Layout};
use kvm_ioctls::{Cap, Kvm};
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;

/// What a check found: a fact, or what is wrong and what to do about it.
type Finding = Result<String, String>;

/// Prints every finding; true if all are good.
pub fn check(layout: &Layout) -> bool {
    let (good, report) = report(layout);
    print!("{report}");
    good
}

/// Whether all findings are good, and one line for each.
pub fn report(layout: &Layout) -> (bool, String) {
    let findings = [
        ("hardware virtualization", kvm(layout)),
        ("control groups", cgroups(layout)),
        ("networking", networking::check(layout)),
        ("installed files", files(layout)),
        ("config.toml", config(layout)),
        ("template", Ok(crate::template::summary(layout))),
        ("direct volumes", crate::volume::summary(&layout.direct_volumes())),
        ("containerd", containerd_version(layout)),
        ("containerd's configuration", containerd_config(layout)),
    ];
    let good = findings.iter().all(|(_, finding)| finding.is_ok());
    let line = |(subject, finding): &(&str, Finding)| match finding {
        Ok(fact) => format!("ok    {subject}: {fact}\n"),
        Err(problem) => format!("FAIL  {subject}: {problem}\n"),
    };
    let verdict = if good { "This node can run pods.\n" } else { "This node cannot run pods yet.\n" };
    (good, findings.iter().map(line).chain([verdict.to_owned()]).collect())
}

fn kvm(layout: &Layout) -> Finding {
    // The node's own: a container's device directory is as old as the container.
    let path = CString::new(layout.at("/dev/kvm").into_os_string().into_vec()).map_err(|error| error.to_string())?;
    let kvm = Kvm::new_with_path(path).map_err(|error| kvm_problem(error.errno(), &read_cpuinfo()))?;
    if kvm.get_api_version() != 12 {
        return Err(format!("KVM speaks version {} of its interface; 12 is needed", kvm.get_api_version()));
    }
    let needed = [
        (Cap::Irqchip, "in-kernel interrupt controllers"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::Irqfd, "irqfd"),
        (Cap::UserMemory, "user memory"),
        (Cap::SetTssAddr, "set TSS address"),
        (Cap::ReadonlyMem, "read-only memory slots"),
    ];
    let missing: Vec<&str> =
        needed.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return Err(format!("this kernel's KVM lacks {}: use a newer kernel", missing.join(", ")));
    }
    Ok("/dev/kvm works".into())
}

/// Why `/dev/kvm` does not open, and what the operator can do about it.
fn kvm_problem(errno: i32, cpuinfo: &str) -> String {
    const NOT_FOUND: i32 = 2;
    const NO_DEVICE: i32 = 19;
    const DENIED: i32 = 13;
    let has = |flag: &str| cpuinfo.split_whitespace().any(|word| word == flag);
    match errno {
        DENIED => "/dev/kvm may not be opened: run as root".into(),
        NOT_FOUND | NO_DEVICE if has("svm") => "/dev/kvm is missing: load the module kvm-amd".into(),
        NOT_FOUND | NO_DEVICE if has("vmx") => "/dev/kvm is missing: load the module kvm-intel".into(),
        NOT_FOUND | NO_DEVICE => {
            "/dev/kvm is missing and the processor shows no virtualization: enable it in the firmware, or nested \
             virtualization in the cloud's settings"
                .into()
        }
        _ => format!("/dev/kvm does not open: {}", std::io::Error::from_raw_os_error(errno)),
    }
}

fn read_cpuinfo() -> String {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

fn cgroups(layout: &Layout) -> Finding {
    let path = layout.at("/sys/fs/cgroup/cgroup.controllers");
    let controllers = std::fs::read_to_string(&path).map_err(|_| {
        "version 2 is not mounted on /sys/fs/cgroup: boot with systemd.unified_cgroup_hierarchy=1".to_owned()
    })?;
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !controllers.split_whitespace().any(|c| c == *name))
        .collect();
    if missing.is_empty() {
        Ok("version 2".into())
    } else {
        Err(format!("controllers missing: {}", missing.join(", ")))
    }
}

fn files(layout: &Layout) -> Finding {
    let missing: Vec<&str> =
        FILES.iter().map(|(name, _)| *name).filter(|name| !layout.installed(name).is_file()).collect();
    if !missing.is_empty() {
        return Err(format!("missing below {}: {}; run `bulkhead install`", crate::layout::PREFIX, missing.join(", ")));
    }
    if !layout.shim_link().is_symlink() {
        return Err(format!("{} is missing; run `bulkhead install`", layout.shim_link().display()));
    }
    let version = std::fs::read_to_string(layout.installed("VERSION")).unwrap_or_default();
    Ok(format!("version {}", version.trim()))
}

fn config(layout: &Layout) -> Finding {
    let path = layout.config();
    if !path.exists() {
        return Ok("not there: every setting is at its default".into());
    }
    bulkhead_config::Config::load(Some(&path)).map(|_| path.display().to_string()).map_err(|error| error.to_string())
}

fn containerd_version(layout: &Layout) -> Finding {
    let output = layout.command("containerd").arg("--version").output().ok().filter(|output| output.status.success());
    let output =
        output.ok_or_else(|| "the command `containerd` is not found: install containerd 1.7 or newer".to_owned())?;
    supported_containerd(&String::from_utf8_lossy(&output.stdout))
}

/// Parses `containerd <package> <version> <revision>`.
fn supported_containerd(text: &str) -> Finding {
    let version = text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let mut parts = version.split(['.', '-', '~', '+']).map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= (1, 7) => Ok(format!("version {version}")),
        (Some(_), Some(_)) => Err(format!("version {version} is too old: 1.7 or newer is needed")),
        _ => Err(format!("version not understood: {:?}", text.trim())),
    }
}

fn containerd_config(layout: &Layout) -> Finding {
    let path = layout.containerd_config();
    let text = read(&path).map_err(|error| format!("{error:#}"))?.unwrap_or_default();
    match containerd::has_runtime(&text) {
        Ok(true) => Ok(format!("runtime handler \"{}\"", containerd::HANDLER)),
        Ok(false) => Err(format!("{} does not name the runtime: run `bulkhead install`", path.display())),
        Err(error) => Err(format!("{} {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_versions_of_debian_and_upstream_are_understood() {
        let debian = "containerd github.com/containerd/containerd/v2 2.1.4~ds2 2.1.4~ds2-1";
        assert_eq!(supported_containerd(debian), Ok("version 2.1.4~ds2".into()));
        let upstream = "containerd github.com/containerd/containerd v1.7.24 88bf19b2105c8b17560993bee28a01ddc2f97182";
        assert_eq!(supported_containerd(upstream), Ok("version 1.7.24".into()));
        assert!(supported_containerd("containerd x 1.6.20~ds1 y").unwrap_err().contains("too old"));
        assert!(supported_containerd("").unwrap_err().contains("not understood"));
    }

    #[test]
    fn a_missing_kvm_names_the_module_of_the_processor() {
        assert!(kvm_problem(2, "flags : fpu svm").contains("kvm-amd"));
        assert!(kvm_problem(2, "flags : fpu vmx").contains("kvm-intel"));
        assert!(kvm_problem(2, "flags : fpu").contains("firmware"));
        assert!(kvm_problem(13, "").contains("run as root"));
    }

    #[test]
    fn an_empty_node_fails_every_file_check() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        assert!(files(&layout).unwrap_err().contains("bin/bulkhead-vmm"));
        assert!(containerd_config(&layout).unwrap_err().contains("bulkhead install"));
        assert!(cgroups(&layout).is_err());
    }
}
