//! The virtual machine that a node is, as QEMU's command line.

use crate::accelerator::Accelerator;
use crate::edition::{DiskFormat, NodeImage};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What the node's time is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's time. Durations measured in the node vary with the host's load.
    Wall,
    /// One nanosecond for each executed instruction, on one processor: durations repeat on a noisy machine.
    /// Implies emulation.
    Instructions,
}

/// `no_timer_check`: the kernel counts ticks for a few milliseconds of its own time, and panics when a busy host gave QEMU no turn
/// meanwhile.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=4 panic=-1 no_timer_check";

/// Under the instruction clock, nothing is to come out differently by chance: neither where the kernel and programs lie in memory...
const REPEATABLE_KERNEL: &str = "nokaslr norandmaps";

/// ...nor what time it is, nor what the generator of random numbers gives.
const REPEATABLE_MACHINE: &str = "-rtc base=2026-01-01,clock=vm -seed 1";

/// A disk besides the root disk. The node finds it by its name.
#[derive(Debug)]
pub(crate) struct DataDisk {
    pub name: String,
    pub file: PathBuf,
    pub read_only: bool,
}

#[derive(Debug)]
pub(crate) struct Machine {
    pub accelerator: Accelerator,
    pub clock: Clock,
    pub cpus: u32,
    pub memory_mib: u32,
    pub image: NodeImage,
    /// Whether writes to the root disk stay. Otherwise they go to a temporary file.
    pub keep_root_changes: bool,
    pub disks: Vec<DataDisk>,
    /// Receives the kernel's messages.
    pub console: PathBuf,
    /// Where QEMU listens for commands, if it has to.
    pub monitor: PathBuf,
}

impl Machine {
    /// Whether it must be kept from sleeping through interrupts, which is not known of KVM.
    pub(crate) fn needs_nudges(&self) -> bool {
        self.clock == Clock::Instructions || self.accelerator == Accelerator::Tcg
    }

    /// QEMU's arguments. Its standard input and output become the node's control port.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut line = CommandLine(Vec::new());
        line.flags("-nodefaults -no-user-config -no-reboot -display none -monitor none -machine q35,usb=off");
        match (self.clock, self.accelerator) {
            (Clock::Instructions, _) => {
                line.flags("-accel tcg,thread=single -icount shift=0,sleep=off -cpu max,-vgif -smp 1");
                line.flags(REPEATABLE_MACHINE);
            }
            // With the virtual interrupt flag, QEMU 10.0 now and then enters a guest with the node's own registers
            // when several guests run: it faults for ever. docs/status.md has the measurement.
            (Clock::Wall, Accelerator::Tcg) => line.flags("-accel tcg,thread=multi -cpu max,-vgif"),
            (Clock::Wall, Accelerator::Kvm) => line.flags("-accel kvm -cpu host"),
        }
        if self.clock == Clock::Wall {
            line.value("-smp", &self.cpus.to_string());
        }
        line.value("-m", &format!("{}M", self.memory_mib));

        line.path("-kernel", &self.image.kernel);
        line.path("-initrd", &self.image.initrd);
        match self.clock {
            Clock::Instructions => line.value("-append", &format!("{KERNEL_ARGUMENTS} {REPEATABLE_KERNEL}")),
            Clock::Wall => line.value("-append", KERNEL_ARGUMENTS),
        }
        line.file_option("-chardev", "file,id=console,path=", &self.console, "");
        line.flags("-serial chardev:console");
        if self.needs_nudges() {
            line.file_option("-qmp", "unix:", &self.monitor, ",server=on,wait=off");
        }

        line.flags("-device virtio-serial-pci -chardev stdio,id=control,signal=off");
        line.flags("-device virtserialport,chardev=control,name=node.control -device virtio-rng-pci");

