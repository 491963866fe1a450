//! Every TCP connection to a loopback address of the network namespace goes to one of two listeners.
//!
//! A BPF program of the kind `sk_lookup` (Linux 5.9) chooses the socket before the kernel looks for one by port. It is a
//! few instructions, written out here; the kernel's verifier proves that they are harmless.
#![expect(unsafe_code, reason = "bpf(2) has no wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Commands of bpf(2).
const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const PROGRAM_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;

const SOCKET_MAP: u32 = 15;
const SK_LOOKUP_PROGRAM: u32 = 30;
const SK_LOOKUP_ATTACH: u32 = 36;

/// Places in the socket map.
const V4: u32 = 0;
const V6: u32 = 1;

/// Attributes as the kernel reads them, zeros at their end included.
type Attributes = [u64; 16];

/// Steers until the returned descriptor is closed. For the calling thread's network namespace.
pub fn steer(v4: BorrowedFd<'_>, v6: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let map = socket_map()?;
    put(&map, V4, v4)?;
    if let Some(v6) = v6 {
        put(&map, V6, v6)?;
    }
    let program = load(&program(map.as_raw_fd()))?;
    let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
    link(&program, namespace.as_raw_fd())
}

fn socket_map() -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    let (key, value, entries) = (4, 8, 2);
    attributes[0] = pair(SOCKET_MAP, key);
    attributes[1] = pair(value, entries);
    open(MAP_CREATE, &mut attributes)
}

fn put(map: &OwnedFd, place: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
    let value = u64::from(number(socket.as_raw_fd())?);
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(map.as_raw_fd())?, 0);
    attributes[1] = (&raw const place).addr() as u64;
    attributes[2] = (&raw const value).addr() as u64;
    bpf(MAP_UPDATE, &mut attributes).map(drop)
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let length = u32::try_from(program.len()).map_err(io::Error::other)?;
    let license = c"Apache-2.0";
    let mut attributes = Attributes::default();
    attributes[0] = pair(SK_LOOKUP_PROGRAM, length);
    attributes[1] = program.as_ptr().addr() as u64;
    attributes[2] = license.as_ptr().addr() as u64;
    // Byte 68: what it will be attached to.
    attributes[8] = pair(0, SK_LOOKUP_ATTACH);
    open(PROGRAM_LOAD, &mut attributes)
}

fn link(program: &OwnedFd, namespace: i32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(number(program.as_raw_fd())?, number(namespace)?);
    attributes[1] = pair(SK_LOOKUP_ATTACH, 0);
    open(LINK_CREATE, &mut attributes)
}

/// Two neighbouring 32-bit fields.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn number(descriptor: i32) -> io::Result<u32> {
    u32::try_from(descriptor).map_err(io::Error::other)
}

/// A command that answers with a descriptor.
fn open(command: libc::c_long, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn bpf(command: libc::c_long, attributes: &mut Attributes) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most the size that it is told, which is that of the attributes. What they
    // point to (a key, a value, a program, a licence) is alive in the callers until this returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { i32::try_from(result).map_err(io::Error::other) }
}

/// Fields of the program's context, `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_V4: i16 = 40;
const LOCAL_V6: [i16; 4] = [44, 48, 52, 56];

/// Operations of the processor that BPF describes.
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const ADD_NUMBER: u8 = 0x07;
const AND_NUMBER: u8 = 0x57;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x63;
const LOAD_MAP: u8 = 0x18;
const JUMP: u8 = 0x05;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Functions of the kernel.
const MAP_LOOK_UP: i32 = 1;
const SOCKET_RELEASE: i32 = 86;
const SOCKET_ASSIGN: i32 = 124;

/// The kernel goes on as usual, with the socket that was assigned, if any.
const PASS: i32 = 1;

