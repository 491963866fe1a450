//! Pods as kubelet makes them: through CRI, with one busybox container that sleeps.

use crate::sample::tell_time;
use crate::{process, rest};
use anyhow::{Result, ensure};
use e2e::cri::{Container, Pod, Sandboxer};
use e2e::{BUSYBOX, FOREVER};

/// Execs in one pod after the first, in which the guest reads programs that it has not run before.
const EXECS: usize = 5;

/// In the path of a template's memory.
const TEMPLATES: &str = "/templates/";

/// Two pods, one after the other. The first is started and removed as quickly as it goes, with commands between; the second has its calls
/// one by one, since work that is left when one was answered would be the next one's.
pub fn measure(handler: &str) -> Result<()> {
    at_once(handler)?;
    call_by_call(handler)
}

fn at_once(handler: &str) -> Result<()> {
    let started = rest::settle()?;
    let pod = run(handler)?;
    let container = container(&pod)?;
    tell_time("pod-ready", started.elapsed());
    check_origin(handler)?;

    for row in std::iter::once("exec-first").chain(["exec"; EXECS]) {
        let done = timed(row, || Ok(container.try_exec(&["/bin/true"], None)?))?;
        ensure!(done.code == 0, "true ended with {}", done.code);
    }

    let started = rest::settle()?;
    pod.stop()?;
    pod.remove()?;
    tell_time("pod-gone", started.elapsed());
    Ok(())
}

fn call_by_call(handler: &str) -> Result<()> {
    let pod = timed("pod-run", || run(handler))?;
    let container = timed("pod-create", || Ok(pod.container("main", BUSYBOX).command(&FOREVER).try_create()?))?;
    timed("pod-start", || Ok(container.start()?))?;
    check_origin(handler)?;
    timed("pod-stop", || Ok(pod.stop()?))?;
    timed("pod-remove", || Ok(pod.remove()?))
}

/// Tells how long one call takes in a node at rest.
fn timed<T>(row: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = rest::settle()?;
    let done = call()?;
    tell_time(row, started.elapsed());
    Ok(done)
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
pub fn check_origin(handler: &str) -> Result<()> {
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
