//! A running node: boot, scripts, the end.

use crate::accelerator::Accelerator;
use crate::control::{OFF_REQUEST, OutputScanner, run_request};
use crate::disk;
use crate::edition::NodeImage;
use crate::emulator::Emulator;
use crate::machine::{Clock, DataDisk, Machine};
use crate::nudge;
use anyhow::{Context, Result, bail};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a script may take when nothing else is said: long enough for anything but a whole test suite.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);
/// Boot takes 10 to 15 s under emulation on an idle machine; the deadline is for one that is busy.
const BOOT_DEADLINE: Duration = Duration::from_secs(300);
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(60);
/// How often a silent node's processor time is looked at.
const GLANCE: Duration = Duration::from_secs(1);
/// Chunks of output that wait for a slow reader before the node has to.
const QUEUED_CHUNKS: usize = 64;

/// What a node is to be.
#[derive(Debug)]
pub struct Builder {
    image: NodeImage,
    cpus: u32,
    memory_mib: u32,
    clock: Clock,
    shares: Vec<(String, PathBuf)>,
    artifacts: Option<PathBuf>,
    keep_root_changes: bool,
    longest_silence: Option<Duration>,
}

impl Builder {
    pub fn new(image: NodeImage) -> Self {
        Builder {
            image,
            // Two nodes share two processors in `make test`. Under emulation, a second one costs more than it does: a fifth of the
            // suite's time went into processors that waited for each other.
            cpus: 1,
            memory_mib: 4096,
            clock: Clock::Wall,
            shares: Vec::new(),
            artifacts: None,
            keep_root_changes: false,
            longest_silence: None,
        }
    }

    /// Ignored under [`Clock::Instructions`], which has one processor.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Shows the node a copy of `directory` as `/shares/<name>`, read-only. `name` has at most 20 bytes.
    pub fn share(mut self, name: &str, directory: impl Into<PathBuf>) -> Self {
        self.shares.push((name.to_owned(), directory.into()));
        self
    }

    /// Where the content of the node's `/artifacts` goes when the node ends, with `console.log` beside it.
    pub fn artifacts(mut self, directory: impl Into<PathBuf>) -> Self {
        self.artifacts = Some(directory.into());
        self
    }

    /// Writes the root disk for good, instead of to a snapshot: for making images.
    pub fn keep_root_changes(mut self) -> Self {
        self.keep_root_changes = true;
        self
    }

    /// Gives a script up when QEMU spent so much processor time since the script last printed something: for scripts that print
    /// as they go, on nodes that may stand still. Time that the host spends on other work does not count.
    pub fn longest_silence(mut self, processor_time: Duration) -> Self {
        self.longest_silence = Some(processor_time);
        self
    }

    /// Boots the node and waits until its containerd answers.
    pub fn start(self) -> Result<NodeVm> {
        // Not /tmp, which may be memory: the root disk's changes go here.
        let scratch = tempfile::Builder::new().prefix("node-vm-").tempdir_in("/var/tmp")?;
        let accelerator = Accelerator::detect()?;
        // First, so that the copy has long been written when it is run.
        let emulator = match (self.clock, accelerator) {
            (Clock::Wall, Accelerator::Kvm) => Emulator::installed(),
            _ => Emulator::without_fault(scratch.path())?,
        };
        let mut disks = Vec::new();
        for (name, directory) in &self.shares {
            let file = scratch.path().join(format!("{name}.erofs"));
            disk::pack_share(directory, &file)?;
            disks.push(DataDisk { name: name.clone(), file, read_only: true });
        }
        let artifacts_disk = scratch.path().join("artifacts.ext4");
        disk::create_artifacts(&artifacts_disk)?;
        disks.push(DataDisk { name: "artifacts".to_owned(), file: artifacts_disk, read_only: false });
        let logs = self.artifacts.clone().unwrap_or_else(|| scratch.path().to_owned());
        std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;

        let machine = Machine {
            accelerator,
            clock: self.clock,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            image: self.image,
            keep_root_changes: self.keep_root_changes,
            disks,
            console: logs.join("console.log"),
            monitor: scratch.path().join("monitor"),
        };
        let mut node = NodeVm::spawn(&emulator, &machine, scratch, self.artifacts)?;
        let status = node.run(":", BOOT_DEADLINE, &mut std::io::sink()).context("the node did not boot")?;
        if status != 0 {
            bail!("the node's first script failed with exit code {status}");
        }
        node.longest_silence = self.longest_silence.unwrap_or(Duration::MAX);
        Ok(node)
    }
}

/// A booted node. Dropping it kills QEMU and brings its artifacts back.
#[derive(Debug)]
pub struct NodeVm {
    qemu: Child,
    requests: ChildStdin,
    output: Receiver<Vec<u8>>,
    scripts: u32,
    longest_silence: Duration,
    booted: Instant,
    scratch: TempDir,
    artifacts: Option<PathBuf>,
    console: PathBuf,
}

