//! Whether a guest reads layers as a disk or as memory: by what that costs of its memory. Pure.
//!
//! Of a disk, the guest keeps what it reads. For memory, it keeps a structure for each page, read or not: a 64th of the layers.

use vmm_protocol::{LayerAccess, RateLimit};

/// What a pod has, before more layers come.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Pod {
    /// Bytes of the guest's memory.
    pub memory: u64,
    /// Bytes of layers that are mapped already.
    pub mapped: u64,
    /// Of each disk.
    pub rate: RateLimit,
    /// The operator's word.
    pub may_map: bool,
}

impl Pod {
    /// For layers that are attached together, of so many bytes in all. `can_be_mapped` is whether each of them can.
    pub fn layer_access(&self, bytes: u64, can_be_mapped: bool) -> LayerAccess {
        // Nobody counts what a guest reads of its memory.
        let is_limited = self.rate != RateLimit::default();
        let fits = self.mapped.checked_add(bytes).is_some_and(|bytes| bytes <= self.memory);
        if self.may_map && can_be_mapped && fits && !is_limited {
            LayerAccess::Memory
        } else {
            LayerAccess::Disk { limit: self.rate }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    const NO_LIMIT: RateLimit = RateLimit { bytes_per_second: None, operations_per_second: None };
    const POD: Pod = Pod { memory: 100, mapped: 0, rate: NO_LIMIT, may_map: true };
    const DISK: LayerAccess = LayerAccess::Disk { limit: POD.rate };

    #[test]
    fn layers_up_to_the_pods_memory_are_mapped() {
        assert_eq!(POD.layer_access(100, true), LayerAccess::Memory);
        assert_eq!(POD.layer_access(101, true), DISK);
        assert_eq!(POD.layer_access(u64::MAX, true), DISK);
    }

    #[test]
    fn what_is_mapped_already_counts() {
        let pod = Pod { mapped: 60, ..POD };
        assert_eq!(pod.layer_access(40, true), LayerAccess::Memory);
        assert_eq!(pod.layer_access(41, true), DISK);
        assert_eq!(pod.layer_access(u64::MAX, true), DISK);
    }

    #[test]
    fn layers_that_cannot_be_mapped_are_a_disk() {
        assert_eq!(POD.layer_access(1, false), DISK);
    }

    #[test]
    fn the_operator_may_want_disks() {
        assert_eq!(Pod { may_map: false, ..POD }.layer_access(1, true), DISK);
    }

    #[test]
    fn a_pod_whose_disks_have_a_rate_gets_disks() {
        let limit = RateLimit { operations_per_second: NonZeroU32::new(50), ..RateLimit::default() };
        assert_eq!(Pod { rate: limit, ..POD }.layer_access(1, true), LayerAccess::Disk { limit });
    }
}
