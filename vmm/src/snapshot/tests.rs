//! Tiny guests in real mode, on the machine's own KVM: begun in one machine, continued in another.

use super::clock::GuestClock;
use super::codec::{self, Saved};
use super::pause::PausableVcpu;
use super::vcpu::VcpuState;
use crate::machine::{AddressLatch, Exits};
use crate::pci::Bus;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1000;
/// A byte that the guest waits for.
const GO_ON: GuestAddress = GuestAddress(0x600);
const RESULT: GuestAddress = GuestAddress(0x500);

const CPUID_LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;

struct Host {
    kvm: Kvm,
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap<()>,
}

/// A machine that is not running, as it is saved.
struct Paused {
    state: Vec<u8>,
    memory: Vec<u8>,
}

struct Both {
    clock: GuestClock,
    vcpu: VcpuState,
}

impl Saved for Both {
    fn save(&self, writer: &mut codec::Writer) {
        self.clock.save(writer);
        self.vcpu.save(writer);
    }

    fn load(reader: &mut codec::Reader<'_>) -> Result<Self, codec::CodecError> {
        Ok(Self { clock: GuestClock::load(reader)?, vcpu: VcpuState::load(reader)? })
    }
}

impl Host {
    fn new() -> Option<Self> {
        let kvm = match Kvm::new() {
            Ok(kvm) => kvm,
            Err(error) => {
                println!("SKIPPED: no /dev/kvm: {error}");
                return None;
            }
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        let local = kvm_bindings::kvm_enable_cap { cap: kvm_bindings::KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        vm.enable_cap(&local).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
        };
        // SAFETY: the memory outlives the vCPUs of the test.
        #[expect(unsafe_code, reason = "a memory slot names a host address")]
        unsafe { vm.set_user_memory_region(region) }.unwrap();
        Some(Self { kvm, vm, memory })
    }

    fn cpuid(&self) -> CpuId {
        let mut cpuid = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= CPUID_LEAF1_ECX_TSC_DEADLINE;
        }
        cpuid
    }

    fn vcpu(&self) -> VcpuFd {
        let vcpu = self.vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&self.cpuid()).unwrap();
        vcpu
    }

    fn vcpu_state(&self, vcpu: &VcpuFd) -> VcpuState {
        VcpuState::read(&self.kvm, &self.vm, vcpu, self.cpuid().as_slice().to_vec()).unwrap()
    }

    fn begin(&self, code: &[u8]) -> VcpuFd {
        self.memory.write_slice(code, GuestAddress(CODE)).unwrap();
        let vcpu = self.vcpu();
        let mut special = vcpu.get_sregs().unwrap();
        (special.cs.base, special.cs.selector) = (0, 0);
        vcpu.set_sregs(&special).unwrap();
        vcpu.set_regs(&kvm_regs { rip: CODE, rsp: 0x8000, rflags: 2, ..Default::default() }).unwrap();
        vcpu
    }

    fn run(&self, vcpu: VcpuFd) -> PausableVcpu {
        let latch = AddressLatch::new(&self.vm, &vcpu).unwrap();
        let exits = Exits { bus: Arc::new(Bus::new()), latch, serial: None, read_only: Arc::default() };
        PausableVcpu::spawn(vcpu, Arc::new(exits), |reason| panic!("{reason:?}")).unwrap()
    }

    fn save(&self, vcpu: &VcpuFd) -> Paused {
        let vcpu = self.vcpu_state(vcpu);
        let state = codec::encode(&Both { clock: GuestClock::read(&self.vm).unwrap(), vcpu }).unwrap();
        let mut memory = vec![0; RAM];
        self.memory.read_slice(&mut memory, GuestAddress(0)).unwrap();
        Paused { state, memory }
    }

    /// Runs the guest to its end.
    fn finish(&self, vcpu: VcpuFd) {
        let running = self.run(vcpu);
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.memory.read_obj::<u8>(STOPPED).unwrap() == 0 {
            assert!(Instant::now() < deadline, "the guest does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
        running.pause().unwrap();
    }

    /// Whether this KVM lets a machine have a time-stamp counter of its own.
    fn has_own_counter(&self) -> bool {
        let vcpu = self.vm.create_vcpu(1).unwrap();
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index: 0x10, data: 0, ..Default::default() }]).unwrap();
        vcpu.set_msrs(&msrs).unwrap();
        let own = counter(&vcpu) < u64::from(vcpu.get_tsc_khz().unwrap()) * 1000;
        if !own {
            println!("SKIPPED: this KVM has no time-stamp counters of machines");
        }
        own
    }

    /// Another machine that goes on where the saved one was.
    fn restored(&self, paused: &Paused) -> (Self, VcpuFd) {
        let next = Self::new().unwrap();
        next.memory.write_slice(&paused.memory, GuestAddress(0)).unwrap();
        let Both { clock, vcpu: state } = codec::decode(&paused.state).unwrap();
        let vcpu = next.vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&CpuId::from_entries(&state.cpuid).unwrap()).unwrap();
        state.write(&vcpu).unwrap();
        clock.go_on(&next.vm).unwrap();
        (next, vcpu)
    }
}

