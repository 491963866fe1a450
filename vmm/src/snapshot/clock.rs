//! What KVM holds of a machine besides its vCPUs: the clock that guests read. There are no interrupt controllers but local ones.

use super::codec::{CodecError, Reader, Saved, Writer};
use kvm_bindings::kvm_clock_data;
use kvm_ioctls::VmFd;

#[derive(Debug, thiserror::Error)]
#[error("KVM cannot {0} the guest's clock")]
pub struct ClockError(&'static str, #[source] kvm_ioctls::Error);

/// Nanoseconds since the guest's kernel began, as the paravirtual clock tells them.
#[derive(Clone, Copy, Debug)]
pub struct GuestClock(u64);

impl GuestClock {
    pub fn read(vm: &VmFd) -> Result<Self, ClockError> {
        vm.get_clock().map(|data| Self(data.clock)).map_err(|error| ClockError("read", error))
    }

    /// Lets it go on from where it was, however long ago that is: a guest that finds itself hours later sees every timeout
    /// expire. After the vCPUs have their state, and before one runs.
    pub fn go_on(self, vm: &VmFd) -> Result<(), ClockError> {
        let data = kvm_clock_data { clock: self.0, ..Default::default() };
        vm.set_clock(&data).map_err(|error| ClockError("set", error))
    }
}

impl Saved for GuestClock {
    fn save(&self, writer: &mut Writer) {
        writer.number(self.0);
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        reader.number("the clock").map(Self)
    }
}
