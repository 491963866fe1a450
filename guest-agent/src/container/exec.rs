//! Processes that are added to a running container.

use super::{Container, Process};
use crate::agent::Agent;
use crate::crun::{Launched, ProcessStreams};
use crate::error::Error;
use crate::id::{ExecId, ProcessName};
use crate::reaper::{Child, Exit};
use crate::spec::ProcessSpec;
use crate::stdio::{ConsoleSocket, Stdio, Wanted};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Added processes of one container at a time, ended ones that nobody deleted included.
const MAX_EXECS: usize = 1024;

/// Status of a process that could not be started.
const NOT_STARTED: u32 = 255;

#[derive(Debug)]
pub(super) struct Exec {
    pub(super) process: Arc<Process>,
    /// The OCI document for crun.
    document: PathBuf,
    terminal: bool,
    /// The process's ends of its pipes, until it has them.
    ends: Mutex<Option<ProcessStreams>>,
}

impl Container {
    /// Remembers a process that `start_exec` is going to run.
    pub fn create_exec(&self, agent: &Agent, id: ExecId, spec: &ProcessSpec, wanted: Wanted) -> Result<(), Error> {
        let name = ProcessName { container: self.id.clone(), exec: Some(id.clone()) };
        self.check_running("add a process to")?;
        let mut execs = self.execs();
        if execs.contains_key(&id) {
            return Err(Error::ProcessExists(name));
        }
        if execs.len() >= MAX_EXECS {
            return Err(Error::Limit { what: "added processes in a container", limit: MAX_EXECS });
        }
        let terminal = spec.terminal();
        let (stdio, ends) = if terminal {
            (Stdio::terminal(wanted), None)
        } else {
            let (stdio, ends) = Stdio::pipes(wanted)?;
            (stdio, Some(ends))
        };
        let document = self.bundle.join(format!("process-{}.json", agent.paths.serial()));
        std::fs::write(&document, spec.to_json()).map_err(Error::system("write", document.display()))?;
        let process = Arc::new(Process::new(name, stdio, None));
        execs.insert(id, Arc::new(Exec { process, document, terminal, ends: Mutex::new(ends) }));
        Ok(())
    }

    /// The pid of the process, which runs now or has just run.
    pub async fn start_exec(&self, agent: &Agent, id: &ExecId, name: &ProcessName) -> Result<u32, Error> {
        let exec = self.exec(id, name)?;
        self.check_running("add a process to")?;
        if *self.paused.lock().await {
            let process = self.init.name.clone();
            return Err(Error::WrongState { operation: "add a process to", process, state: "is paused" });
        }
        exec.process.begin_start()?;
        let result = exec.run(agent, self).await;
        std::fs::remove_file(&exec.document).ok();
        match result {
            Ok(child) => {
                let pid = child.pid();
                exec.process.started(Some(child.clone()));
                tokio::spawn(follow(Arc::clone(&exec.process), child));
                Ok(pid)
            }
            Err(error) => {
                exec.process.ended(Exit::now(NOT_STARTED));
                // crun can't say more than that the container is not there; why, is known here.
                self.check_running("add a process to").and(Err(error))
            }
        }
    }

    /// Forgets an added process that doesn't run.
    pub fn remove_exec(&self, id: &ExecId, name: &ProcessName) -> Result<(), Error> {
        let exec = self.exec(id, name)?;
        exec.process.removal()?;
        self.execs().remove(id);
        std::fs::remove_file(&exec.document).ok();
        Ok(())
    }
}

impl Exec {
    async fn run(&self, agent: &Agent, container: &Container) -> Result<Child, Error> {
        let name = &self.process.name;
        let mut launched = Launched { oom_score: container.oom_score, ..Launched::default() };
        if !self.terminal {
            launched.streams = self.ends.lock().expect("no holder panics").take().unwrap_or_default();
            return agent.crun.exec(&container.id, &self.document, launched).await;
        }
        let socket = ConsoleSocket::bind(agent.paths.scratch("console")).map_err(Error::system("listen for", name))?;
        launched.console = Some(socket.path());
        let child = agent.crun.exec(&container.id, &self.document, launched).await?;
        let terminal = socket.receive().map_err(Error::system("take the terminal of", name))?;
        self.process.stdio.set_terminal(terminal);
        Ok(child)
    }
}

async fn follow(process: Arc<Process>, mut child: Child) {
    let exit = child.wait().await;
    process.ended(exit);
}
