//! crun's command line, and its last words when it fails.
//!
//! crun shares its standard streams with the container, so errors come through a log file. Every run has
//! a deadline, its wait for a slot included: a runtime that hangs must not hold the shim's call, nor the slot of the next
//! one. The shim waits longer for a call than the runs in it can take.
//!
//! The agent is protected from the OOM killer, and scores are inherited: every crun starts with the score that its
//! container has.

#![expect(unsafe_code, reason = "the child sets its own score between fork and exec")]

use crate::error::Error;
use crate::id::ContainerId;
use crate::reaper::{Child, Exit, Launch, Reaper};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// Runs at the same time. More would only take memory from the containers.
const SLOTS: usize = 8;

/// For what starts programs of the container.
const LONG: Duration = Duration::from_secs(60);

/// For what only changes or removes.
const SHORT: Duration = Duration::from_secs(20);

/// Longest log that is searched for an error, and the longest error taken from it, in bytes.
const MAX_LOG: usize = 64 * 1024;
const MAX_MESSAGE: usize = 1024;

/// The standard streams of a process that crun is to create; `None` is /dev/null.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// The process that crun is to run next.
#[derive(Debug, Default)]
pub struct Launched<'a> {
    pub streams: ProcessStreams,
    /// Where crun sends the terminal, if the process has one.
    pub console: Option<&'a Path>,
    pub oom_score: i64,
}

#[derive(Debug)]
pub struct Crun {
    program: PathBuf,
    state: PathBuf,
    reaper: Arc<Reaper>,
    slots: Semaphore,
}

impl Crun {
    /// `state` is where crun remembers its containers.
    pub fn new(program: PathBuf, state: PathBuf, reaper: Arc<Reaper>) -> Self {
        Self { program, state, reaper, slots: Semaphore::new(SLOTS) }
    }

    /// Makes the container of `bundle`; its first process waits for `start`.
    pub async fn create(&self, id: &ContainerId, bundle: &Path, process: Launched<'_>) -> Result<Child, Error> {
        let pid_file = bundle.join("init.pid");
        let mut args = vec![OsString::from("--bundle"), bundle.into(), "--pid-file".into(), (&pid_file).into()];
        args.extend(console_arguments(process.console));
        let launch = self.reaper.launch();
        self.run("create", id, &args, process, &bundle.join("create.log")).await?;
        adopt(&launch, &pid_file)
    }

    pub async fn start(&self, id: &ContainerId, bundle: &Path) -> Result<(), Error> {
        self.run("start", id, &[], Launched::default(), &bundle.join("start.log")).await
    }

    /// Runs the process of the OCI document in the container. Files beside the document are scratch.
    pub async fn exec(&self, id: &ContainerId, document: &Path, process: Launched<'_>) -> Result<Child, Error> {
        let pid_file = document.with_extension("pid");
        let mut args = vec![OsString::from("--detach"), "--process".into(), document.into()];
        args.extend(["--pid-file".into(), (&pid_file).into()]);
        args.extend(console_arguments(process.console));
        let launch = self.reaper.launch();
        self.run("exec", id, &args, process, &document.with_extension("log")).await?;
        let child = adopt(&launch, &pid_file);
        std::fs::remove_file(&pid_file).ok();
        child
    }

    pub async fn update(&self, id: &ContainerId, bundle: &Path, resources: &Path) -> Result<(), Error> {
        let args = ["--resources".into(), resources.into()];
        self.run("update", id, &args, Launched::default(), &bundle.join("update.log")).await
    }

    /// Removes the container's cgroup and crun's record of it, killing what is left.
    pub async fn delete(&self, id: &ContainerId, bundle: &Path) -> Result<(), Error> {
        self.run("delete", id, &["--force".into()], Launched::default(), &bundle.join("delete.log")).await
    }

