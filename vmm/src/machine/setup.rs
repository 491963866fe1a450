//! Builds the machine, in the order that KVM and the kernel's boot protocol ask for.

use super::devices;
use super::exits::Exits;
use super::growth::Growth;
use super::interrupts::{Interrupts, KvmDoorbells};
use super::kernel::{self, Kernel, KernelError};
use super::latch::AddressLatch;
use super::memory::{self, MemoryError};
use super::prefault;
use super::regions::Regions;
use super::serial::DebugSerial;
use super::vcpu::Stop;
use super::x86_64::{boot_params, cpuid, layout, mptable, registers};
use super::{AttachError, Machine, Vm};
use crate::moments::Moments;
use crate::pci::Bus;
use crate::virtio::device::GuestMemory;
use crate::virtio::failure::Failures;
use crate::virtio::transport::Attention;
use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};
use vmm_protocol::Stage;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Parameters that belong to this machine and its root image.
///
/// `reboot=t`: a triple fault is the one way out of a machine without firmware. `panic=-1`: a guest that panicked
/// helps nobody by waiting. `rcu_expedited`: whoever waits for the end of a grace period is a container being made or
/// removed. `slab_sysfs_init`: a directory for each of 200 caches, of which nobody reads any. `page_reporting_order`: free
/// memory goes back to the node in pieces of 128 KiB while 4 MiB are free besides; by itself Linux takes pieces of 2 MiB, and 64 MiB.
const COMMAND_LINE: &str = "root=/dev/pmem0 rootfstype=erofs rootflags=dax=always ro init=/init \
    reboot=t panic=-1 tsc=reliable rcupdate.rcu_expedited=1 initcall_blacklist=slab_sysfs_init \
    page_reporting.page_reporting_order=5";
const QUIET: &str = "console=hvc0 quiet 8250.nr_uarts=0";
/// The last console is init's `/dev/console`, which the polled serial port cannot be.
const DEBUG_SERIAL: &str = "earlyprintk=ttyS0,115200 8250.nr_uarts=1 console=ttyS0 console=hvc0";

/// The driver maps in units of this size, and nothing is added to the image: it is whole or wrong.
const ROOT_ALIGNMENT: u64 = 2 << 20;

/// What to build; the protocol's crate has the limits.
#[derive(Clone, Debug)]
pub struct Description {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// What may come later: whole blocks.
    pub growth_mib: u32,
    /// Added to the VMM's own.
    pub command_line: String,
    pub debug_serial: bool,
}

/// What to build it from.
#[derive(Debug)]
pub struct Resources {
    pub kvm: Kvm,
    pub kernel: File,
    pub root_image: File,
    /// Write end of a pipe; becomes non-blocking.
    pub console: OwnedFd,
}