impl NodeVm {
    fn spawn(emulator: &Emulator, machine: &Machine, scratch: TempDir, artifacts: Option<PathBuf>) -> Result<Self> {
        // setpriv: QEMU must not outlive a developer's command that was killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&emulator.program).args(machine.arguments());
        for directory in &emulator.firmware {
            command.arg("-L").arg(directory);
        }
        // Where QEMU puts the root disk's snapshot.
        command.env("TMPDIR", scratch.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut qemu = command.spawn().context("cannot run setpriv")?;
        let requests = qemu.stdin.take().context("QEMU has no standard input")?;
        let mut stdout = qemu.stdout.take().context("QEMU has no standard output")?;
        let (sender, output) = sync_channel(QUEUED_CHUNKS);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        if machine.needs_nudges() {
            let (monitor, pid) = (machine.monitor.clone(), qemu.id());
            match machine.clock {
                Clock::Wall => nudge::start(monitor),
                Clock::Instructions => nudge::wake(monitor, move || processor_time(pid).ok()),
            }
        }
        let console = machine.console.clone();
        Ok(NodeVm {
            qemu,
            requests,
            output,
            scripts: 0,
            longest_silence: Duration::MAX,
            booted: Instant::now(),
            scratch,
            artifacts,
            console,
        })
    }

    /// Runs a shell script in the node, streams what it prints to `output`, and returns its exit code.
    ///
    /// Each script runs in a new session with nothing on standard input. An error means that the node is gone
    /// or did not finish in time; it is of no use afterwards.
    pub fn run(&mut self, script: &str, deadline: Duration, output: &mut dyn Write) -> Result<i32> {
        self.scripts += 1;
        let token = format!("script-{}-{}", std::process::id(), self.scripts);
        self.requests.write_all(&run_request(&token, script)).context("the node no longer takes scripts")?;
        let mut scanner = OutputScanner::new(&token);
        let end = Instant::now() + deadline;
        let mut heard = self.processor_time()?;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let chunk = match self.output.recv_timeout(left.min(GLANCE)) {
                Ok(chunk) => chunk,
                Err(RecvTimeoutError::Timeout) if left.is_zero() => {
                    bail!("the script did not end within {} s\n{}", deadline.as_secs(), self.console_tail());
                }
                Err(RecvTimeoutError::Timeout) => {
                    let silence = self.processor_time()?.saturating_sub(heard);
                    if silence > self.longest_silence {
                        let silence = silence.as_secs();
                        bail!("the script printed nothing in {silence} s of processor time\n{}", self.console_tail());
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.qemu.wait()?;
                    bail!("the node ended in the middle of a script (QEMU: {status})\n{}", self.console_tail());
                }
            };
            heard = self.processor_time()?;
            let mut printed = Vec::new();
            let code = scanner.scan(&chunk, &mut printed);
            output.write_all(&printed)?;
            output.flush()?;
            if let Some(code) = code {
                return Ok(code);
            }
        }
    }

    /// What QEMU has spent on this node.
    pub fn processor_time(&self) -> Result<Duration> {
        processor_time(self.qemu.id()).context("cannot read QEMU's processor time")
    }

    /// Time since QEMU was started.
    pub fn uptime(&self) -> Duration {
        self.booted.elapsed()
    }

    /// Shuts the node down in order, so that its disks are complete.
    pub fn power_off(mut self) -> Result<()> {
        self.requests.write_all(OFF_REQUEST).context("the node no longer takes requests")?;
        let end = Instant::now() + POWER_OFF_DEADLINE;
        // The output ends when QEMU does.
        while let Err(RecvTimeoutError::Timeout) | Ok(_) = self.output.recv_timeout(Duration::from_millis(100)) {
            if Instant::now() > end {
                bail!("the node did not power off in time\n{}", self.console_tail());
            }
        }
        let status = self.qemu.wait()?;
        if !status.success() {
            bail!("QEMU failed: {status}\n{}", self.console_tail());
        }
        Ok(())
    }

    fn console_tail(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        format!("the end of its console:\n{tail}")
    }
}

fn processor_time(pid: u32) -> nix::Result<Duration> {
    clock_getcpuclockid(Pid::from_raw(pid.cast_signed())).and_then(|clock| clock.now()).map(Duration::from)
}

impl Drop for NodeVm {
    fn drop(&mut self) {
        // Both fail when QEMU has ended already, which is as good.
        self.qemu.kill().ok();
        self.qemu.wait().ok();
        if let Some(directory) = &self.artifacts
            && let Err(error) = disk::unpack_artifacts(&self.scratch.path().join("artifacts.ext4"), directory)
        {
            eprintln!("node-vm: {error:#}");
        }
    }
}
