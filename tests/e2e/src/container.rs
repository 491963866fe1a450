//! A container, started with `ctr`, removed when the test ends however it ends.

use crate::{PATIENCE, RUNTIME};
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// What to run.
#[derive(Clone, Debug)]
pub struct Container {
    id: String,
    image: String,
    snapshotter: String,
    arguments: Vec<String>,
    command: Vec<String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Finished {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The same, after making sure that it went well.
    #[track_caller]
    pub fn success(self) -> Self {
        assert_eq!(self.code, 0, "stdout: {}\nstderr: {}", self.stdout(), self.stderr());
        self
    }
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr: output.stderr }
    }
}

/// What `ctr` ends with when a busy node gave it no connection to containerd in its time: nothing was asked.
const NOT_CONNECTED: &str = "ctr: connection error: desc = \"transport: failed to write client preface";

/// Runs `ctr` with `arguments`, feeding `input`. A call that outlasts every patience is killed and fails.
pub fn ctr_with_input(arguments: &[&str], input: &[u8]) -> Finished {
    let tries = std::iter::repeat_with(|| ctr_once(arguments, input)).take(3);
    let mut connected = tries.skip_while(|finished| finished.stderr().contains(NOT_CONNECTED));
    connected.next().unwrap_or_else(|| panic!("ctr {arguments:?} reaches containerd"))
}

fn ctr_once(arguments: &[&str], input: &[u8]) -> Finished {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &PATIENCE.as_secs().to_string(), "ctr"]).args(arguments);
    let started = Instant::now();
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ctr is installed");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that ends without reading its input closes the pipe, which is its right.
        stdin.write_all(&input).ok();
    });
    let finished = Finished::from(child.wait_with_output().expect("ctr can be waited for"));
    writer.join().expect("the writer does not panic");
    assert!(started.elapsed() < PATIENCE, "ctr {arguments:?} never returned; stderr: {}", finished.stderr());
    finished
}

pub fn ctr(arguments: &[&str]) -> Finished {
    ctr_with_input(arguments, b"")
}

impl Container {
    pub fn new(image: &str, snapshotter: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("e2e-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { id, image: image.into(), snapshotter: snapshotter.into(), arguments: Vec::new(), command: Vec::new() }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// A flag of `ctr run`.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|&word| word.into()).collect();
        self
    }

    pub fn shell(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// The command line after `ctr`.
    pub fn line(&self, mode: &[&str]) -> Vec<String> {
        let mut line: Vec<String> = vec!["run".into(), "--runtime".into(), RUNTIME.into()];
        line.extend(["--snapshotter".into(), self.snapshotter.clone()]);
        line.extend(mode.iter().map(|&flag| flag.into()));
        line.extend(self.arguments.iter().cloned());
        line.extend([self.image.clone(), self.id.clone()]);
        line.extend(self.command.iter().cloned());
        line
    }

    /// Runs it to its end.
    pub fn run(self) -> Finished {
        self.run_with_input(b"")
    }

    pub fn run_with_input(self, input: &[u8]) -> Finished {
        let line = self.line(&["--rm"]);
        let finished = ctr_with_input(&line.iter().map(String::as_str).collect::<Vec<_>>(), input);
        if finished.code != 0 {
            // `--rm` does not remove what failed to start.
            remove(&self.id);
        }
        finished
    }

    /// Makes it without starting it: it keeps its disk for as many tasks as it gets.
    #[track_caller]
    pub fn create(self) -> Running {
        let mut line = self.line(&[]);
        line.splice(..1, ["container".into(), "create".into()]);
        let running = Running { id: self.id };
        ctr(&line.iter().map(String::as_str).collect::<Vec<_>>()).success();
        running
    }

    /// Starts it in the background.
    #[track_caller]
    pub fn start(self) -> Running {
        let line = self.line(&["--detach", "--null-io"]);
        let running = Running { id: self.id };
        ctr(&line.iter().map(String::as_str).collect::<Vec<_>>()).success();
        running
    }
}

/// A container in the background.
#[derive(Debug)]
pub struct Running {
    id: String,
}

impl Running {
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs another command in the container.
    pub fn exec(&self, command: &[&str]) -> Finished {
        self.exec_with_input(command, b"")
    }

    pub fn exec_with_input(&self, command: &[&str], input: &[u8]) -> Finished {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let exec = format!("exec-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut line = vec!["task", "exec", "--exec-id", &exec, &self.id];
        line.extend(command);
        ctr_with_input(&line, input)
    }

    pub fn shell(&self, script: &str) -> Finished {
        self.exec(&["/bin/sh", "-c", script])
    }

    pub fn kill(&self, signal: &str) -> Finished {
        ctr(&["task", "kill", "--signal", signal, &self.id])
    }

    /// `RUNNING`, `PAUSED`, `STOPPED`; empty without a task.
    pub fn status(&self) -> String {
        let tasks = ctr(&["task", "ls"]).stdout();
        let line = tasks.lines().find(|line| line.split_whitespace().next() == Some(&self.id));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default().to_owned()
    }

    /// The process id that containerd knows.
    pub fn pid(&self) -> u32 {
        let tasks = ctr(&["task", "ls"]).success().stdout();
        let line = tasks.lines().find(|line| line.split_whitespace().next() == Some(&self.id)).expect("a task");
        line.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()).expect("a pid")
    }

    /// Deletes the stopped task and returns the exit code that containerd kept.
    #[track_caller]
    pub fn delete_stopped(self) -> i32 {
        crate::eventually("the task has stopped", || self.status() == "STOPPED");
        let deleted = ctr(&["task", "delete", &self.id]).success();
        // ctr has no other word for it than a warning, and is silent about zero.
        let warning = deleted.stderr();
        let code = warning.split_once("non-zero exit code ").map_or("0", |(_, rest)| rest);
        let code: String = code.chars().take_while(char::is_ascii_digit).collect();
        code.parse().unwrap_or_else(|_| panic!("no exit code in {warning:?}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        remove(&self.id);
    }
}

/// Removes whatever there is of a container.
fn remove(id: &str) {
    ctr(&["task", "kill", "--signal", "SIGKILL", id]);
    ctr(&["task", "delete", "--force", id]);
    ctr(&["container", "delete", id]);
}
