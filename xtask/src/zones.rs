//! A folder is a trust zone: which of our crates, and which kinds of others, each may depend on.
//!
//! Checked against `cargo metadata`, so that the graph in docs/design.md stays true.

use crate::run::{output, workspace};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;

/// A crate's own crates, and what must never appear among its direct dependencies.
struct Zone {
    package: &'static str,
    ours: &'static [&'static str],
    never: &'static [&'static str],
}

/// Crates that map guest memory or speak to KVM.
const GUEST_MEMORY: &[&str] = &["kvm-bindings", "kvm-ioctls", "vm-memory", "virtio-queue"];

/// Crates that do I/O: a protocol crate has no business with them.
const IO: &[&str] = &["libc", "nix", "tokio", "vmm-sys-util", "kvm-ioctls", "vm-memory"];

const ZONES: &[Zone] = &[
    Zone { package: "agent-protocol", ours: &[], never: IO },
    Zone { package: "cri-protocol", ours: &[], never: IO },
    Zone { package: "vmm-protocol", ours: &[], never: IO },
    Zone { package: "route-netlink", ours: &[], never: IO },
    Zone { package: "bulkhead-config", ours: &["vmm-protocol"], never: GUEST_MEMORY },
    Zone {
        package: "containerd-shim-bulkhead-v2",
        ours: &["agent-protocol", "bulkhead-config", "cri-protocol", "route-netlink", "vmm-protocol"],
        never: GUEST_MEMORY,
    },
    Zone { package: "bulkhead-vmm", ours: &["vmm-protocol"], never: &["tokio", "ttrpc", "containerd-shim-protos"] },
    Zone { package: "bulkhead-fsd", ours: &[], never: &["kvm-ioctls", "virtio-queue", "tokio"] },
    Zone { package: "bulkhead-agent", ours: &["agent-protocol", "route-netlink"], never: GUEST_MEMORY },
    // The operator command asks KVM what it can do; it never makes a machine.
    Zone { package: "bulkhead", ours: &["bulkhead-config"], never: &["vm-memory", "virtio-queue", "tokio"] },
];

/// Fails with every edge that crosses a boundary.
pub fn check() -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version=1", "--no-deps", "--locked"]).current_dir(workspace());
    let metadata: Value = serde_json::from_str(&output(&mut command)?).context("cargo metadata is not JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();

    let mut crossings = Vec::new();
    for zone in ZONES {
        let package = packages.iter().find(|package| package["name"] == zone.package);
        let package = package.with_context(|| format!("there is no crate {}", zone.package))?;
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|dependency| dependency["kind"].is_null());
        for name in normal.filter_map(|dependency| dependency["name"].as_str()) {
            let foreign = names.contains(&name) && !zone.ours.contains(&name);
            if foreign || zone.never.contains(&name) {
                crossings.push(format!("{} must not depend on {name}", zone.package));
            }
        }
    }
    if !crossings.is_empty() {
        bail!("trust zones are crossed (xtask/src/zones.rs):\n{}", crossings.join("\n"));
    }
    Ok(())
}