/// A machine without its devices.
#[derive(Debug)]
pub(super) struct Parts {
    pub vm: Vm,
    pub vcpus: Vec<VcpuFd>,
    /// RAM, also that which comes later.
    pub memory: GuestMemory,
    pub growth: Growth,
    pub regions: Regions,
    /// Where the root image is.
    pub root_image: Range<u64>,
    pub console: OwnedFd,
    pub debug_serial: bool,
    pub processors: u8,
    /// Of the stages until now.
    pub moments: Moments,
}

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot write the boot tables")]
    BootTables(#[from] GuestMemoryError),
    #[error("cannot write the zero page")]
    ZeroPage(#[source] linux_loader::configurator::Error),
    #[error("kernel command line is {0} bytes long or holds a control character; the limit is {max} bytes", max = layout::COMMAND_LINE_SIZE - 1)]
    CommandLine(usize),
    #[error("KVM cannot {0}")]
    Kvm(&'static str, #[source] kvm_ioctls::Error),
    #[error("cannot inspect the root image")]
    RootImage(#[source] io::Error),
    #[error("root image is {0} bytes long, which is not a multiple of 2 MiB")]
    RootLength(u64),
    #[error("KVM cannot collect the guest's writes to the PCI address port")]
    Latch(#[source] io::Error),
    #[error("cannot make an event descriptor")]
    Events(#[source] io::Error),
    #[error("cannot add a device to the machine")]
    Device(#[from] AttachError),
}

/// Names the step of a failed KVM call.
pub(super) fn kvm<T>(step: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, MachineError> {
    result.map_err(|error| MachineError::Kvm(step, error))
}

impl Machine {
    /// Builds a machine that is ready to run.
    pub fn new(description: &Description, resources: Resources) -> Result<Self, MachineError> {
        let mut moments = Moments::default();
        let ram = layout::ram(u64::from(description.memory_mib) << 20);
        let growth = Growth::new(&ram, description.growth_mib);
        let memory = memory::and_growth(memory::guest_memory(&ram)?, growth.addresses())?;
        let root_length = root_length(&resources.root_image)?;
        let kernel = load_guest(description, &resources.kernel, &ram, &memory)?;
        moments.note(Stage::Memory);

        let vm = create_vm(&resources.kvm)?;
        let (regions, root_image) =
            give_memory(&vm, &memory, &growth.images(&ram), (&resources.root_image, root_length))?;
        let vcpus = create_vcpus(&resources.kvm, &vm, description.vcpus, kernel.entry)?;
        kernel.written.iter().for_each(|range| prefault::map(&vcpus[0], range));
        moments.note(Stage::Kvm);

        Self::assemble(Parts {
            vm,
            vcpus,
            memory,
            growth,
            regions,
            root_image,
            console: resources.console,
            debug_serial: description.debug_serial,
            processors: description.vcpus,
            moments,
        })
    }

    /// Adds bus and devices.
    pub(super) fn assemble(parts: Parts) -> Result<Self, MachineError> {
        let Parts { vm, vcpus, memory, growth, regions, root_image, console, debug_serial, processors, moments } =
            parts;
        let serial = if debug_serial {
            let log = console.try_clone().map_err(MachineError::Events)?;
            Some(DebugSerial::new(log).map_err(MachineError::Events)?)
        } else {
            None
        };
        let bus = Arc::new(Bus::new());
        let latch = AddressLatch::new(&vm, &vcpus[0]).map_err(MachineError::Latch)?;
        let exits = Exits { bus: Arc::clone(&bus), latch, serial, read_only: regions.addresses() };
        let ready = EventFd::new(EFD_NONBLOCK).map_err(MachineError::Events)?;
        let signal = ready.try_clone().map_err(MachineError::Events)?;
        let (cold, connector) = devices::cold(&root_image, console, signal).map_err(MachineError::Events)?;

        let mut machine = Self {
            memory: regions.and_ram(&memory)?,
            growth,
            bus,
            attention: Arc::new(Attention::new().map_err(MachineError::Events)?),
            interrupts: Interrupts::new(Arc::clone(&vm)),
            doorbells: KvmDoorbells(vm),
            functions: BTreeMap::new(),
            attached: HashMap::new(),
            next_id: 0,
            failures: Arc::new(Failures::new().map_err(MachineError::Events)?),
            connector,
            ready,
            stop: Arc::new(Stop::new().map_err(MachineError::Events)?),
            processors,
            vcpus,
            exits: Arc::new(exits),
            regions,
            mapped: HashMap::new(),
            root_image,
            moments,
            template: None,
        };
        for (slot, device) in cold {
            machine.insert(slot, device)?;
        }
        machine.moments.note(Stage::Devices);
        Ok(machine)
    }
}

/// How long the root image is; it fills its region.
pub(super) fn root_length(image: &File) -> Result<u64, MachineError> {
    let length = image.metadata().map_err(MachineError::RootImage)?.len();
    let fits = length > 0 && length.is_multiple_of(ROOT_ALIGNMENT);
    if fits { Ok(length) } else { Err(MachineError::RootLength(length)) }
}

/// Kernel, command line and tables into guest memory.
fn load_guest(
    description: &Description,
    file: &File,
    ram: &[std::ops::Range<u64>],
    memory: &GuestMemory,
) -> Result<Kernel, MachineError> {
    let command_line = command_line(description)?;
    let kernel = kernel::load(file, memory)?;
    memory.write_slice(&command_line, GuestAddress(layout::COMMAND_LINE))?;
    memory.write_slice(&mptable::table(description.vcpus), GuestAddress(layout::MP_TABLE))?;
    registers::write_tables(memory)?;
    let zero_page = BootParams::new(&boot_params::zero_page(ram), GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&zero_page, memory.as_ref()).map_err(MachineError::ZeroPage)?;
    Ok(kernel)
}

/// The kernel's command line with its terminating zero.
fn command_line(description: &Description) -> Result<Vec<u8>, MachineError> {
    let output = if description.debug_serial { DEBUG_SERIAL } else { QUIET };
    let line = format!("{COMMAND_LINE} {output} {}", description.command_line);
    if line.len() >= layout::COMMAND_LINE_SIZE || line.chars().any(char::is_control) {
        return Err(MachineError::CommandLine(line.len()));
    }
    let mut bytes = line.into_bytes();
    bytes.push(0);
    Ok(bytes)
}

pub(super) fn create_vm(kvm_device: &Kvm) -> Result<Vm, MachineError> {
    let vm = kvm("create a machine", kvm_device.create_vm())?;
    // All before the first vCPU.
    kvm("place its task state", vm.set_tss_address(layout::KVM_TSS))?;
    kvm("place its identity map", vm.set_identity_map_address(layout::KVM_IDENTITY_MAP))?;
    // Local APICs, and no line of any other controller.
    let local = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    kvm("create local interrupt controllers", vm.enable_cap(&local))?;
    Ok(Arc::new(vm))
}

/// Hands RAM and the root image, which comes first of all images, to KVM. Says where the image is.
pub(super) fn give_memory(
    vm: &Vm,
    memory: &GuestMemory,
    images: &Range<u64>,
    (root_image, length): (&File, u64),
) -> Result<(Regions, Range<u64>), MachineError> {
    let mut regions = Regions::new(Arc::clone(vm), images, memory::give_ram(vm, memory)?)?;
    let root_image = regions.add(&[(root_image, 0..length)])?;
    Ok((regions, root_image))
}

pub(super) fn supported_cpuid(kvm_device: &Kvm) -> Result<CpuId, MachineError> {
    kvm("tell its CPUID", kvm_device.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))
}

fn create_vcpus(kvm_device: &Kvm, vm: &Vm, count: u8, entry: u64) -> Result<Vec<VcpuFd>, MachineError> {
    let supported = supported_cpuid(kvm_device)?;
    let tsc_deadline = kvm_device.check_extension(Cap::TscDeadlineTimer);
    (0..count)
        .map(|id| {
            let vcpu = new_vcpu(vm, id, &cpuid::normalize(&supported, cpuid::Processor { id, count }, tsc_deadline))?;
            if id == 0 {
                kvm("set the registers", registers::enter_kernel(&vcpu, entry))?;
            }
            Ok(vcpu)
        })
        .collect()
}

/// A vCPU as firmware would leave it. All but the first wait for the guest to start them.
pub(super) fn new_vcpu(vm: &Vm, id: u8, told: &[kvm_cpuid_entry2]) -> Result<VcpuFd, MachineError> {
    let vcpu = kvm("create a vCPU", vm.create_vcpu(u64::from(id)))?;
    // As many entries as KVM knows, and three more: always below the limit.
    let cpuid = CpuId::from_entries(told)
        .map_err(|_| MachineError::Kvm("hold the CPUID", kvm_ioctls::Error::new(libc::E2BIG)))?;
    kvm("set the CPUID", vcpu.set_cpuid2(&cpuid))?;
    kvm("set model-specific registers", registers::set_msrs(&vcpu))?;
    kvm("wire the local APIC", registers::wire_local_apic(&vcpu))?;
    Ok(vcpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(command_line: &str) -> Description {
        Description { vcpus: 1, memory_mib: 64, growth_mib: 0, command_line: command_line.into(), debug_serial: false }
    }

    #[test]
    fn the_command_line_ends_with_the_shims_part_and_a_zero() {
        let line = command_line(&description("bulkhead.debug=1")).unwrap();
        assert!(line.ends_with(b" bulkhead.debug=1\0"));
    }

    #[test]
    fn long_or_split_command_lines_are_refused() {
        assert!(command_line(&description(&"x".repeat(2048))).is_err());
        assert!(command_line(&description("a\0b")).is_err());
        assert!(command_line(&description("a\nb")).is_err());
    }
}