    async fn run(
        &self,
        verb: &'static str,
        id: &ContainerId,
        args: &[OsString],
        process: Launched<'_>,
        log: &Path,
    ) -> Result<(), Error> {
        let limit = if ["update", "delete"].contains(&verb) { SHORT } else { LONG };
        let end = Instant::now() + limit;
        let late =
            || Error::Deadline { operation: verb, object: format!("container `{id}`"), seconds: limit.as_secs() };
        let slot = timeout_at(end, self.slots.acquire()).await;
        let _slot = slot.map_err(|_| late())?.expect("never closed");
        let mut command = Command::new(&self.program);
        command.env_clear().current_dir("/").arg("--root").arg(&self.state).arg("--cgroup-manager=cgroupfs");
        command.arg("--log").arg(log).arg("--log-format=json").arg(verb).args(args).arg(id.as_str());
        let streams = process.streams;
        command.stdin(stdio(streams.stdin)).stdout(stdio(streams.stdout)).stderr(stdio(streams.stderr));
        set_oom_score(&mut command, process.oom_score);
        let spawned = self.reaper.launch().spawn(&mut command);
        // The command holds the process's ends of its pipes: an end of file needs them closed.
        drop(command);
        let child = spawned.map_err(Error::system("run", self.program.display()))?;
        let exit = finish(child, end).await?.ok_or_else(late)?;
        let message = if exit.status == 0 { None } else { Some(last_error(log)) };
        std::fs::remove_file(log).ok();
        match message {
            None => Ok(()),
            Some(Some(message)) => Err(Error::Runtime { message }),
            Some(None) => {
                Err(Error::Runtime { message: format!("crun {verb} {id} ended with status {}", exit.status) })
            }
        }
    }
}

/// `None` when crun had to be killed.
async fn finish(mut child: Child, end: Instant) -> Result<Option<Exit>, Error> {
    if let Ok(exit) = timeout_at(end, child.wait()).await {
        return Ok(Some(exit));
    }
    child.signal(libc::SIGKILL).map_err(Error::system("kill", "crun"))?;
    child.wait().await;
    Ok(None)
}

fn set_oom_score(command: &mut Command, score: i64) {
    let score = score.to_string();
    let set = move || {
        // SAFETY: both are valid C strings.
        let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
        if file < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: `score` is owned by this closure and has that many bytes. The descriptor closes with the exec.
        match unsafe { libc::write(file, score.as_ptr().cast(), score.len()) } {
            0.. => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec `set` only makes system calls: it allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}

fn console_arguments(console: Option<&Path>) -> Vec<OsString> {
    console.map_or_else(Vec::new, |path| vec!["--console-socket".into(), path.into()])
}

fn stdio(end: Option<OwnedFd>) -> Stdio {
    end.map_or_else(Stdio::null, Stdio::from)
}

fn adopt(launch: &Launch, pid_file: &Path) -> Result<Child, Error> {
    let text = std::fs::read_to_string(pid_file).map_err(Error::system("read", pid_file.display()))?;
    match text.trim().parse() {
        Ok(pid) if pid > 1 => Ok(launch.adopt(pid)),
        _ => Err(Error::Runtime { message: format!("crun left no pid in {}", pid_file.display()) }),
    }
}

fn last_error(log: &Path) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_LOG)]).into_owned();
    parse_log(&text)
}

/// The last error of a log of JSON lines.
fn parse_log(text: &str) -> Option<String> {
    let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut errors = lines.filter(|line| line["level"] == "error");
    let message = errors.find_map(|line| line["msg"].as_str().map(str::to_owned))?;
    let cut = (0..=MAX_MESSAGE.min(message.len())).rev().find(|&at| message.is_char_boundary(at))?;
    Some(message[..cut].trim().to_owned()).filter(|message| !message.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_wait_for_a_slot_counts() {
        let crun = Crun::new("/nonexistent".into(), "/nonexistent".into(), Arc::new(Reaper::default()));
        let _others = crun.slots.acquire_many(u32::try_from(SLOTS).unwrap()).await.unwrap();
        let (id, bundle) = (ContainerId::parse("web").unwrap(), Path::new("/nonexistent"));
        for (error, limit) in
            [(crun.start(&id, bundle).await.unwrap_err(), "60"), (crun.delete(&id, bundle).await.unwrap_err(), "20")]
        {
            assert!(matches!(error, Error::Deadline { .. }) && error.to_string().contains(limit), "{error}");
        }
    }

    #[test]
    fn the_last_error_of_the_log_is_the_message() {
        let log = r#"{"msg": "first", "level": "error", "time": "t"}
{"msg": "executable file `foo` not found in $PATH", "level": "error", "time": "t"}
{"msg": "not important", "level": "warning", "time": "t"}
half a line"#;
        assert_eq!(parse_log(log).unwrap(), "executable file `foo` not found in $PATH");
    }

    #[test]
    fn a_log_without_errors_has_no_message() {
        assert_eq!(parse_log(""), None);
        assert_eq!(parse_log("junk\n[1]\n{\"msg\": 7, \"level\": \"error\"}"), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let log = format!(r#"{{"msg": "{}", "level": "error"}}"#, "é".repeat(MAX_MESSAGE));
        assert_eq!(parse_log(&log).unwrap().len(), MAX_MESSAGE);
    }
}
