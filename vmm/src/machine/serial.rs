//! The debug serial port: the kernel's messages from its first instruction on, before any driver runs.

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

/// First of the port's eight I/O ports.
pub const BASE: u16 = 0x3f8;
pub const LENGTH: u16 = 8;

/// The kernel polls the port while it prints, which is all that it is for.
#[derive(Debug)]
struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what the log takes and drops the rest: the guest never waits for the log's reader.
#[derive(Debug)]
struct Lossy(File);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct DebugSerial(Mutex<Serial<NoInterrupt, NoEvents, Lossy>>);

impl std::fmt::Debug for DebugSerial {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("DebugSerial")
    }
}

impl DebugSerial {
    /// A port that writes to `log`, which becomes non-blocking.
    pub fn new(log: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&log, FcntlArg::F_GETFL)?);
        fcntl(&log, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self(Mutex::new(Serial::new(NoInterrupt, Lossy(File::from(log))))))
    }

    pub fn read(&self, register: u8) -> u8 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(register)
    }

    pub fn write(&self, register: u8, value: u8) {
        let mut serial = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = serial.write(register, value) {
            crate::guest_warn!(?error, "cannot write to the debug serial port");
        }
    }
}
