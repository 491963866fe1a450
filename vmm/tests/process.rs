//! The VMM's process, from the outside: how it begins and how it ends. No guest runs here.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use nix::unistd::Uid;
use std::fs::File;
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use vmm_protocol::{Call, DeviceId, FdSlot, Jail, MAX_MESSAGE, MIN_MEMORY_MIB, Machine, Message, Request, Restore};

struct Vmm {
    process: Child,
    shim: OwnedFd,
}

impl Vmm {
    fn spawn() -> Self {
        let (shim, vmm) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-vmm"))
            .env_clear()
            .stdin(Stdio::from(vmm))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, shim }
    }

    fn send(&self, call: Call, descriptors: &[RawFd]) {
        let bytes = vmm_protocol::encode(&Request { id: 7, call }).unwrap();
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(self.shim.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::empty(), None).unwrap();
    }

    /// The error that answers the only request.
    fn error(&self) -> String {
        let mut bytes = vec![0; MAX_MESSAGE];
        let length = recv(self.shim.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
        match vmm_protocol::decode(&bytes[..length]).unwrap() {
            Message::Reply(reply) if reply.id == 7 => reply.result.unwrap_err(),
            other => panic!("{other:?}"),
        }
    }

    fn end(mut self) -> ExitStatus {
        drop(self.shim);
        self.process.wait().unwrap()
    }
}

fn machine() -> Machine {
    Machine {
        version: vmm_protocol::VERSION.into(),
        jail: Jail { uid: 70001, gid: 70001 },
        vcpus: 1,
        memory_mib: 64,
        growth_mib: 0,
        command_line: String::new(),
        kvm: FdSlot(0),
        kernel: FdSlot(1),
        root_image: FdSlot(2),
        console: FdSlot(3),
        debug_serial: false,
        template: false,
    }
}

/// Boots with these files; returns the error and how the process ended.
fn boot(machine: Machine, kvm: &File, kernel: &File, image: &File) -> (String, ExitStatus) {
    let vmm = Vmm::spawn();
    let (_log, console) = std::io::pipe().unwrap();
    let descriptors = [kvm.as_raw_fd(), kernel.as_raw_fd(), image.as_raw_fd(), console.as_raw_fd()];
    vmm.send(Call::Boot(Box::new(machine)), &descriptors);
    (vmm.error(), vmm.end())
}

fn null() -> File {
    File::open("/dev/null").unwrap()
}

fn file(length: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"#!/bin/sh").unwrap();
    file.set_len(length).unwrap();
    file
}

/// What a jail and a machine need, or a line that says that the test was skipped.
fn kvm() -> Option<File> {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    if !Uid::effective().is_root() || kvm.is_err() {
        println!("SKIPPED: not root, or no /dev/kvm");
        return None;
    }
    kvm.ok()
}

#[test]
fn the_process_ends_when_the_shim_is_gone() {
    assert!(Vmm::spawn().end().success());
}

#[test]
fn inherited_descriptors_are_closed() {
    // Unlike `std::io::pipe`, this one is inherited.
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let vmm = Vmm::spawn();
    drop(writer);
    // Children of tests that run beside this one have it too, until they close it.
    let mut ends = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut ends, PollTimeout::from(10_000_u16)).unwrap(), 1, "the VMM has the pipe still");
    assert!(vmm.end().success());
}

#[test]
fn anything_but_boot_is_refused_at_first() {
    let vmm = Vmm::spawn();
    vmm.send(Call::Detach { device: DeviceId(0) }, &[]);
    assert_eq!(vmm.error(), "first request is neither boot nor restore");
    assert_eq!(vmm.end().code(), Some(1));
}

#[test]
fn a_machine_beyond_the_limits_is_refused() {
    let (error, status) = boot(Machine { memory_mib: 1, ..machine() }, &null(), &null(), &null());
    assert!(error.contains("1 MiB") && error.contains(&MIN_MEMORY_MIB.to_string()), "{error}");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_descriptor_that_was_not_brought_is_refused() {
    let (error, _) = boot(Machine { console: FdSlot(9), ..machine() }, &null(), &null(), &null());
    assert!(error.contains("descriptor 9"), "{error}");
}

#[test]
fn the_host_users_root_cannot_be_the_jails() {
    let jail = Jail { uid: 0, gid: 70001 };
    let (error, _) = boot(Machine { jail, ..machine() }, &null(), &null(), &null());
    assert!(error.contains("user 0"), "{error}");
}

#[test]
fn something_else_than_kvm_is_refused() {
    if kvm().is_none() {
        return;
    }
    let (error, _) = boot(machine(), &null(), &null(), &null());
    assert!(error.contains("KVM"), "{error}");
}

#[test]
fn a_kernel_that_is_none_is_named() {
    let Some(kvm) = kvm() else { return };
    let (error, _) = boot(machine(), &kvm, &file(4096), &file(2 << 20));
    assert_eq!(error, "kernel is not an ELF executable for x86-64");
    let (error, _) = boot(machine(), &kvm, &file(0), &file(2 << 20));
    assert!(error.starts_with("cannot read the kernel's headers"), "{error}");
}

#[test]
fn a_root_image_of_the_wrong_size_is_named() {
    let Some(kvm) = kvm() else { return };
    for length in [0, 4096, (2 << 20) + 1] {
        let (error, _) = boot(machine(), &kvm, &file(4096), &file(length));
        assert_eq!(error, format!("root image is {length} bytes long, which is not a multiple of 2 MiB"));
    }
}

#[test]
fn a_command_line_that_is_too_long_is_refused() {
    let Some(kvm) = kvm() else { return };
    let machine = Machine { command_line: "x".repeat(4096), ..machine() };
    let (error, status) = boot(machine, &kvm, &file(4096), &file(2 << 20));
    assert!(error.contains("command line"), "{error}");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn a_state_that_is_none_is_named() {
    let Some(kvm) = kvm() else { return };
    for (length, wanted) in
        [(4096, "file is no saved state"), (0, "which it cannot be"), (2 << 20, "which it cannot be")]
    {
        let vmm = Vmm::spawn();
        let (_log, console) = std::io::pipe().unwrap();
        let (memory, state, image) = (file(4096), file(length), file(2 << 20));
        if length == 0 {
            state.set_len(0).unwrap();
        }
        let restore = Restore {
            version: vmm_protocol::VERSION.into(),
            jail: Jail { uid: 70001, gid: 70001 },
            vcpus: 1,
            kvm: FdSlot(0),
            memory: FdSlot(1),
            state: FdSlot(2),
            root_image: FdSlot(3),
            console: FdSlot(4),
            growth_mib: 0,
        };
        let files = [kvm.as_raw_fd(), memory.as_raw_fd(), state.as_raw_fd(), image.as_raw_fd(), console.as_raw_fd()];
        vmm.send(Call::Restore(Box::new(restore)), &files);
        let error = vmm.error();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(vmm.end().code(), Some(1));
    }
}
