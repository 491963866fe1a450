//! Kernel settings, resource limits and cgroup controllers. What fails here is logged and lived without.

use crate::error::Error;
use crate::spec::CGROUP_PARENT;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use std::path::Path;

/// Containers inherit it when their specification says nothing, as on a node with containerd's own unit.
const MAX_OPEN_FILES: u64 = 1 << 20;

const THREADS: &str = "1048576";

/// Some fewer: an agent that gets no thread ends, and the pod with it.
const CONTAINERS_THREADS: &str = "1044480";

const SYSCTLS: [(&str, &str); 8] = [
    // Containers' limits are their cgroups'. The kernel's own defaults shrink with the guest's first memory.
    ("kernel/threads-max", THREADS),
    ("kernel/pid_max", "4194304"),
    // A kernel that has stumbled is not worth keeping: the pod is restarted instead.
    ("kernel/panic_on_oops", "1"),
    // The agent's log lines are not dropped, and warnings reach the console. The first insists on its line end.
    ("kernel/printk_devkmsg", "on\n"),
    ("kernel/printk", "5"),
    // As kubelet sets it on every node: a large reservation is granted, and the cgroup's limit decides. The
    // kernel's own guess would compare with the guest's small memory.
    ("vm/overcommit_memory", "1"),
    // What databases ask for, and nodes are commonly set to.
    ("vm/max_map_count", "262144"),
    // Else a thread of the kernel wakes up twice a second to see how fragmented memory is: most of what an idle guest does.
    ("vm/compaction_proactiveness", "0"),
];

/// The orphans of containers become the agent's children, not PID 1's.
pub(super) fn become_subreaper() -> Result<(), Error> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Error::system("become", "the subreaper"))
}

pub(super) fn apply() {
    for (name, value) in SYSCTLS {
        note(name, std::fs::write(Path::new("/proc/sys").join(name), value));
    }
    // The last one to go when memory is short. Containers get a score of their own.
    note("oom_score_adj", std::fs::write("/proc/self/oom_score_adj", "-1000"));
    note("open files", setrlimit(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES));
    note("processes", setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY));
    enable_controllers(Path::new("/sys/fs/cgroup"));
}

/// Controllers are handed down twice: to the containers' parent and to each container.
fn enable_controllers(root: &Path) {
    let parent = root.join(CGROUP_PARENT);
    note("cgroup", std::fs::create_dir_all(&parent));
    for group in [root, &parent] {
        let controllers = std::fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
        for controller in controllers.split_whitespace() {
            // One at a time: a controller that can't be enabled must not take the others with it.
            note(controller, std::fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")));
        }
    }
    note("pids.max", std::fs::write(parent.join("pids.max"), CONTAINERS_THREADS));
}

fn note<E: std::fmt::Display>(what: &str, result: Result<(), E>) {
    if let Err(error) = result {
        tracing::warn!(what, %error, "cannot set");
    }
}