/// `mov byte [0x602], 1; cli; again: jmp again`: how the guest says that it is done.
const STOP: &[u8] = &[0xc6, 0x06, 0x02, 0x06, 0x01, 0xfa, 0xeb, 0xfe];
const STOPPED: GuestAddress = GuestAddress(0x602);

/// `again: cmp byte [0x600], 0; je again`
const WAIT: &[u8] = &[0x80, 0x3e, 0x00, 0x06, 0x00, 0x74, 0xf9];

fn wrmsr(index: u32, low: u32) -> Vec<u8> {
    // mov ecx, index; mov eax, low; xor edx, edx; wrmsr
    [&[0x66, 0xb9][..], &index.to_le_bytes(), &[0x66, 0xb8], &low.to_le_bytes(), &[0x66, 0x31, 0xd2, 0x0f, 0x30]]
        .concat()
}

fn counter(vcpu: &VcpuFd) -> u64 {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: 0x10, ..Default::default() }]).unwrap();
    assert_eq!(vcpu.get_msrs(&mut msrs).unwrap(), 1);
    msrs.as_slice()[0].data
}

#[test]
fn registers_and_vectors_and_model_specific_registers_survive() {
    let Some(host) = Host::new() else { return };
    let code = [
        &wrmsr(0xc000_0102, 0x1357_9bdf)[..],
        // mov eax, cr4; or eax, 0x200; mov cr4, eax: the vector registers may be used.
        &[0x0f, 0x20, 0xe0, 0x66, 0x0d, 0x00, 0x02, 0x00, 0x00, 0x0f, 0x22, 0xe0],
        // movups xmm3, [0x620]
        &[0x0f, 0x10, 0x1e, 0x20, 0x06],
        // mov ebx, 0x55aa33cc
        &[0x66, 0xbb, 0xcc, 0x33, 0xaa, 0x55],
        WAIT,
        // mov [0x500], ebx; mov ecx, 0xc0000102; rdmsr; mov [0x504], eax; movups [0x508], xmm3
        &[0x66, 0x89, 0x1e, 0x00, 0x05, 0x66, 0xb9, 0x02, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0xa3, 0x04, 0x05],
        &[0x0f, 0x11, 0x1e, 0x08, 0x05],
        STOP,
    ]
    .concat();
    let vector = [1, 2, 3, 0x1234_5678_u32];
    host.memory.write_obj(vector, GuestAddress(0x620)).unwrap();
    let running = host.run(host.begin(&code));
    std::thread::sleep(Duration::from_millis(50));
    let paused = host.save(&running.pause().unwrap());
    // More than once: a template is restored again and again.
    for _ in 0..3 {
        let (next, vcpu) = host.restored(&paused);
        next.memory.write_obj(1_u8, GO_ON).unwrap();
        next.finish(vcpu);
        assert_eq!(next.memory.read_obj::<[u32; 2]>(RESULT).unwrap(), [0x55aa_33cc, 0x1357_9bdf]);
        assert_eq!(next.memory.read_obj::<[u32; 4]>(GuestAddress(0x508)).unwrap(), vector);
    }
}

