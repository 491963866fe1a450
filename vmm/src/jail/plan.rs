//! What entering the jail takes, as data: the order of the steps is the point of it.

use super::JailError;
use crate::control::MOST_LEFT_BEHIND;
use crate::pci::SLOTS;
use crate::virtio::block::MAX_QUEUES;
use nix::sched::CloneFlags;
use nix::sys::resource::Resource;
use nix::unistd::{Gid, Uid};
use std::fmt;
use vmm_protocol::{Jail, MAX_VCPUS};

/// Most threads of the pod's user.
const MAX_THREADS: u64 = 256;

/// vCPUs; devices, all of them disks; reapers, and devices that were left behind; the main thread, and one that KVM makes
/// for itself.
const _: () = {
    let disks = SLOTS as u64 * MAX_QUEUES as u64;
    let left_behind = MOST_LEFT_BEHIND as u64 * (MAX_QUEUES as u64 + 1);
    assert!(MAX_VCPUS as u64 + disks + left_behind + 2 <= MAX_THREADS);
};

/// Most open descriptors: a stream per connection to the guest, and a few per device.
const MAX_DESCRIPTORS: u64 = 4096;

/// One change to the process that cannot be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Leaves the host's namespaces of these kinds.
    Unshare(CloneFlags),
    /// Keeps what is mounted from now on away from the host.
    IsolateMounts,
    /// Replaces the root by an empty file system that nothing can be added to, and lets go of the old one.
    EmptyRoot,
    Limit(Resource, u64),
    /// Gives up ever gaining a capability; needs one itself.
    DropBoundingCapabilities,
    DropGroups,
    BecomeGroup(Gid),
    BecomeUser(Uid),
    /// Clears the permitted, effective, inheritable and ambient sets.
    DropCapabilities,
    /// Keeps other processes of the same user out; changing the user resets it.
    ForbidTracing,
    ForbidNewPrivileges,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unshare(_) => formatter.write_str("leave the host's namespaces"),
            Self::IsolateMounts => formatter.write_str("isolate mounts"),
            Self::EmptyRoot => formatter.write_str("replace the root by an empty one"),
            Self::Limit(resource, value) => write!(formatter, "limit {resource:?} to {value}"),
            Self::DropBoundingCapabilities => formatter.write_str("empty the bounding set of capabilities"),
            Self::DropGroups => formatter.write_str("leave all supplementary groups"),
            Self::BecomeGroup(gid) => write!(formatter, "become group {gid}"),
            Self::BecomeUser(uid) => write!(formatter, "become user {uid}"),
            Self::DropCapabilities => formatter.write_str("drop all capabilities"),
            Self::ForbidTracing => formatter.write_str("forbid tracing"),
            Self::ForbidNewPrivileges => formatter.write_str("forbid new privileges"),
        }
    }
}

/// The steps into the jail of one pod, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailPlan {
    steps: Vec<Step>,
}

impl JailPlan {
    pub fn new(jail: &Jail) -> Result<Self, JailError> {
        let (uid, gid) = (Uid::from_raw(jail.uid), Gid::from_raw(jail.gid));
        // The last number means "no change" to the kernel.
        if uid.is_root() || gid.as_raw() == 0 || jail.uid == u32::MAX || jail.gid == u32::MAX {
            return Err(JailError::User { uid: jail.uid, gid: jail.gid });
        }
        let namespaces =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        Ok(Self {
            steps: vec![
                Step::Unshare(namespaces),
                Step::IsolateMounts,
                Step::EmptyRoot,
                // A core file would hold the guest's memory.
                Step::Limit(Resource::RLIMIT_CORE, 0),
                Step::Limit(Resource::RLIMIT_NOFILE, MAX_DESCRIPTORS),
                Step::Limit(Resource::RLIMIT_NPROC, MAX_THREADS),
                Step::DropBoundingCapabilities,
                Step::DropGroups,
                Step::BecomeGroup(gid),
                Step::BecomeUser(uid),
                Step::DropCapabilities,
                Step::ForbidTracing,
                Step::ForbidNewPrivileges,
            ],
        })
    }

    pub fn steps(&self) -> &[Step] {
        &self.steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(wanted: impl Fn(&Step) -> bool) -> usize {
        let plan = JailPlan::new(&Jail { uid: 70001, gid: 70002 }).unwrap();
        plan.steps().iter().position(wanted).unwrap()
    }

    #[test]
    fn root_is_never_the_user_or_group_of_a_jail() {
        for (uid, gid) in [(0, 1), (1, 0), (0, 0), (u32::MAX, 1), (1, u32::MAX)] {
            assert!(matches!(JailPlan::new(&Jail { uid, gid }), Err(JailError::User { .. })), "{uid} {gid}");
        }
    }

    #[test]
    fn the_user_changes_after_everything_that_needs_root() {
        let user = position(|step| *step == Step::BecomeUser(Uid::from_raw(70001)));
        assert!(position(|step| *step == Step::BecomeGroup(Gid::from_raw(70002))) < user);
        assert!(position(|step| *step == Step::DropGroups) < user);
        assert!(position(|step| *step == Step::DropBoundingCapabilities) < user);
        assert!(position(|step| *step == Step::EmptyRoot) < user);
        assert!(position(|step| *step == Step::DropCapabilities) > user);
        assert!(position(|step| *step == Step::ForbidTracing) > user);
    }

    #[test]
    fn mounts_are_isolated_before_the_root_is_replaced() {
        let unshare = position(|step| matches!(step, Step::Unshare(kinds) if kinds.contains(CloneFlags::CLONE_NEWNS)));
        let isolate = position(|step| *step == Step::IsolateMounts);
        assert!(unshare < isolate && isolate < position(|step| *step == Step::EmptyRoot));
    }

    #[test]
    fn the_network_namespace_is_left() {
        position(|step| matches!(step, Step::Unshare(kinds) if kinds.contains(CloneFlags::CLONE_NEWNET)));
    }
}
