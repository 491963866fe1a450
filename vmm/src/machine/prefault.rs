//! Guest memory that KVM maps before the guest runs.
//!
//! A page that the guest touches first costs it an exit. What is known to be used is cheaper to map at once. This is a
//! matter of speed only: where the host cannot do it, the guest's own accesses do the same later.
#![expect(unsafe_code, reason = "an ioctl that the wrapper does not have")]

use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::VcpuFd;
use std::io;
use std::ops::Range;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

const PAGE: u64 = 4096;

/// Linux 6.11; refused for machines that KVM runs without a second level of page tables.
const KVM_PRE_FAULT_MEMORY: libc::c_ulong = nix::request_code_readwrite!(0xae, 0xd5, size_of::<kvm_pre_fault_memory>());

/// Has KVM map what this process has of these guest addresses.
pub fn map(vcpu: &VcpuFd, range: &Range<u64>) {
    let (start, end) = (range.start - range.start % PAGE, range.end.next_multiple_of(PAGE));
    let mut left = kvm_pre_fault_memory { gpa: start, size: end - start, ..Default::default() };
    while left.size != 0 {
        // SAFETY: the descriptor is a vCPU's, and KVM reads and writes the structure that the request's number says.
        if unsafe { ioctl_with_mut_ref(vcpu, KVM_PRE_FAULT_MEMORY, &mut left) } == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            tracing::debug!(%error, "cannot map guest memory in advance");
            return;
        }
    }
}
