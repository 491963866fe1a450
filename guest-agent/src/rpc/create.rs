//! CreateContainer and CreateProcess.

use crate::agent::Agent;
use crate::container::{Container, CreateRequest, Pids, WantedDevice};
use crate::error::Error;
use crate::id::{ContainerId, ExecId, PciAddress};
use crate::rootfs::Source;
use crate::spec::ProcessSpec;
use crate::stdio::Wanted;
use agent_protocol::agent::create_container_request::{Pid_namespace, Rootfs};
use agent_protocol::agent::{
    CreateContainerRequest, CreateContainerResponse, CreateProcessRequest, DeviceNode, Empty, Streams,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) async fn container(
    agent: Arc<Agent>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Error> {
    if !agent.configured.load(Ordering::Acquire) {
        return Err(Error::NotConfigured);
    }
    let rootfs = match &request.rootfs {
        Some(Rootfs::SharedPath(path)) => Source::shared(path)?,
        Some(Rootfs::Block(volume)) => Source::block(&volume.pci_address, &volume.filesystem, &volume.options)?,
        Some(Rootfs::Layers(root)) => Source::layers(root)?,
        // Generated enums may grow: what this agent doesn't know it can't mount.
        _ => return Err(Error::invalid("root filesystem", "", "there is none")),
    };
    let id = ContainerId::parse(&request.container_id)?;
    let wanted = wanted(&request.streams);
    let pids = match &request.pid_namespace {
        None => Pids::Own,
        Some(Pid_namespace::PodPids(_)) => Pids::Pod,
        Some(Pid_namespace::PidsOfContainer(other)) => Pids::Container(ContainerId::parse(other)?),
        Some(_) => return Err(Error::invalid("pid namespace", "", "this agent does not know its kind")),
    };
    let devices = request.devices.iter().map(device).collect::<Result<_, Error>>()?;
    let request = CreateRequest { id, spec: request.spec, rootfs, wanted, pids, devices };
    let moments = Container::create(&agent, request).await?;
    // What was mounted may have taken memory that no container is charged for.
    agent.pressure.adjust();
    Ok(CreateContainerResponse { moments: Some(moments.answer()).into(), ..Default::default() })
}

pub(super) fn process(agent: &Agent, request: &CreateProcessRequest) -> Result<Empty, Error> {
    let container = agent.containers.get(&ContainerId::parse(&request.container_id)?)?;
    let spec = ProcessSpec::parse(&request.process)?;
    container.create_exec(agent, ExecId::parse(&request.exec_id)?, &spec, wanted(&request.streams))?;
    Ok(Empty::new())
}

fn device(device: &DeviceNode) -> Result<WantedDevice, Error> {
    let DeviceNode { path, mode, uid, gid, access, .. } = device.clone();
    Ok(WantedDevice { path, address: PciAddress::parse(&device.pci_address)?, mode, uid, gid, access })
}

fn wanted(streams: &Streams) -> Wanted {
    Wanted { stdin: streams.stdin, stdout: streams.stdout, stderr: streams.stderr }
}