/// An instruction: operation, target and source register, offset, number.
fn instruction(operation: u8, target: u8, source: u8, offset: i16, number: i32) -> u64 {
    let mut bytes = [0; 8];
    bytes[0] = operation;
    // Registers are bit fields, whose order is the processor's.
    bytes[1] = if cfg!(target_endian = "little") { source << 4 | target } else { target << 4 | source };
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&number.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

/// r6 keeps the context, r7 the place in the map and then the socket, r10 is the end of the stack.
fn program(map: i32) -> Vec<u64> {
    let word = |register, offset| instruction(LOAD_WORD, register, 6, offset, 0);
    let unless = |number, to: i16| instruction(JUMP_UNLESS_EQUAL, 0, 0, to, number);
    // Addresses are in the network's order: the number is compared as it lies in memory.
    let of_network = |address: u32| i32::from_ne_bytes(address.to_be_bytes());
    let mut program = vec![
        instruction(MOVE, 6, 1, 0, 0),
        word(0, PROTOCOL),
        unless(libc::IPPROTO_TCP, 31),
        word(0, FAMILY),
        instruction(JUMP_IF_EQUAL, 0, 0, 11, libc::AF_INET),
        unless(libc::AF_INET6, 28),
        // Index 6: ::1?
        word(0, LOCAL_V6[0]),
        unless(0, 26),
        word(0, LOCAL_V6[1]),
        unless(0, 24),
        word(0, LOCAL_V6[2]),
        unless(0, 22),
        word(0, LOCAL_V6[3]),
        unless(of_network(1), 20),
        instruction(MOVE_NUMBER, 7, 0, 0, V6.cast_signed()),
        instruction(JUMP, 0, 0, 4, 0),
        // Index 16: 127.0.0.0/8?
        word(0, LOCAL_V4),
        instruction(AND_NUMBER, 0, 0, 0, of_network(0xff00_0000)),
        unless(of_network(0x7f00_0000), 15),
        instruction(MOVE_NUMBER, 7, 0, 0, V4.cast_signed()),
        // Index 20: the socket at that place.
        instruction(STORE_WORD, 10, 7, -4, 0),
        instruction(LOAD_MAP, 1, 1, 0, map),
        0,
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_NUMBER, 2, 0, 0, -4),
        instruction(CALL, 0, 0, 0, MAP_LOOK_UP),
        instruction(JUMP_IF_EQUAL, 0, 0, 7, 0),
        instruction(MOVE, 7, 0, 0, 0),
        instruction(MOVE, 1, 6, 0, 0),
        instruction(MOVE, 2, 7, 0, 0),
        instruction(MOVE_NUMBER, 3, 0, 0, 0),
        instruction(CALL, 0, 0, 0, SOCKET_ASSIGN),
        instruction(MOVE, 1, 7, 0, 0),
        instruction(CALL, 0, 0, 0, SOCKET_RELEASE),
    ];
    // Index 34, where every refusal leads.
    program.extend([instruction(MOVE_NUMBER, 0, 0, 0, PASS), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A jump to the wrong place is what the verifier cannot see.
    #[test]
    fn every_refusal_leads_to_the_end() {
        let program = program(3);
        let end = program.len() - 2;
        for (index, instruction) in program.iter().enumerate() {
            let bytes = instruction.to_ne_bytes();
            let offset = usize::try_from(i16::from_ne_bytes([bytes[2], bytes[3]])).unwrap_or(0);
            let target = index + 1 + offset;
            let last_call = bytes[0] == JUMP_IF_EQUAL && index > 20;
            match bytes[0] {
                JUMP_UNLESS_EQUAL => assert_eq!(target, end, "instruction {index}"),
                JUMP_IF_EQUAL if last_call => assert_eq!(target, end, "instruction {index}"),
                JUMP_IF_EQUAL => assert_eq!(target, 16),
                JUMP => assert_eq!(target, 20),
                _ => {}
            }
        }
    }

    #[test]
    fn the_kernel_takes_the_program_or_wants_root() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        match socket_map().and_then(|map| {
            put(&map, V4, std::os::fd::AsFd::as_fd(&listener))?;
            load(&program(map.as_raw_fd()))
        }) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                eprintln!("SKIPPED: needs CAP_BPF and CAP_NET_ADMIN");
            }
        }
    }
}
