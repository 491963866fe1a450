//! Pods as kubelet makes them: through CRI, with one busybox container that sleeps.

use crate::process;
use crate::sample::tell_time;
use anyhow::{Result, ensure};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::{BUSYBOX, FOREVER};
use std::time::{Duration, Instant};

/// Execs in one pod.
const EXECS: usize = 5;

/// In the path of a template's memory.
const TEMPLATES: &str = "/templates/";

/// For what containerd and the guest do after they answered.
const SETTLE: Duration = Duration::from_secs(2);

/// Starts a pod, runs a command in it, and removes it.
pub fn measure(handler: &str) -> Result<()> {
    let mut watch = Watch::start();
    let pod = run(handler)?;
    watch.lap("pod-run");
    let container = pod.container("main", BUSYBOX).command(&FOREVER).try_create()?;
    watch.lap("pod-create");
    container.start()?;
    watch.lap("pod-start");
    watch.total("pod-ready");
    check_origin(handler)?;

    std::thread::sleep(SETTLE);
    for _ in 0..EXECS {
        let mut watch = Watch::start();
        let done = container.try_exec(&["/bin/true"], None)?;
        watch.lap("exec");
        ensure!(done.code == 0, "true ended with {}", done.code);
    }

    std::thread::sleep(SETTLE);
    let mut watch = Watch::start();
    pod.stop()?;
    watch.lap("pod-stop");
    pod.remove()?;
    watch.lap("pod-remove");
    watch.total("pod-gone");
    Ok(())
}

/// A pod with the container of the comparison in it.
pub fn start(handler: &str) -> Result<Pod> {
    let pod = run(handler)?;
    container(&pod)?;
    check_origin(handler)?;
    // Whoever watches a measurement of many pods sees that it goes on.
    eprintln!("a pod of {handler} runs");
    Ok(pod)
}

/// A pod whose template was not used would be measured as one from a template, and the other way round.
fn check_origin(handler: &str) -> Result<()> {
    if handler == "runc" {
        return Ok(());
    }
    for vmm in process::named("bulkhead-vmm")? {
        let restored = vmm.maps(TEMPLATES)?;
        ensure!(restored == (handler == "bulkhead"), "a pod of {handler} is from a template: {restored}");
    }
    Ok(())
}

fn container(pod: &Pod) -> Result<Container<'_>> {
    let container = pod.container("main", BUSYBOX).command(&FOREVER).try_create()?;
    container.start()?;
    Ok(container)
}

/// A pod without containers.
pub fn run(handler: &str) -> Result<Pod> {
    Ok(Pod::new("bench", Sandboxer::PodSandbox).handler(handler).try_run()?)
}

/// Removes what a measurement that failed left behind.
pub fn clean() -> Result<()> {
    use e2e::cri::{call, messages::Empty, messages::PodSandboxId};
    for left in Pod::all() {
        let id = PodSandboxId { pod_sandbox_id: left.id, ..Default::default() };
        call::<Empty>("RuntimeService/StopPodSandbox", &id)?;
        call::<Empty>("RuntimeService/RemovePodSandbox", &id)?;
    }
    Ok(())
}

/// Tells the time of each part, and of all.
struct Watch {
    start: Instant,
    lap: Instant,
}

impl Watch {
    fn start() -> Self {
        let start = Instant::now();
        Self { start, lap: start }
    }

    fn lap(&mut self, row: &str) {
        let now = Instant::now();
        tell_time(row, now - self.lap);
        self.lap = Instant::now();
    }

    fn total(&self, row: &str) {
        tell_time(row, self.lap - self.start);
    }
}
