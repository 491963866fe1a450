//! Runs one guest by a VMM alone, for developers and for guests that measure by themselves (`images/bench/measure`).

use anyhow::{Result, anyhow};
use bench::bulkhead::make_template;
use bench::qemu;
use bench::vmm::{Files, Size, Template, Vmm, configure};
use clap::{Args, Parser};
use std::io::{BufRead, BufReader, PipeReader};
use std::path::{Path, PathBuf};
use std::time::Duration;
use vmm_protocol::{Event, Message};

#[derive(Parser)]
enum Command {
    /// Boots a kernel with a root image, and shows its console and what the VMM says. A guest that prints `attach disk` gets
    /// a disk, and loses it when it prints `detach disk`.
    Boot {
        #[command(flatten)]
        machine: Machine,
        #[arg(long, default_value_t = 1)]
        vcpus: u8,
        /// Adds a serial port that shows the kernel's first messages.
        #[arg(long)]
        serial: bool,
        /// For the guest's kernel.
        #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
        append: String,
        #[arg(long, value_name = "IMAGE")]
        disk: Option<PathBuf>,
        /// Prints the microseconds to each message of the VMM, and ends the machine when its agent is ready.
        #[arg(long)]
        times: bool,
    },
    /// Makes a template and machines from it: how long they take until their agent answers.
    Template {
        #[command(flatten)]
        machine: Machine,
        /// How many machines.
        #[arg(long, default_value_t = 20)]
        count: u32,
        /// Between the agent's sign and saving.
        #[arg(long, default_value_t = 300, value_name = "MILLISECONDS")]
        settle: u64,
        #[arg(long, default_value = "/run")]
        directory: PathBuf,
    },
    /// QEMU's microvm as ours is compared with it.
    Qemu {
        /// A root directory with QEMU in it. The other files are named as seen from there.
        root: String,
        vmlinux: String,
        root_image: String,
        /// For the guest's kernel.
        #[arg(long, default_value = "", value_name = "TEXT", allow_hyphen_values = true)]
        append: String,
        /// For QEMU.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

#[derive(Args)]
struct Machine {
    vmm: PathBuf,
    vmlinux: PathBuf,
    root_image: PathBuf,
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    memory: u32,
}

impl Machine {
    fn files(&self) -> Files<'_> {
        Files { program: &self.vmm, kernel: &self.vmlinux, root_image: &self.root_image }
    }

    fn size(&self) -> Size<'_> {
        Size { memory_mib: self.memory, ..Size::MEASURED }
    }
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::Boot { machine, vcpus, serial, append, disk, times } => {
            let size = Size { vcpus, serial, command_line: &append, ..machine.size() };
            boot(Vmm::boot(&machine.files(), &size)?, disk.as_deref(), times)
        }
        Command::Template { machine, count, settle, directory } => {
            let template = Template::below(&directory);
            let settle = Duration::from_millis(settle);
            let ready = make_template(&machine.files(), &machine.size(), settle, &template)?;
            println!("cold: agent ready after {:.4} s", ready.as_secs_f64());
            (1..=count).try_for_each(|number| restore(&machine.files(), &template, number))
        }
        Command::Qemu { root, vmlinux, root_image, append, arguments } => {
            let files = qemu::Files { root: &root, kernel: &vmlinux, root_image: &root_image };
            qemu::become_qemu(&files, &append, &arguments)
        }
    }
}

fn boot(mut vmm: Vmm, disk: Option<&Path>, times: bool) -> Result<()> {
    let console = vmm.console()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| show_console(console, &vmm, disk));
        while let Some(message) = vmm.receive()? {
            let time = vmm.elapsed();
            if times {
                println!("{:7} us {message:?}", time.as_micros());
            } else {
                println!("[{:6.3}] {message:?}", time.as_secs_f64());
            }
            let over = matches!(message, Message::Event(Event::Stopped(_)));
            if over || times && matches!(message, Message::Event(Event::AgentReady)) {
                break;
            }
        }
        vmm.hang_up()?;
        reader.join().map_err(|_| anyhow!("the console's reader panicked"))?
    })?;
    println!("VMM ended: {}", vmm.ended()?);
    Ok(())
}

/// Prints what the guest says, and does what it asks for.
fn show_console(console: PipeReader, vmm: &Vmm, disk: Option<&Path>) -> Result<()> {
    let mut console = BufReader::new(console);
    let mut line = Vec::new();
    while console.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        print!("[{:6.3}] {text}", vmm.elapsed().as_secs_f64());
        if let Some(image) = disk.filter(|_| text.starts_with("attach disk")) {
            vmm.attach_disk(image)?;
        } else if text.starts_with("detach disk") {
            vmm.detach_disk()?;
        }
        line.clear();
    }
    Ok(())
}

fn restore(files: &Files<'_>, template: &Template, number: u32) -> Result<()> {
    let vmm = Vmm::restore(files, template)?;
    vmm.runs()?;
    let runs = vmm.elapsed().as_secs_f64();
    configure(vmm.connect()?)?;
    let answers = vmm.elapsed().as_secs_f64();
    println!("restore {number}: runs after {runs:.4} s, agent answers after {answers:.4} s");
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", vmm.pid()))?;
    for line in rollup
        .lines()
        .filter(|line| ["Private_Dirty:", "Anonymous:", "Shared_Clean:"].iter().any(|name| line.starts_with(name)))
    {
        println!("  {line}");
    }
    Ok(())
}