/// Sets the timer's deadline `ticks` from now, halts, and stops in the interrupt.
fn sleeper(ticks: u32) -> Vec<u8> {
    let handler = 0x2000_u16;
    [
        // mov word [0x80], handler; mov word [0x82], 0: vector 0x20.
        &[0xc7, 0x06, 0x80, 0x00][..],
        &handler.to_le_bytes(),
        &[0xc7, 0x06, 0x82, 0x00, 0x00, 0x00],
        // x2APIC on; software enable; timer by deadline to vector 0x20.
        &wrmsr(0x1b, 0xfee0_0d00),
        &wrmsr(0x80f, 0x1ff),
        &wrmsr(0x832, 2 << 17 | 0x20),
        // rdtsc; add eax, ticks; adc edx, 0; mov ecx, 0x6e0; wrmsr
        &[0x0f, 0x31, 0x66, 0x05],
        &ticks.to_le_bytes(),
        &[0x66, 0x83, 0xd2, 0x00, 0x66, 0xb9, 0xe0, 0x06, 0x00, 0x00, 0x0f, 0x30],
        // sti; again: hlt; jmp again
        &[0xfb, 0xf4, 0xeb, 0xfd],
    ]
    .concat()
}

#[test]
fn a_timer_that_was_armed_fires_in_the_restored_machine() {
    let Some(host) = Host::new() else { return };
    // inc word [0x500]
    host.memory.write_slice(&[&[0xff, 0x06, 0x00, 0x05][..], STOP].concat(), GuestAddress(0x2000)).unwrap();
    let vcpu = host.begin(&[]);
    let rate = vcpu.get_tsc_khz().unwrap(); // ticks in a millisecond
    host.memory.write_slice(&sleeper(rate * 500), GuestAddress(CODE)).unwrap();
    let running = host.run(vcpu);
    std::thread::sleep(Duration::from_millis(100));
    let paused = host.save(&running.pause().unwrap());
    for _ in 0..3 {
        let (next, vcpu) = host.restored(&paused);
        let before = next.memory.read_obj::<u16>(RESULT).unwrap();
        assert_eq!(before, 0, "the timer fired too early for this test");
        next.finish(vcpu);
        assert_eq!(next.memory.read_obj::<u16>(RESULT).unwrap(), 1);
    }
}

#[test]
fn clocks_go_on_where_they_were() {
    let Some(host) = Host::new() else { return };
    let running = host.run(host.begin(WAIT));
    std::thread::sleep(Duration::from_millis(20));
    let vcpu = running.pause().unwrap();
    let paused = host.save(&vcpu);
    let (clock, ticks) = (host.vm.get_clock().unwrap().clock, counter(&vcpu));
    let second = u64::from(vcpu.get_tsc_khz().unwrap()) * 1000;
    std::thread::sleep(Duration::from_millis(1500));
    let (next, vcpu) = host.restored(&paused);
    let (later, later_ticks) = (next.vm.get_clock().unwrap().clock, counter(&vcpu));
    assert!(later < clock + 1_000_000_000, "{clock} {later}");
    if next.has_own_counter() {
        assert!(ticks.abs_diff(later_ticks) < second, "{ticks} {later_ticks}");
    }
}

#[test]
fn damaged_content_is_an_error_or_a_state_but_no_panic() {
    let Some(host) = Host::new() else { return };
    let vcpu = host.vcpu();
    let state = Both { clock: GuestClock::read(&host.vm).unwrap(), vcpu: host.vcpu_state(&vcpu) };
    let content = codec::testing::content(&state);
    for length in 0..content.len() {
        assert!(codec::testing::from_content::<Both>(&content[..length]).is_err());
    }
    for at in 0..content.len() {
        let mut damaged = content.clone();
        damaged[at] ^= 0xff;
        // Neither result is wrong.
        let _ = codec::testing::from_content::<Both>(&damaged);
    }
}