        let format = match self.image.disk_format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let snapshot = if self.keep_root_changes { "off" } else { "on" };
        // Nobody needs the disks after a crash of the host: cache=unsafe leaves out every flush.
        let options = format!(",format={format},snapshot={snapshot},cache=unsafe,discard=unmap");
        line.disk("root", &self.image.disk, &options);
        for disk in &self.disks {
            let options = if disk.read_only { ",format=raw,read-only=on" } else { ",format=raw,cache=writeback" };
            line.disk(&disk.name, &disk.file, options);
        }
        line.0
    }
}

struct CommandLine(Vec<OsString>);

impl CommandLine {
    /// Arguments without spaces in them.
    fn flags(&mut self, flags: &str) {
        self.0.extend(flags.split_whitespace().map(OsString::from));
    }

    fn value(&mut self, name: &str, value: &str) {
        self.0.extend([name.into(), value.into()]);
    }

    fn path(&mut self, name: &str, path: &Path) {
        self.0.extend([name.into(), path.into()]);
    }

    /// An option whose value has a file name in the middle. A comma in the name is doubled, as QEMU wants it.
    fn file_option(&mut self, name: &str, before: &str, file: &Path, after: &str) {
        let file = file.to_string_lossy().replace(',', ",,");
        self.value(name, &format!("{before}{file}{after}"));
    }

    fn disk(&mut self, name: &str, file: &Path, options: &str) {
        self.file_option("-drive", &format!("if=none,id={name},file="), file, options);
        self.value("-device", &format!("virtio-blk-pci,drive={name},serial={name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            accelerator: Accelerator::Tcg,
            clock: Clock::Wall,
            cpus: 2,
            memory_mib: 1024,
            image: NodeImage {
                kernel: "/k".into(),
                initrd: "/i".into(),
                disk: "/a,b".into(),
                disk_format: DiskFormat::Raw,
            },
            keep_root_changes: false,
            disks: Vec::new(),
            console: "/c".into(),
            monitor: "/m".into(),
        }
    }

    fn line(machine: &Machine) -> String {
        let arguments: Vec<_> = machine.arguments().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        arguments.join(" ")
    }

    #[test]
    fn a_node_has_no_network_device() {
        let line = line(&machine());
        assert!(line.contains("-nodefaults"));
        assert!(!line.contains("net"));
    }

    #[test]
    fn a_monitor_is_there_for_emulation() {
        assert!(line(&machine()).contains("-qmp unix:/m,server=on,wait=off"));
        assert!(!line(&Machine { accelerator: Accelerator::Kvm, ..machine() }).contains("-qmp"));
        assert!(line(&Machine { clock: Clock::Instructions, ..machine() }).contains("-qmp"));
    }

    #[test]
    fn the_root_disk_is_a_snapshot_unless_changes_are_kept() {
        let mut machine = machine();
        assert!(line(&machine).contains("file=/a,,b,format=raw,snapshot=on"));
        machine.keep_root_changes = true;
        assert!(line(&machine).contains("snapshot=off"));
    }

    #[test]
    fn the_instruction_clock_runs_on_one_emulated_processor_even_where_kvm_works() {
        let line = line(&Machine { clock: Clock::Instructions, accelerator: Accelerator::Kvm, ..machine() });
        assert!(line.contains("-icount shift=0,sleep=off") && line.contains("-smp 1"));
        assert!(!line.contains("kvm") && !line.contains("-smp 2"));
    }

    #[test]
    fn under_the_instruction_clock_chance_has_a_seed() {
        let line_of = |clock| line(&Machine { clock, ..machine() });
        let repeatable = line_of(Clock::Instructions);
        assert!(repeatable.contains("-seed 1") && repeatable.contains("clock=vm") && repeatable.contains("nokaslr"));
        let random = line_of(Clock::Wall);
        assert!(!random.contains("-seed") && !random.contains("-rtc") && !random.contains("nokaslr"));
    }

    #[test]
    fn shares_are_attached_read_only_under_their_name() {
        let disk = DataDisk { name: "dist".into(), file: "/d".into(), read_only: true };
        let line = line(&Machine { disks: vec![disk], ..machine() });
        assert!(line.contains("file=/d,format=raw,read-only=on"));
        assert!(line.contains("serial=dist"));
    }
}
