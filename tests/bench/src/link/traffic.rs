//! What node and guest send each other. The node asks on a connection of its own for each stream: one byte tells the direction,
//! four how many bytes.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

pub const PORT: u16 = 5201;

const UP: u8 = b'u';
const DOWN: u8 = b'd';

/// As iperf3 has it.
const BLOCK: usize = 128 << 10;

const DATAGRAM: usize = 64;

/// A datagram that is lost ends the measurement.
const PATIENCE: Duration = Duration::from_secs(2);

/// Time that it takes until the guest has read so many bytes.
pub fn download(guest: Ipv4Addr, bytes: u32) -> Result<Duration> {
    let (mut stream, started) = ask(guest, DOWN, bytes)?;
    write(&mut stream, bytes)?;
    stream.read_exact(&mut [0]).context("the guest did not read all")?;
    Ok(started.elapsed())
}

/// Time that it takes to read so many bytes from the guest.
pub fn upload(guest: Ipv4Addr, bytes: u32) -> Result<Duration> {
    let (mut stream, started) = ask(guest, UP, bytes)?;
    read(&mut stream, bytes)?;
    Ok(started.elapsed())
}

/// Time that it takes to send datagrams to the guest and get them back, `rounds` times so many at once.
pub fn echoes(guest: Ipv4Addr, rounds: u32, in_flight: u32) -> Result<Duration> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((guest, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut datagram = [0; DATAGRAM];
    let started = Instant::now();
    for _ in 0..rounds {
        for _ in 0..in_flight {
            socket.send(&datagram)?;
        }
        for _ in 0..in_flight {
            let length = socket.recv(&mut datagram).context("a datagram is lost")?;
            ensure!(length == DATAGRAM, "a datagram came back with {length} bytes");
        }
    }
    Ok(started.elapsed())
}

fn ask(guest: Ipv4Addr, direction: u8, bytes: u32) -> Result<(TcpStream, Instant)> {
    let mut stream = TcpStream::connect((guest, PORT)).context("the guest does not listen")?;
    let started = Instant::now();
    let [a, b, c, d] = bytes.to_be_bytes();
    stream.write_all(&[direction, a, b, c, d])?;
    Ok((stream, started))
}

/// The guest's part. Ends only with an error.
pub fn serve(listener: &TcpListener, datagrams: UdpSocket) -> Result<()> {
    std::thread::spawn(move || echo(&datagrams));
    loop {
        let (mut stream, _) = listener.accept()?;
        let mut request = [0; 5];
        stream.read_exact(&mut request)?;
        let [direction, bytes @ ..] = request;
        let bytes = u32::from_be_bytes(bytes);
        match direction {
            DOWN => {
                read(&mut stream, bytes)?;
                stream.write_all(&[0])?;
            }
            UP => write(&mut stream, bytes)?,
            _ => bail!("nothing goes in the direction {direction}"),
        }
    }
}

fn echo(socket: &UdpSocket) -> std::io::Result<()> {
    let mut datagram = [0; DATAGRAM];
    loop {
        let (length, sender) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], sender)?;
    }
}

fn write(stream: &mut TcpStream, bytes: u32) -> Result<()> {
    let block = vec![0x5a; BLOCK];
    let mut left = bytes as usize;
    while left > 0 {
        let part = left.min(BLOCK);
        stream.write_all(&block[..part])?;
        left -= part;
    }
    Ok(())
}

fn read(stream: &mut TcpStream, bytes: u32) -> Result<()> {
    let mut block = vec![0; BLOCK];
    let mut left = bytes as usize;
    while left > 0 {
        let part = left.min(BLOCK);
        let length = stream.read(&mut block[..part])?;
        ensure!(length > 0, "the stream ended {left} bytes too early");
        left -= length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, PORT, download, echoes, serve, upload};
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    #[test]
    fn what_is_asked_for_passes_both_ways() {
        // One of the addresses that nobody else uses.
        let guest = Ipv4Addr::new(127, 99, 0, 2);
        let (listener, datagrams) =
            (TcpListener::bind((guest, PORT)).unwrap(), UdpSocket::bind((guest, PORT)).unwrap());
        std::thread::spawn(move || serve(&listener, datagrams).unwrap());
        let bytes = u32::try_from(BLOCK * 3 + 1).unwrap();
        download(guest, bytes).unwrap();
        upload(guest, bytes).unwrap();
        echoes(guest, 3, 4).unwrap();
    }
}
