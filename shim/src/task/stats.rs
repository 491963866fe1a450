//! `Stats`: a container's cgroup accounting in the guest, in containerd's message.

use super::pod::Pod;
use super::process::Question;
use crate::error::TaskError;
use agent_protocol::agent::{self, ContainerRequest};
use containerd_shim_protos::api::{StatsRequest, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use containerd_shim_protos::protobuf::{Message, well_known_types::any::Any};
use std::collections::HashMap;

const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// Most devices that are passed on.
const MAX_DEVICES: usize = 64;

pub async fn stats(pod: &Pod, request: &StatsRequest) -> Result<StatsResponse, TaskError> {
    let container = pod.container(&request.id)?;
    // Ended containers are simply not there for who collects metrics.
    container.init.allows(Question::Signal)?;
    let metrics = if container.is_sandbox {
        Metrics::new()
    } else {
        let guest = ContainerRequest { container_id: container.id.to_string(), ..Default::default() };
        metrics(&pod.vm()?.agent().stats(&guest).await?)
    };
    let value = metrics.write_to_bytes().map_err(|error| TaskError::Invalid(format!("metrics: {error}")))?;
    let stats = Any { type_url: METRICS_TYPE.to_owned(), value, ..Default::default() };
    Ok(StatsResponse { stats: Some(stats).into(), ..Default::default() })
}

/// Values of one of the kernel's `name value` files; what is missing is zero.
struct File<'a>(&'a HashMap<String, u64>);

impl File<'_> {
    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }
}

fn metrics(stats: &agent::StatsResponse) -> Metrics {
    let pids = PidsStat { current: stats.pids_current, limit: stats.pids_max, ..Default::default() };
    Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu(&File(&stats.cpu))).into(),
        memory: Some(memory(stats, &File(&stats.memory))).into(),
        memory_events: Some(memory_events(&File(&stats.memory_events))).into(),
        io: Some(io(&stats.io)).into(),
        ..Default::default()
    }
}

fn cpu(file: &File<'_>) -> CPUStat {
    CPUStat {
        usage_usec: file.get("usage_usec"),
        user_usec: file.get("user_usec"),
        system_usec: file.get("system_usec"),
        nr_periods: file.get("nr_periods"),
        nr_throttled: file.get("nr_throttled"),
        throttled_usec: file.get("throttled_usec"),
        nr_bursts: file.get("nr_bursts"),
        burst_usec: file.get("burst_usec"),
        ..Default::default()
    }
}

fn memory(stats: &agent::StatsResponse, file: &File<'_>) -> MemoryStat {
    MemoryStat {
        usage: stats.memory_current,
        usage_limit: stats.memory_max,
        swap_usage: stats.swap_current,
        swap_limit: stats.swap_max,
        anon: file.get("anon"),
        file: file.get("file"),
        kernel_stack: file.get("kernel_stack"),
        slab: file.get("slab"),
        sock: file.get("sock"),
        shmem: file.get("shmem"),
        file_mapped: file.get("file_mapped"),
        file_dirty: file.get("file_dirty"),
        file_writeback: file.get("file_writeback"),
        anon_thp: file.get("anon_thp"),
        inactive_anon: file.get("inactive_anon"),
        active_anon: file.get("active_anon"),
        inactive_file: file.get("inactive_file"),
        active_file: file.get("active_file"),
        unevictable: file.get("unevictable"),
        slab_reclaimable: file.get("slab_reclaimable"),
        slab_unreclaimable: file.get("slab_unreclaimable"),
        pgfault: file.get("pgfault"),
        pgmajfault: file.get("pgmajfault"),
        // The kernel counts anonymous and file pages apart; containerd's field is older than that.
        workingset_refault: file.get("workingset_refault_anon").saturating_add(file.get("workingset_refault_file")),
        workingset_activate: file.get("workingset_activate_anon").saturating_add(file.get("workingset_activate_file")),
        workingset_nodereclaim: file.get("workingset_nodereclaim"),
        pgrefill: file.get("pgrefill"),
        pgscan: file.get("pgscan"),
        pgsteal: file.get("pgsteal"),
        pgactivate: file.get("pgactivate"),
        pgdeactivate: file.get("pgdeactivate"),
        pglazyfree: file.get("pglazyfree"),
        pglazyfreed: file.get("pglazyfreed"),
        thp_fault_alloc: file.get("thp_fault_alloc"),
        thp_collapse_alloc: file.get("thp_collapse_alloc"),
        ..Default::default()
    }
}

fn memory_events(file: &File<'_>) -> MemoryEvents {
    MemoryEvents {
        low: file.get("low"),
        high: file.get("high"),
        max: file.get("max"),
        oom: file.get("oom"),
        oom_kill: file.get("oom_kill"),
        oom_group_kill: file.get("oom_group_kill"),
        ..Default::default()
    }
}

fn io(devices: &[agent::IoStat]) -> IOStat {
    let usage = devices.iter().take(MAX_DEVICES).map(|device| IOEntry {
        major: device.major,
        minor: device.minor,
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.read_operations,
        wios: device.write_operations,
        ..Default::default()
    });
    IOStat { usage: usage.collect(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_files_become_containerds_fields() {
        let stats = agent::StatsResponse {
            cpu: [("usage_usec".to_owned(), 7)].into(),
            memory: [("anon".to_owned(), 8), ("workingset_refault_anon".to_owned(), u64::MAX)].into(),
            memory_current: 9,
            memory_max: u64::MAX,
            memory_events: [("oom_kill".to_owned(), 1)].into(),
            pids_current: 2,
            io: vec![agent::IoStat { major: 254, read_bytes: 5, ..Default::default() }; 1000],
            ..Default::default()
        };
        let metrics = metrics(&stats);
        assert_eq!(metrics.cpu.usage_usec, 7);
        assert_eq!((metrics.memory.anon, metrics.memory.usage, metrics.memory.usage_limit), (8, 9, u64::MAX));
        assert_eq!(metrics.memory.workingset_refault, u64::MAX);
        assert_eq!((metrics.memory_events.oom_kill, metrics.pids.current), (1, 2));
        assert_eq!((metrics.io.usage.len(), metrics.io.usage[0].rbytes), (MAX_DEVICES, 5));
    }
}
