//! A vCPU's state, read from KVM and written to it in the orders that KVM asks for.
//!
//! Reading begins with the run state, since that makes KVM take pending start-up messages, and ends with the events, which
//! the other reads may change. Writing: the special registers hold the address of the local APIC and come before it; the
//! APIC comes before the model-specific registers, since setting it stops its timer; among these the time-stamp counter is
//! first and the timer's deadline, which KVM compares with it, is last and by itself.
#![expect(unsafe_code, reason = "KVM reads as much of XSAVE as the vCPU's features say")]

use super::codec::{CodecError, Reader, Saved, Writer};
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::collections::BTreeMap;

const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// KVM lists fewer than 300.
const MAX_MSRS: usize = 1024;

/// KVM knows two rates as the same within this many parts of a million; the rate of one processor is measured anew at
/// each start of the node.
const TSC_TOLERANCE_PPM: u64 = 250;

#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("KVM cannot {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("processor's extended state is {0} bytes long, and more than 4096 are not saved")]
    ExtendedState(i32),
    #[error("KVM does not take the saved value of model-specific register {0:#x}")]
    Register(u32),
    #[error("guest has started more than its first processor")]
    Started,
    #[error("node's processor is another than that of the saved state")]
    Processor,
    #[error("node's processor counts {now} kHz, and that of the saved state {saved} kHz")]
    Rate { now: u32, saved: u32 },
}

fn kvm<T>(step: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, VcpuError> {
    result.map_err(|error| VcpuError::Kvm(step, error))
}

pub struct VcpuState {
    run_state: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    extended: Box<kvm_xsave>,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    model_specific: Vec<kvm_msr_entry>,
    tsc_khz: u32,
    /// What the guest was told that its processor is.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    events: kvm_vcpu_events,
}

impl std::fmt::Debug for VcpuState {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("VcpuState")
            .field("registers", &self.registers)
            .field("run_state", &self.run_state)
            .finish_non_exhaustive()
    }
}

impl VcpuState {
    /// Reads a vCPU that is not running, and that KVM has left with nothing to complete: `KVM_RUN` was interrupted last.
    /// `cpuid` is what was set at its start: KVM changes parts of it as the guest runs.
    pub fn read(kvm_device: &Kvm, vm: &VmFd, vcpu: &VcpuFd, cpuid: Vec<kvm_cpuid_entry2>) -> Result<Self, VcpuError> {
        // 0: an older KVM, which has no processors with more.
        let extended = vm.check_extension_int(Cap::Xsave2);
        if usize::try_from(extended).is_ok_and(|length| length > size_of::<kvm_xsave>()) {
            return Err(VcpuError::ExtendedState(extended));
        }
        let listed = kvm("list its model-specific registers", kvm_device.get_msr_index_list())?;
        let run_state = kvm("tell the run state", vcpu.get_mp_state())?;
        Ok(Self {
            run_state,
            registers: kvm("read the registers", vcpu.get_regs())?,
            special: kvm("read the special registers", vcpu.get_sregs())?,
            extended: Box::new(kvm("read the extended state", vcpu.get_xsave())?),
            extended_control: kvm("read the extended control registers", vcpu.get_xcrs())?,
            debug: kvm("read the debug registers", vcpu.get_debug_regs())?,
            local_apic: kvm("read the local APIC", vcpu.get_lapic())?,
            model_specific: read_msrs(vcpu, listed.as_slice())?,
            tsc_khz: kvm("tell the rate of the time-stamp counter", vcpu.get_tsc_khz())?,
            cpuid,
            events: kvm("tell the pending events", vcpu.get_vcpu_events())?,
        })
    }

    /// Writes a vCPU that has never run, whose CPUID is set, and whose machine has its interrupt controllers.
    pub fn write(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        self.match_rate(vcpu)?;
        kvm("set the run state", vcpu.set_mp_state(self.run_state))?;
        kvm("set the registers", vcpu.set_regs(&self.registers))?;
        kvm("set the special registers", vcpu.set_sregs(&self.special))?;
        // SAFETY: KVM reads 4096 bytes, or more only on a processor with features that have to be asked for by
        // arch_prctl(2), which nothing here does.
        kvm("set the extended state", unsafe { vcpu.set_xsave(&self.extended) })?;
        kvm("set the extended control registers", vcpu.set_xcrs(&self.extended_control))?;
        kvm("set the debug registers", vcpu.set_debug_regs(&self.debug))?;
        kvm("set the local APIC", vcpu.set_lapic(&self.local_apic))?;
        self.write_msrs(vcpu)?;
        kvm("set the pending events", vcpu.set_vcpu_events(&self.events))
    }

