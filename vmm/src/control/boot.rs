//! The first request: from a machine description to a running guest.

#![expect(unsafe_code, reason = "KVM's wrapper takes descriptors as numbers")]

use super::channel::{ChannelError, Descriptors};
use crate::jail::{self, ThreadKind};
use crate::machine::{self, Description, Machine, MachineError, Resources, RestoreResources, SnapshotError};
use crate::moments::Moments;
use kvm_ioctls::Kvm;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use vmm_protocol::{MAX_MEMORY_MIB, MAX_VCPUS, MEMORY_BLOCK_MIB, MIN_MEMORY_MIB, Stage, VERSION};

/// The KVM interface that this is written for; it has never changed.
const KVM_API: i32 = 12;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("shim has version {0}, and this VMM {VERSION}")]
    Version(String),
    #[error("machine has {0} vCPUs; 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    #[error("machine has {0} MiB of memory; {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are possible")]
    Memory(u32),
    #[error(
        "machine cannot grow by {0} MiB: whole blocks of {MEMORY_BLOCK_MIB} are possible, {MAX_MEMORY_MIB} in all, for no template"
    )]
    Growth(u32),
    #[error(transparent)]
    Descriptor(#[from] ChannelError),
    #[error("the descriptor for KVM is something else")]
    NotKvm,
    #[error("cannot enter the jail")]
    Jail(#[from] jail::JailError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot restore the template")]
    Restore(#[from] SnapshotError),
    #[error("cannot start the vCPUs")]
    Vcpu(#[source] io::Error),
    #[error("cannot confine the main thread")]
    Confine(#[source] io::Error),
}

/// Boots the machine. From the jail on, this process can only use what it was handed.
pub fn boot(
    request: &vmm_protocol::Machine,
    mut descriptors: Descriptors,
    moments: &mut Moments,
) -> Result<Machine, BootError> {
    let description = validate(request)?;
    let kvm = descriptors.take(request.kvm)?;
    // A machine that is to be saved asks KVM again then.
    let template = request.template.then(|| kvm.try_clone().map(wrap)).transpose().map_err(BootError::Vcpu)?;
    let resources = Resources {
        kvm: wrap(kvm),
        kernel: File::from(descriptors.take(request.kernel)?),
        root_image: File::from(descriptors.take(request.root_image)?),
        console: descriptors.take(request.console)?,
    };
    drop(descriptors);

    jail::enter(&request.jail)?;
    moments.note(Stage::Jail);
    if resources.kvm.get_api_version() != KVM_API {
        return Err(BootError::NotKvm);
    }
    let mut machine = Machine::new(&description, resources)?;
    moments.append(machine.take_moments());
    if let Some(kvm) = template {
        // No tenant's guest ever runs in this process, and saving takes what filters forbid.
        machine.run_as_template(kvm, request.memory_mib).map_err(BootError::Vcpu)?;
        return Ok(machine);
    }
    machine.run().map_err(BootError::Vcpu)?;
    // Last, since the filter of the main thread lets it make no machine and no vCPU. Until here nothing of the guest
    // reaches this thread: devices start from the loop that follows.
    jail::confine_thread(ThreadKind::Main).map_err(BootError::Confine)?;
    moments.note(Stage::Threads);
    Ok(machine)
}

/// Makes the machine from a template. The state is read and parsed in the jail: it could be anything.
pub fn restore(
    request: &vmm_protocol::Restore,
    mut descriptors: Descriptors,
    moments: &mut Moments,
) -> Result<Machine, BootError> {
    check_version(&request.version)?;
    let state = File::from(descriptors.take(request.state)?);
    let resources = RestoreResources {
        kvm: wrap(descriptors.take(request.kvm)?),
        memory: File::from(descriptors.take(request.memory)?),
        root_image: File::from(descriptors.take(request.root_image)?),
        console: descriptors.take(request.console)?,
        growth_mib: request.growth_mib,
    };
    drop(descriptors);

    jail::enter(&request.jail)?;
    moments.note(Stage::Jail);
    if resources.kvm.get_api_version() != KVM_API {
        return Err(BootError::NotKvm);
    }
    let content = machine::read_state(&state)?;
    drop(state);
    check_growth(content.memory_mib, request.growth_mib)?;
    let mut machine = Machine::restore(&content, request.vcpus, resources)?;
    moments.append(machine.take_moments());
    machine.run().map_err(BootError::Vcpu)?;
    // Last, as in `boot`. Devices have started already: their threads have filters of their own.
    jail::confine_thread(ThreadKind::Main).map_err(BootError::Confine)?;
    moments.note(Stage::Threads);
    Ok(machine)
}

/// The wrapper of `/dev/kvm`.
fn wrap(kvm: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is ours, and goes over to the wrapper.
    unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) }
}

fn check_version(version: &str) -> Result<(), BootError> {
    if version == VERSION { Ok(()) } else { Err(BootError::Version(version.to_owned())) }
}

fn check_growth(memory_mib: u32, growth_mib: u32) -> Result<(), BootError> {
    let fits = memory_mib.checked_add(growth_mib).is_some_and(|most| most <= MAX_MEMORY_MIB);
    if fits && growth_mib.is_multiple_of(MEMORY_BLOCK_MIB) { Ok(()) } else { Err(BootError::Growth(growth_mib)) }
}

fn validate(request: &vmm_protocol::Machine) -> Result<Description, BootError> {
    check_version(&request.version)?;
    if !(1..=MAX_VCPUS).contains(&request.vcpus) {
        return Err(BootError::Vcpus(request.vcpus));
    }
    if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&request.memory_mib) {
        return Err(BootError::Memory(request.memory_mib));
    }
    check_growth(request.memory_mib, request.growth_mib)?;
    if request.template && request.growth_mib != 0 {
        return Err(BootError::Growth(request.growth_mib));
    }
    Ok(Description {
        vcpus: request.vcpus,
        memory_mib: request.memory_mib,
        growth_mib: request.growth_mib,
        command_line: request.command_line.clone(),
        debug_serial: request.debug_serial,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_protocol::{FdSlot, Jail};

    fn request() -> vmm_protocol::Machine {
        vmm_protocol::Machine {
            version: VERSION.into(),
            jail: Jail { uid: 70001, gid: 70001 },
            vcpus: 1,
            memory_mib: 128,
            growth_mib: 0,
            command_line: String::new(),
            kvm: FdSlot(0),
            kernel: FdSlot(1),
            root_image: FdSlot(2),
            console: FdSlot(3),
            debug_serial: false,
            template: false,
        }
    }

    #[test]
    fn limits_are_checked() {
        assert!(validate(&request()).is_ok());
        for vcpus in [0, MAX_VCPUS + 1, u8::MAX] {
            assert!(matches!(validate(&vmm_protocol::Machine { vcpus, ..request() }), Err(BootError::Vcpus(_))));
        }
        for memory_mib in [0, MIN_MEMORY_MIB - 1, MAX_MEMORY_MIB + 1, u32::MAX] {
            let machine = vmm_protocol::Machine { memory_mib, ..request() };
            assert!(matches!(validate(&machine), Err(BootError::Memory(_))));
        }
    }

    #[test]
    fn growth_is_whole_blocks_up_to_the_largest_machine() {
        for (growth_mib, template, fits) in [
            (384, false, true),
            (MAX_MEMORY_MIB - 128, false, true),
            (MAX_MEMORY_MIB, false, false),
            (u32::MAX - 1, false, false),
            (3, false, false),
            (384, true, false),
        ] {
            let machine = vmm_protocol::Machine { growth_mib, template, ..request() };
            assert_eq!(validate(&machine).is_ok(), fits, "{growth_mib}");
        }
    }

    #[test]
    fn another_version_is_refused() {
        let machine = vmm_protocol::Machine { version: "0.0.0".into(), ..request() };
        assert!(matches!(validate(&machine), Err(BootError::Version(_))));
    }
}
