//! Makes a template: boots a machine in the same jail as a pod's, waits until it has nothing left to do, and has it saved.

use super::{Inputs, MEMORY, Made, PROCESSORS, RECORD, Record, STATE, Stamp, digest, read_record};
use crate::identifier::Identifier;
use crate::sandbox::boot::{self, Prepared, Resources};
use crate::sandbox::host::{Host, create_directories};
use crate::sandbox::oci::Spec;
use crate::sandbox::size::Size;
use crate::sandbox::vmm::Vmm;
use crate::sandbox::{SandboxError, SandboxSpec};
use bulkhead_config::Config;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;
use vmm_protocol::Machine;

/// The builder's sandbox: no client of containerd uses this namespace, and two builders exclude each other by it.
const NAMESPACE: &str = "bulkhead-template";

/// From the VMM's start to the files.
const LIMIT: Duration = Duration::from_secs(300);

/// What the guest's kernel has put off would be done again in every copy: RCU's callbacks, freeing its start-up code, and
/// telling the node of free pages, two seconds after they are free.
const SETTLE: Duration = Duration::from_secs(5);

/// The guest shall know all its processors, and start the first. Code for one processor would have to be patched before the
/// second starts.
const COMMAND_LINE: &str = "maxcpus=1 noreplace-smp";

/// Makes the node's template, and removes those before it. Pods that run keep what they have mapped.
pub(in crate::sandbox) async fn build(host: Host, config: &Config) -> Result<(), SandboxError> {
    let resources = Resources::open(&host)?;
    let name = |text: &str| text.parse::<Identifier>().expect("a name of letters");
    let spec = SandboxSpec::from_oci(&name(NAMESPACE), &name("builder"), &Spec::default())?;
    let _claim = boot::claim_anew(&host, &spec.id).await?;
    // What a builder left that was killed: there may be no room beside it.
    remove_unrecorded(&host);
    let made = tokio::time::timeout(LIMIT, make(&host, &spec, config, &resources)).await;
    // Another builder may begin once the sandbox's claim is gone.
    remove_unrecorded(&host);
    let cleaned = boot::clean(&host, &spec.id).await;
    made.unwrap_or_else(|_| Err(SandboxError::deadline("making a template", LIMIT))).and(cleaned)
}

async fn make(host: &Host, spec: &SandboxSpec, config: &Config, resources: &Resources) -> Result<(), SandboxError> {
    let directory = host.templates();
    let inputs = Inputs { kernel: &resources.kernel, root_image: &resources.root_image };
    let made = Made::now(host, inputs, Size::smallest(config).memory_mib)
        .map_err(SandboxError::host("inspect", &host.vmm().display()))?;
    let number = next_number(&directory).map_err(SandboxError::host("prepare", &directory.display()))?;
    let place = directory.join(number.to_string());
    create_directories(&place, 0o700).map_err(SandboxError::host("create", &place.display()))?;
    let memory = create(&place.join(MEMORY))?;
    let state = create(&place.join(STATE))?;

    let prepared = boot::prepare(host, spec, config)?;
    save(host, spec, config, resources, &prepared, [&memory, &state]).await?;

    let finish = || -> io::Result<()> {
        memory.sync_all()?;
        state.sync_all()?;
        let record = Record {
            number,
            made,
            memory: Stamp::of(&memory)?,
            memory_digest: digest(&memory)?,
            state: Stamp::of(&state)?,
        };
        let unfinished = directory.join("current.new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, directory.join(RECORD))?;
        File::open(&directory)?.sync_all()
    };
    finish().map_err(SandboxError::host("write", &directory.join(RECORD).display()))
}

async fn save(
    host: &Host,
    spec: &SandboxSpec,
    config: &Config,
    resources: &Resources,
    prepared: &Prepared,
    files: [&File; 2],
) -> Result<(), SandboxError> {
    let vmm = Vmm::spawn(host, &prepared.cgroup, spec.oom_score, spec.pod.clone())?;
    let console = boot::console(false)?;
    let size = Size { vcpus: PROCESSORS, ..Size::smallest(config) };
    let machine = Machine {
        template: true,
        debug_serial: false,
        command_line: COMMAND_LINE.to_owned(),
        ..boot::machine(size, config, prepared.uid)
    };
    vmm.boot(machine, &resources.descriptors(&console), LIMIT).await?;
    // The console's log ends with the VMM.
    drop(console);
    vmm.agent_ready().await?;
    tokio::time::sleep(SETTLE).await;
    vmm.snapshot(files, LIMIT).await?;
    // It ends by itself.
    let mut stopped = vmm.stopped();
    let _ = stopped.wait_for(Option::is_some).await;
    Ok(())
}

fn create(path: &Path) -> Result<File, SandboxError> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
    file.map_err(SandboxError::host("create", &path.display()))
}

/// The numbers of all templates that are there, complete or not.
fn numbers(directory: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn next_number(directory: &Path) -> io::Result<u32> {
    create_directories(directory, 0o700)?;
    Ok(numbers(directory).into_iter().max().unwrap_or(0).wrapping_add(1))
}

/// Removes all templates but the one that is recorded. For who holds the builder's claim.
pub(super) fn remove_unrecorded(host: &Host) {
    let directory = host.templates();
    let recorded = read_record(&directory).ok().flatten().map(|record| record.number);
    for number in numbers(&directory).into_iter().filter(|number| Some(*number) != recorded) {
        let place = directory.join(number.to_string());
        if let Err(error) = std::fs::remove_dir_all(&place) {
            tracing::warn!(place = %place.display(), %error, "an old template stays");
        }
    }
}