    /// Only what differs from a new vCPU, which is little: KVM also lists registers that it lets nobody write, or writes a line
    /// to the node's log about.
    fn write_msrs(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let indices: Vec<u32> = self.model_specific.iter().map(|entry| entry.index).collect();
        let new: BTreeMap<u32, u64> =
            read_msrs(vcpu, &indices)?.iter().map(|entry| (entry.index, entry.data)).collect();
        let of_time = |index: u32| index == MSR_TSC || index == MSR_TSC_DEADLINE;
        let (time, mut rest): (Vec<_>, Vec<_>) =
            self.model_specific.iter().copied().partition(|entry| of_time(entry.index));
        let (counter, deadline): (Vec<_>, Vec<_>) = time.into_iter().partition(|entry| entry.index == MSR_TSC);
        rest.retain(|entry| new.get(&entry.index) != Some(&entry.data));
        write_msrs(vcpu, &counter)?;
        write_msrs(vcpu, &rest)?;
        write_msrs(vcpu, &deadline)
    }

    /// Gives a new vCPU the time-stamp counter of the saved one.
    pub fn write_time(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        self.match_rate(vcpu)?;
        let counter: Vec<_> = self.model_specific.iter().copied().filter(|entry| entry.index == MSR_TSC).collect();
        write_msrs(vcpu, &counter)
    }

    /// Fails for a vCPU that the guest has started: its state would be lost.
    pub fn has_not_run(vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let run_state = kvm("tell the run state", vcpu.get_mp_state())?;
        if run_state.mp_state == KVM_MP_STATE_UNINITIALIZED { Ok(()) } else { Err(VcpuError::Started) }
    }

    fn match_rate(&self, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let now = kvm("tell the rate of the time-stamp counter", vcpu.get_tsc_khz())?;
        if now == self.tsc_khz {
            return Ok(());
        }
        if u64::from(now.abs_diff(self.tsc_khz)) * 1_000_000 > u64::from(self.tsc_khz) * TSC_TOLERANCE_PPM {
            return Err(VcpuError::Rate { now, saved: self.tsc_khz });
        }
        kvm("set the rate of the time-stamp counter", vcpu.set_tsc_khz(self.tsc_khz))
    }
}

/// Those of the registers that this vCPU has.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuError> {
    let wanted: Vec<_> = indices.iter().map(|index| kvm_msr_entry { index: *index, ..Default::default() }).collect();
    let mut entries = Vec::with_capacity(wanted.len());
    let mut rest = &wanted[..];
    while !rest.is_empty() {
        let mut msrs = wrap(rest)?;
        let count = kvm("read model-specific registers", vcpu.get_msrs(&mut msrs))?.min(rest.len());
        entries.extend_from_slice(&msrs.as_slice()[..count]);
        // KVM stops at one that this vCPU does not have.
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(entries)
}

fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), VcpuError> {
    if entries.is_empty() {
        return Ok(());
    }
    // KVM stops at one that it does not take, and says how far it came.
    let count = kvm("set model-specific registers", vcpu.set_msrs(&wrap(entries)?))?;
    entries.get(count).map_or(Ok(()), |refused| Err(VcpuError::Register(refused.index)))
}

fn wrap(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuError> {
    Msrs::from_entries(entries)
        .map_err(|_| VcpuError::Kvm("hold so many registers", kvm_ioctls::Error::new(libc::E2BIG)))
}

impl Saved for VcpuState {
    fn save(&self, writer: &mut Writer) {
        writer.object(&self.run_state);
        writer.object(&self.registers);
        writer.object(&self.special);
        writer.object(&self.extended.region);
        writer.object(&self.extended_control);
        writer.object(&self.debug);
        writer.object(&self.local_apic);
        writer.list(&self.model_specific, Writer::object);
        writer.object(&self.tsc_khz);
        writer.list(&self.cpuid, Writer::object);
        writer.object(&self.events);
    }

    fn load(reader: &mut Reader<'_>) -> Result<Self, CodecError> {
        Ok(Self {
            run_state: reader.object("the run state")?,
            registers: reader.object("the registers")?,
            special: reader.object("the special registers")?,
            extended: Box::new(kvm_xsave { region: reader.object("the extended state")?, ..Default::default() }),
            extended_control: reader.object("the extended control registers")?,
            debug: reader.object("the debug registers")?,
            local_apic: reader.object("the local APIC")?,
            model_specific: reader
                .list("the model-specific registers", MAX_MSRS, |reader| reader.object("a model-specific register"))?,
            tsc_khz: reader.object("the rate of the time-stamp counter")?,
            cpuid: reader.list("the CPUID", KVM_MAX_CPUID_ENTRIES, |reader| reader.object("an entry of the CPUID"))?,
            events: reader.object("the pending events")?,
        })
    }
}
