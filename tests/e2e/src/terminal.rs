//! `ctr` on a pseudo-terminal, as a person would use it.

use nix::pty::{OpenptyResult, Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A `ctr` that believes it talks to a person.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    seen: String,
}

nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    pub fn start(arguments: &[String], columns: u16, rows: u16) -> Self {
        let OpenptyResult { master, slave } = openpty(Some(&size(columns, rows)), None).expect("a pseudo-terminal");
        let mut command = Command::new("ctr");
        command.args(arguments);
        command.stdin(Stdio::from(slave.try_clone().expect("a copy")));
        command.stdout(Stdio::from(slave.try_clone().expect("a copy"))).stderr(Stdio::from(slave));
        #[expect(unsafe_code, reason = "a terminal becomes the controlling one only in the child")]
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing else runs between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                nix::errno::Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
        let child = command.spawn().expect("ctr is installed");
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("non-blocking");
        Self { master: File::from(master), child, seen: String::new() }
    }

    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("the terminal takes input");
    }

    /// The kernel tells `ctr` by SIGWINCH.
    pub fn resize(&self, columns: u16, rows: u16) {
        #[expect(unsafe_code, reason = "nix has no safe call for TIOCSWINSZ")]
        // SAFETY: the descriptor is a terminal and the structure lives through the call.
        unsafe {
            set_window_size(self.master.as_raw_fd(), &size(columns, rows)).expect("the window has a size");
        }
    }

    /// Reads until `text` shows.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        self.wait_until(text, |_| {});
    }

    /// Types `command` until its output shows `text`: for what takes a moment to arrive, like a resize.
    #[track_caller]
    pub fn expect_from(&mut self, command: &str, text: &str) {
        self.wait_until(text, |terminal| terminal.type_in(command));
    }

    #[track_caller]
    fn wait_until(&mut self, text: &str, mut each_time: impl FnMut(&mut Self)) {
        let deadline = Instant::now() + crate::PATIENCE;
        self.drain();
        while !self.seen.contains(text) {
            assert!(Instant::now() < deadline, "{text:?} never showed; seen: {:?}", self.seen);
            each_time(self);
            std::thread::sleep(Duration::from_millis(300));
            self.drain();
        }
    }

    /// Waits for `ctr` to end and returns its exit code.
    pub fn finish(mut self) -> i32 {
        let deadline = Instant::now() + crate::PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("ctr can be waited for") {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "ctr did not end; seen: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(50));
            self.drain();
        }
    }

    /// Takes what has been shown so far.
    fn drain(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = self.master.read(&mut buffer) {
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
