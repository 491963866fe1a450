//! Our VMM without a shim: when its guest is there.

use crate::phases::{Phase, Start};
use crate::sample::tell_time;
use crate::timeline::{Timeline, initcall, kernel_line};
use crate::vmm::{Files, Size, Template, Vmm, configure};
use crate::{INIT_LINE, console, rest, trace};
use anyhow::{Result, anyhow};
use std::io::{BufRead, BufReader, PipeReader};
use std::path::Path;
use std::time::Duration;

/// For the guest's kernel: each of its steps is a line.
const LOQUACIOUS: &str = "initcall_debug ignore_loglevel printk.time=1";

/// What a booted guest still has to do before it is saved, as long as the installation gives it.
const SETTLE: Duration = Duration::from_secs(5);

/// Time until the guest's init has said that it runs.
pub fn init(files: &Files<'_>) -> Result<Duration> {
    rest::settle()?;
    let mut vmm = Vmm::boot(files, &Size::MEASURED)?;
    console::wait_for(vmm.console()?, INIT_LINE)?;
    Ok(vmm.elapsed())
}

/// Tells the time until the agent of a booted guest has answered its first call, and its phases.
pub fn agent(files: &Files<'_>) -> Result<()> {
    rest::settle()?;
    let began = trace::now()?;
    let vmm = Vmm::boot(files, &Size::MEASURED)?;
    let machine = vmm.runs()?;
    vmm.agent_ready()?;
    let ready = trace::now()?;
    let guest = configure(vmm.connect()?)?;
    let start = Start { began, machine, guest, answered: trace::now()? };
    tell_start(&start, start.booted(ready)?);
    Ok(())
}

/// The same of a guest from a template, which has nothing to do between.
pub fn restored_agent(files: &Files<'_>, template: &Template) -> Result<()> {
    let start = restored(files, template)?;
    tell_start(&start, start.restored()?);
    Ok(())
}

fn restored(files: &Files<'_>, template: &Template) -> Result<Start> {
    rest::settle()?;
    let began = trace::now()?;
    let vmm = Vmm::restore(files, template)?;
    let machine = vmm.runs()?;
    let guest = configure(vmm.connect()?)?;
    Ok(Start { began, machine, guest, answered: trace::now()? })
}

fn tell_start(start: &Start, phases: Vec<Phase>) {
    tell_time("vmm-agent", start.total());
    for (row, time) in phases {
        tell_time(row, time);
    }
}

/// The template in `directory`, made if there is none.
pub fn template(files: &Files<'_>, directory: &Path) -> Result<Template> {
    let template = Template::below(directory);
    if !directory.exists() {
        std::fs::create_dir(directory)?;
        make_template(files, &Size::MEASURED, SETTLE, &template)?;
    }
    Ok(template)
}

/// Boots a machine and saves it. Returns the time until its agent knocked.
pub fn make_template(files: &Files<'_>, size: &Size<'_>, settle: Duration, template: &Template) -> Result<Duration> {
    let vmm = Vmm::boot_template(files, size)?;
    vmm.agent_ready()?;
    let ready = vmm.elapsed();
    std::thread::sleep(settle);
    vmm.save(template)?;
    Ok(ready)
}

/// Boots with the guest's kernel telling what it does, which takes longer, and puts all of it on one timeline.
pub fn trace(files: &Files<'_>) -> Result<Timeline> {
    let begin = trace::now()?;
    let mut vmm = Vmm::boot(files, &Size { command_line: LOQUACIOUS, ..Size::MEASURED })?;
    let sent = trace::now()?;
    let console = vmm.console()?;
    let reader = std::thread::spawn(move || stamped(console));
    let machine = vmm.runs()?;
    let booted = trace::now()?;
    vmm.agent_ready()?;
    let ready = trace::now()?;
    let stream = vmm.connect()?;
    let connected = trace::now()?;
    let guest = configure(stream)?;
    let configured = trace::now()?;
    drop(vmm);
    let lines = reader.join().map_err(|_| anyhow!("the console's reader panicked"))??;

    let mut timeline = Timeline::new(begin);
    timeline.span("shim", "open files, start the VMM", begin, sent);
    timeline.span("VMM", "jail, machine", sent, booted);
    timeline.span("guest", "kernel and agent, until it knocks", booted, ready);
    timeline.span("shim", "connect", ready, connected);
    timeline.span("shim", "Configure", connected, configured);
    add_kernel(&mut timeline, &lines, ready);
    add_stages(&mut timeline, &Start { began: begin, machine, guest, answered: configured });
    Ok(timeline)
}

/// A start from a template, on one timeline.
pub fn trace_restored(files: &Files<'_>, template: &Template) -> Result<Timeline> {
    let start = restored(files, template)?;
    let mut timeline = Timeline::new(start.began);
    add_stages(&mut timeline, &start);
    Ok(timeline)
}

/// What VMM and agent tell of themselves.
fn add_stages(timeline: &mut Timeline, start: &Start) {
    timeline.stages("VMM: stages", start.began, start.machine_stages());
    let mut guest = start.guest_stages();
    guest.push(("answer".to_owned(), start.answered));
    timeline.stages("guest: stages", start.began, guest);
}

/// Lines with the time at which they came.
fn stamped(console: PipeReader) -> Result<Vec<(Duration, String)>> {
    let mut lines = Vec::new();
    for line in BufReader::new(console).split(b'\n') {
        lines.push((trace::now()?, String::from_utf8_lossy(&line?).into_owned()));
    }
    Ok(lines)
}

/// The kernel's clock begins when the line that came soonest after it was written was written.
fn add_kernel(timeline: &mut Timeline, lines: &[(Duration, String)], ready: Duration) {
    let said: Vec<_> = lines.iter().filter_map(|(came, line)| Some((*came, kernel_line(line)?))).collect();
    let Some(zero) = said.iter().map(|(came, (at, _))| came.saturating_sub(*at)).min() else { return };
    let mut end = zero;
    for (_, (at, said)) in said {
        if let Some((name, took)) = initcall(said) {
            timeline.span("guest kernel: initcalls", name, (zero + at).saturating_sub(took), zero + at);
        }
        // The kernel says so when it hands over.
        if said.starts_with("Run /init as init process") {
            end = zero + at;
        }
    }
    if end > zero {
        timeline.span("guest kernel", "kernel", zero, end);
        timeline.span("agent", "init to ready", end, ready);
    }
}
