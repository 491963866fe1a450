//! A machine that becomes a template, and machines that are made from one.
//!
//! ```text
//!  save:     vCPUs paused ─► what they asked for is done ─► devices stopped ─► KVM read ─► memory, state written
//!  restore:  memory mapped ─► machine, vCPUs ─► devices started where they stood ─► routes ─► all woken ─► clock ─► run
//! ```
//!
//! Devices stop before vCPUs are read, since their last interrupts go into local APICs. A machine that was saved is spent.

use super::growth::Growth;
use super::setup::{MachineError, Parts, create_vm, give_memory, new_vcpu, root_length, supported_cpuid};
use super::{AttachError, Machine, Vm, memory};
use crate::machine::x86_64::cpuid::{self, Processor};
use crate::machine::x86_64::layout;
use crate::moments::Moments;
use crate::snapshot::clock::{ClockError, GuestClock};
use crate::snapshot::codec::{self, CodecError};
use crate::snapshot::memory::{self as memory_file, MemoryFileError};
use crate::snapshot::pause::PausableVcpu;
use crate::snapshot::state::MachineState;
use crate::snapshot::vcpu::{VcpuError, VcpuState};
use crate::virtio::transport::StateError;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vmm_protocol::{Stage, StopReason};

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("machine was not booted to become a template")]
    NotTemplate,
    #[error("machine has devices that were attached")]
    Attached,
    #[error("machine has stopped: {0:?}")]
    Stopped(StopReason),
    #[error(transparent)]
    Device(#[from] StateError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Clock(#[from] ClockError),
    #[error(transparent)]
    Memory(#[from] MemoryFileError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot write the state file")]
    Write(#[source] io::Error),
    #[error("cannot read the state file")]
    Read(#[source] io::Error),
    #[error("template is of a machine with other devices")]
    Devices,
    #[error("root image is another than the template's")]
    RootImage,
    #[error("machine is to have {wanted} vCPUs, and the template's guest knows of {known}")]
    Vcpus { wanted: u8, known: u8 },
    #[error("cannot wake a device")]
    Wake(#[source] io::Error),
}

/// What a machine keeps that is to be saved.
#[derive(Debug)]
pub struct Template {
    kvm: Kvm,
    vcpus: Vec<PausableVcpu>,
    memory_mib: u32,
}

/// What to make a machine from.
#[derive(Debug)]
pub struct RestoreResources {
    pub kvm: Kvm,
    /// Read-only.
    pub memory: File,
    pub root_image: File,
    /// Write end of a pipe; becomes non-blocking.
    pub console: OwnedFd,
    /// What may come later, whole blocks, in MiB.
    pub growth_mib: u32,
}

/// Reads a state file, which may be anything.
pub fn read_state(file: &File) -> Result<MachineState, SnapshotError> {
    let length = file.metadata().map_err(SnapshotError::Read)?.len();
    let length = usize::try_from(length).ok().filter(|length| *length <= codec::MAX_LENGTH);
    let length = length.ok_or(CodecError::Length(usize::MAX))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0).map_err(SnapshotError::Read)?;
    Ok(codec::decode(&bytes)?)
}

impl Machine {
    /// Starts the vCPUs of a machine that is to be saved. Its main thread must not be confined before that.
    pub fn run_as_template(&mut self, kvm: Kvm, memory_mib: u32) -> io::Result<()> {
        let mut vcpus = Vec::new();
        for vcpu in std::mem::take(&mut self.vcpus) {
            let stop = Arc::clone(&self.stop);
            vcpus.push(PausableVcpu::spawn(vcpu, Arc::clone(&self.exits), move |reason| stop.signal(reason))?);
        }
        self.template = Some(Template { kvm, vcpus, memory_mib });
        Ok(())
    }

    pub fn is_template(&self) -> bool {
        self.template.is_some()
    }

    /// Saves the machine into two empty files. It does not run again, whatever the result.
    pub fn snapshot(&mut self, memory: &File, state: &File) -> Result<(), SnapshotError> {
        let Template { kvm, vcpus, memory_mib } = self.template.take().ok_or(SnapshotError::NotTemplate)?;
        if !self.attached.is_empty() {
            return Err(SnapshotError::Attached);
        }
        let vcpus: Vec<VcpuFd> =
            vcpus.into_iter().map(PausableVcpu::pause).collect::<Result<_, _>>().map_err(SnapshotError::Stopped)?;
        self.exits.catch_up();
        self.service();
        let functions = self.functions.values().map(|function| function.save()).collect::<Result<_, _>>()?;
        // The guest has started none of the others, which is why its command line says so: new ones are as good.
        for vcpu in &vcpus[1..] {
            VcpuState::has_not_run(vcpu)?;
        }
        let told = told(&kvm, Processor { id: 0, count: self.processors })?;
        let content = MachineState {
            memory_mib,
            root_image: self.root_image.clone(),
            processors: self.processors,
            vcpu: VcpuState::read(&kvm, &self.doorbells.0, &vcpus[0], told)?,
            clock: GuestClock::read(&self.doorbells.0)?,
            bus_address: self.bus.address(),
            functions,
            extents: memory_file::save(&self.memory, &layout::ram(u64::from(memory_mib) << 20), memory)?,
        };
        state.write_all_at(&codec::encode(&content)?, 0).map_err(SnapshotError::Write)
    }

    /// Builds a machine that goes on where the saved one was, with as many vCPUs.
    pub fn restore(state: &MachineState, count: u8, resources: RestoreResources) -> Result<Self, SnapshotError> {
        if !(1..=state.processors).contains(&count) {
            return Err(SnapshotError::Vcpus { wanted: count, known: state.processors });
        }
        let mut moments = Moments::default();
        let ram = layout::ram(u64::from(state.memory_mib) << 20);
        let memory = memory::guest_memory(&ram).map_err(MachineError::from)?;
        memory_file::map(&memory, &resources.memory, &state.extents)?;
        // The mapping holds it.
        drop(resources.memory);
        let growth = Growth::new(&ram, resources.growth_mib);
        let memory = memory::and_growth(memory, growth.addresses()).map_err(MachineError::from)?;
        moments.note(Stage::Memory);
        let root_length = root_length(&resources.root_image)?;

        let vm = create_vm(&resources.kvm)?;
        let (regions, root_image) =
            give_memory(&vm, &memory, &growth.images(&ram), (&resources.root_image, root_length))?;
        if root_image != state.root_image {
            return Err(SnapshotError::RootImage);
        }
        let vcpus = vcpus(&resources.kvm, &vm, state, count)?;
        moments.note(Stage::Kvm);
        let parts = Parts {
            vm: Arc::clone(&vm),
            vcpus,
            memory,
            growth,
            regions,
            root_image,
            console: resources.console,
            debug_serial: false,
            processors: count,
            moments,
        };
        let mut machine = Self::assemble(parts)?;
        machine.restore_devices(state)?;
        state.clock.go_on(&vm)?;
        machine.moments.note(Stage::Restored);
        Ok(machine)
    }

    /// Starts the devices where they were, once their interrupts have somewhere to go.
    fn restore_devices(&self, state: &MachineState) -> Result<(), SnapshotError> {
        if self.functions.len() != state.functions.len() {
            return Err(SnapshotError::Devices);
        }
        // Both in the order of slots; each looks whether it is the saved one.
        for (function, saved) in self.functions.values().zip(&state.functions) {
            function.restore(saved, &self.doorbells)?;
        }
        self.bus.set_address(state.bus_address);
        self.interrupts.apply().map_err(|error| MachineError::Device(AttachError::Interrupts(error)))?;
        for function in self.functions.values() {
            function.wake().map_err(SnapshotError::Wake)?;
        }
        Ok(())
    }
}

/// What a vCPU is told that it is, on this node.
fn told(kvm_device: &Kvm, processor: Processor) -> Result<Vec<kvm_cpuid_entry2>, MachineError> {
    let supported = supported_cpuid(kvm_device)?;
    Ok(cpuid::normalize(&supported, processor, kvm_device.check_extension(Cap::TscDeadlineTimer)))
}

/// The saved vCPU, on a node whose processor is the saved one's, and new ones.
fn vcpus(kvm_device: &Kvm, vm: &Vm, state: &MachineState, count: u8) -> Result<Vec<VcpuFd>, SnapshotError> {
    let told = |id| told(kvm_device, Processor { id, count: state.processors });
    let told_first = told(0)?;
    if told_first != state.vcpu.cpuid {
        return Err(VcpuError::Processor.into());
    }
    let mut vcpus = vec![new_vcpu(vm, 0, &told_first)?];
    for id in 1..count {
        vcpus.push(new_vcpu(vm, id, &told(id)?)?);
    }
    state.vcpu.write(&vcpus[0])?;
    // At once: KVM takes values written within a second for those of one counter.
    for vcpu in &vcpus[1..] {
        state.vcpu.write_time(vcpu)?;
    }
    Ok(vcpus)
}

#[cfg(test)]
mod tests;
