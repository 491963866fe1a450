//! A shim driven as containerd does it, by the task API, for mounts that the node's own containerd never asks for.

use crate::container::{Finished, ctr};
use crate::{BUSYBOX, PATIENCE, run};
use containerd_shim_protos::TaskClient;
pub use containerd_shim_protos::api::Mount;
use containerd_shim_protos::api::{CreateTaskRequest, DeleteRequest, ShutdownRequest, StartRequest, WaitRequest};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use ttrpc::context::{self, Context};

const SHIM: &str = "/opt/bulkhead/bin/containerd-shim-bulkhead-v2";
const NAMESPACE: &str = "e2e-tasks";

/// Where a container's output goes, in its bundle.
const OUTPUTS: [&str; 2] = ["stdout", "stderr"];

/// A mount of a root filesystem.
pub fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(ToString::to_string).collect();
    Mount { type_: kind.into(), source: source.into(), options, ..Mount::default() }
}

/// A container that is alone in a shim that nobody else knows.
#[derive(Debug)]
pub struct Task {
    id: String,
    bundle: PathBuf,
    /// As containerd would write it.
    spec: Value,
}

impl Task {
    #[must_use]
    pub fn new(name: &str) -> Self {
        let id = format!("task-{}-{name}", std::process::id());
        ctr(&["container", "create", BUSYBOX, &id]).success();
        let spec = ctr(&["container", "info", "--spec", &id]).success().stdout();
        ctr(&["container", "delete", &id]).success();
        let bundle = std::env::temp_dir().join(&id);
        fs::create_dir_all(bundle.join("rootfs")).expect("a bundle");
        Self { id, bundle, spec: serde_json::from_str(&spec).expect("a specification") }
    }

    pub fn command(mut self, command: &[&str]) -> Self {
        self.spec["process"]["args"] = json!(command);
        self
    }

    pub fn shell(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// It may do everything to its guest.
    pub fn privileged(mut self) -> Self {
        let all = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "MKNOD", "SYS_ADMIN", "SYS_RAWIO", "SYS_RESOURCE"];
        let all: Vec<_> = all.iter().map(|name| format!("CAP_{name}")).collect();
        for set in ["bounding", "effective", "permitted"] {
            self.spec["process"]["capabilities"][set] = json!(all);
        }
        let linux = self.spec["linux"].as_object_mut().expect("the specification is of Linux");
        for limit in ["seccomp", "maskedPaths", "readonlyPaths"] {
            linux.remove(limit);
        }
        linux["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        self
    }

    /// Runs it to its end on a root filesystem of these mounts. What the runtime refuses is in the error's text, with code -1.
    pub fn run(self, rootfs: &[Mount]) -> Finished {
        fs::write(self.bundle.join("config.json"), self.spec.to_string()).expect("a bundle takes its specification");
        let outcome = self.serve(rootfs);
        let [stdout, mut stderr] = OUTPUTS.map(|name| fs::read(self.bundle.join(name)).unwrap_or_default());
        match outcome {
            Ok(code) => Finished { code, stdout, stderr },
            Err(error) => {
                let text = match error {
                    ttrpc::Error::RpcStatus(status) => status.message,
                    other => other.to_string(),
                };
                stderr.extend(text.bytes());
                Finished { code: -1, stdout, stderr }
            }
        }
    }

    fn serve(&self, rootfs: &[Mount]) -> Result<i32, ttrpc::Error> {
        let client = ttrpc::Client::connect(&self.start()).expect("the shim's socket");
        let shim = TaskClient::new(client);
        let (id, bundle) = (self.id.clone(), self.bundle.display().to_string());
        let [stdout, stderr] = OUTPUTS.map(|name| format!("file://{bundle}/{name}"));
        let create =
            CreateTaskRequest { id: id.clone(), bundle, rootfs: rootfs.to_vec(), stdout, stderr, ..Default::default() };
        let outcome = shim.create(limit(), &create).and_then(|_| {
            shim.start(limit(), &StartRequest { id: id.clone(), ..Default::default() })?;
            let ended = shim.wait(limit(), &WaitRequest { id: id.clone(), ..Default::default() })?;
            Ok(i32::try_from(ended.exit_status).unwrap_or(-1))
        });
        // After a create that failed there is nothing to delete.
        let _ = shim.delete(limit(), &DeleteRequest { id: id.clone(), ..Default::default() });
        // The answer may be lost with the shim.
        let _ = shim.shutdown(limit(), &ShutdownRequest { id, now: true, ..Default::default() });
        outcome
    }

    /// The address of a new shim.
    fn start(&self) -> String {
        let output = self.shim().arg("start").stdin(Stdio::null()).output().expect("the shim is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn shim(&self) -> Command {
        let mut command = Command::new(SHIM);
        let bundle = self.bundle.to_str().expect("a plain path");
        command.args(["-namespace", NAMESPACE, "-address", "/run/containerd/containerd.sock"]);
        command.args(["-publish-binary", "/usr/bin/containerd", "-id", &self.id, "-bundle", bundle]);
        command.current_dir(&self.bundle);
        command
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.shim().arg("delete").stdin(Stdio::null()).output().ok();
        fs::remove_dir_all(&self.bundle).ok();
    }
}

fn limit() -> Context {
    context::with_duration(PATIENCE)
}

/// A layer with this directory's content, which others can be merged with.
#[track_caller]
pub fn erofs(directory: &str, blob: &str) {
    run(&["mkfs.erofs", "--quiet", "-Enoinline_data", blob, directory]);
}
