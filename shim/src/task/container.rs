//! Containers and their processes, as the shim remembers them.

use super::node_pid::NodePid;
use super::pod::MAX_EXECS;
use super::process::{Change, Exit, Phase, Question};
use crate::bundle::Role;
use crate::error::TaskError;
use crate::identifier::Identifier;
use crate::stdio::{Copies, Stdio, StdioError};
use agent_protocol::agent::ProcessRequest;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

#[derive(Debug)]
pub struct Container {
    pub id: Identifier,
    pub bundle: PathBuf,
    /// On the node: the VMM's, or for one of several containers that of a thread that stands for it.
    pub pid: u32,
    _node_pid: Option<NodePid>,
    /// The microVM goes when this container is deleted.
    pub owns_vm: bool,
    /// Stands for its pod: its process is never run, no container exists in the guest.
    pub is_sandbox: bool,
    /// How early it would go when the node runs out of memory.
    pub oom_score: u16,
    pub init: Arc<Process>,
    execs: Mutex<HashMap<Identifier, Arc<Process>>>,
}

#[derive(Debug)]
pub struct Process {
    pub container: Identifier,
    pub exec: Option<Identifier>,
    pub stdio: Stdio,
    phase: watch::Sender<Phase>,
    copies: Mutex<Option<Arc<Copies>>>,
    /// By the client, maybe before there is anything to copy.
    stdin_closed: AtomicBool,
    /// True once it is deleted.
    deletion: tokio::sync::Mutex<bool>,
}

impl Container {
    pub fn new(
        id: Identifier,
        bundle: PathBuf,
        vmm: u32,
        role: &Role,
        stdio: Stdio,
        oom_score: u16,
    ) -> Result<Self, TaskError> {
        let init = Arc::new(Process::new(id.clone(), None, stdio));
        let owns_vm = matches!(role, Role::Alone | Role::Sandbox);
        let node_pid = if owns_vm { None } else { Some(NodePid::new().map_err(TaskError::NodePid)?) };
        let pid = node_pid.as_ref().map_or(vmm, |thread| thread.number);
        let (is_sandbox, execs) = (*role == Role::Sandbox, Mutex::default());
        Ok(Self { id, bundle, pid, _node_pid: node_pid, owns_vm, is_sandbox, oom_score, init, execs })
    }

    pub fn process(&self, exec: &str) -> Result<Arc<Process>, TaskError> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let exec: Identifier = exec.parse()?;
        let process = lock(&self.execs).get(&exec).cloned();
        process.ok_or_else(|| TaskError::NoProcess { container: self.id.clone(), exec })
    }

    pub fn add(&self, exec: &Identifier, stdio: Stdio) -> Result<Arc<Process>, TaskError> {
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec) {
            return Err(TaskError::ProcessExists { container: self.id.clone(), exec: exec.clone() });
        }
        if execs.len() >= MAX_EXECS {
            return Err(TaskError::Invalid(format!("container {} has {MAX_EXECS} added processes already", self.id)));
        }
        let process = Arc::new(Process::new(self.id.clone(), Some(exec.clone()), stdio));
        execs.insert(exec.clone(), process.clone());
        Ok(process)
    }

    pub fn remove(&self, exec: &Identifier) {
        lock(&self.execs).remove(exec);
    }

    pub fn execs(&self) -> Vec<Arc<Process>> {
        lock(&self.execs).values().cloned().collect()
    }

    /// Errors unless there is a container in the guest that can be asked something.
    pub fn in_use(&self) -> Result<(), TaskError> {
        if self.is_sandbox {
            return Err(TaskError::RunsNothing(self.id.clone()));
        }
        self.init.allows(Question::Use)
    }
}

impl Process {
    fn new(container: Identifier, exec: Option<Identifier>, stdio: Stdio) -> Self {
        let phase = watch::Sender::new(Phase::Created);
        let (copies, stdin_closed, deletion) = Default::default();
        Self { container, exec, stdio, phase, copies, stdin_closed, deletion }
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Empty for a container's first process, as in requests and events.
    pub fn exec_id(&self) -> &str {
        self.exec.as_ref().map_or("", Identifier::as_str)
    }

    pub fn request(&self) -> ProcessRequest {
        ProcessRequest {
            container_id: self.container.to_string(),
            exec_id: self.exec_id().to_owned(),
            ..Default::default()
        }
    }

    /// Changes the phase, or says why not.
    pub fn change(&self, change: Change) -> Result<(), TaskError> {
        let mut result = Ok(());
        self.phase.send_if_modified(|phase| match phase.after(change) {
            Ok(next) => {
                *phase = next;
                true
            }
            Err(refusal) => {
                result = Err(TaskError::Refused { process: self.to_string(), refusal });
                false
            }
        });
        result
    }

    pub fn allows(&self, question: Question) -> Result<(), TaskError> {
        self.phase().allows(question).map_err(|refusal| TaskError::Refused { process: self.to_string(), refusal })
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`, and a stopped phase has an exit.
        let phase = phase.wait_for(|phase| phase.exit().is_some()).await.map(|phase| *phase);
        phase.ok().and_then(Phase::exit).unwrap_or(Exit::now(Exit::KILLED))
    }

    /// Returns when no start is under way.
    pub async fn settled(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Starting).await;
    }

    pub fn set_copies(&self, copies: Copies) {
        *lock(&self.copies) = Some(Arc::new(copies));
    }

    pub fn copies(&self) -> Option<Arc<Copies>> {
        lock(&self.copies).clone()
    }

    /// Begins to copy stdin. Closed before, it is at its end when the clients that have it open by now are.
    pub fn begin_input(&self) -> Result<(), StdioError> {
        let Some(copies) = self.copies() else { return Ok(()) };
        copies.begin_input()?;
        // After the copying has begun: `close_stdin` sets the flag first, so one of the two sees the other.
        if self.stdin_closed.load(Ordering::SeqCst) {
            copies.close_stdin();
        }
        Ok(())
    }

    pub fn close_stdin(&self) {
        self.stdin_closed.store(true, Ordering::SeqCst);
        if let Some(copies) = self.copies() {
            copies.close_stdin();
        }
    }

    /// For who deletes it. One who comes when that is under way waits, and finds whether it is done: containerd gives up on a deletion after
    /// 10 s, asks again, and takes "there is none" for its end.
    pub async fn deletion(&self) -> tokio::sync::MutexGuard<'_, bool> {
        self.deletion.lock().await
    }

    /// Ends all copying and closes the node's ends of the streams.
    pub fn close_stdio(&self) {
        if let Some(copies) = lock(&self.copies).take() {
            copies.stop();
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.exec {
            None => write!(formatter, "container {}", self.container),
            Some(exec) => write!(formatter, "process {exec} of container {}", self.container),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
