use super::plan::{CAPABILITIES, SYSTEM_CALLS};
use caps::Capability;

#[test]
fn no_call_leaves_the_jail() {
    for call in [
        libc::SYS_open_by_handle_at,
        libc::SYS_name_to_handle_at,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_kill,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_ioctl,
        libc::SYS_bpf,
        libc::SYS_prctl,
    ] {
        assert!(!SYSTEM_CALLS.contains(&call), "call {call}");
    }
}

#[test]
fn no_capability_reaches_beyond_files() {
    for capability in [
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_SYS_CHROOT,
        Capability::CAP_SYS_PTRACE,
        Capability::CAP_NET_ADMIN,
        Capability::CAP_KILL,
        Capability::CAP_SETPCAP,
        Capability::CAP_SYS_RESOURCE,
    ] {
        assert!(!CAPABILITIES.contains(&capability), "{capability}");
    }
}
