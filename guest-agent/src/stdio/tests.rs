use super::*;
use agent_protocol::stream::{Frame, HEADER, MAX_PAYLOAD};
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

const ALL: Wanted = Wanted { stdin: true, stdout: true, stderr: true };

fn attached(stdio: &Stdio, channel: Channel) -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(4096);
    let attachment = stdio.attach(channel).expect("not attached yet");
    stdio.run(attachment, theirs);
    ours
}

/// The channel's bytes up to its end.
async fn read_frames(stream: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.unwrap();
        let Frame::Data(length) = Frame::decode(header).unwrap() else { return all };
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        all.extend(payload);
    }
}

async fn write_frame(stream: &mut DuplexStream, payload: &[u8]) {
    stream.write_all(&Frame::Data(payload.len()).encode()).await.unwrap();
    stream.write_all(payload).await.unwrap();
}

#[tokio::test]
async fn output_arrives_whole_and_its_end_is_in_band() {
    let (stdio, ends) = Stdio::pipes(ALL).unwrap();
    let expected: Vec<u8> = (0..=250).cycle().take(3 * MAX_PAYLOAD + 5).collect();
    let mut process = std::fs::File::from(ends.stdout.unwrap());
    let written = expected.clone();
    std::thread::spawn(move || process.write_all(&written).unwrap());
    let mut stream = attached(&stdio, Channel::Stdout);
    assert_eq!(read_frames(&mut stream).await, expected);
}

#[tokio::test]
async fn output_of_a_process_that_ended_before_the_attachment_is_kept() {
    let (stdio, ends) = Stdio::pipes(ALL).unwrap();
    std::fs::File::from(ends.stderr.unwrap()).write_all(b"bye").unwrap();
    assert_eq!(read_frames(&mut attached(&stdio, Channel::Stderr)).await, b"bye");
}

#[tokio::test]
async fn what_was_written_is_counted_forwarded_or_not() {
    let (stdio, ends) = Stdio::pipes(ALL).unwrap();
    let (mut stdout, mut stderr) =
        (std::fs::File::from(ends.stdout.unwrap()), ends.stderr.map(std::fs::File::from).unwrap());
    stdout.write_all(b"forwarded").unwrap();
    let mut stream = attached(&stdio, Channel::Stdout);
    let mut frame = [0; HEADER + 9];
    stream.read_exact(&mut frame).await.unwrap();
    stdout.write_all(b" and not").unwrap();
    stderr.write_all(b"kept").unwrap();
    assert_eq!(stdio.written(), Written { stdout: 17, stderr: 4 });
    drop((stdout, stream, stdio.attach(Channel::Stderr)));
    tokio::task::yield_now().await;
    assert_eq!(stdio.written().stderr, 0, "what nobody will read is not counted");
}

#[tokio::test]
async fn the_end_of_input_closes_the_pipe() {
    let (stdio, ends) = Stdio::pipes(ALL).unwrap();
    let mut stream = attached(&stdio, Channel::Stdin);
    write_frame(&mut stream, b"hello").await;
    stream.write_all(&Frame::End.encode()).await.unwrap();
    let mut process = std::fs::File::from(ends.stdin.unwrap());
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        process.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(read.await.unwrap(), "hello");
}

#[tokio::test]
async fn an_oversized_frame_ends_the_stream() {
    let (stdio, _ends) = Stdio::pipes(ALL).unwrap();
    let mut stream = attached(&stdio, Channel::Stdin);
    stream.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_channel_is_attached_once_and_only_if_wanted() {
    let (stdio, ends) = Stdio::pipes(Wanted { stdout: true, ..Wanted::default() }).unwrap();
    assert!(stdio.attach(Channel::Stdout).is_some());
    assert!(stdio.attach(Channel::Stdout).is_none());
    assert!(stdio.attach(Channel::Stdin).is_none() && ends.stdin.is_none());
}

#[tokio::test]
async fn dropping_the_process_ends_its_connections_without_an_end_frame() {
    let (stdio, _ends) = Stdio::pipes(ALL).unwrap();
    let mut stream = attached(&stdio, Channel::Stdout);
    drop(stdio);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_terminal_that_comes_late_carries_both_directions() {
    let stdio = Stdio::terminal(ALL);
    let mut output = attached(&stdio, Channel::Stdout);
    let mut input = attached(&stdio, Channel::Stdin);
    write_frame(&mut input, b"typed\n").await;
    let pty = nix::pty::openpty(None, None).unwrap();
    stdio.set_terminal(Terminal::new(pty.master).unwrap());
    let mut process = std::fs::File::from(pty.slave);
    let (read, mut process) = tokio::task::spawn_blocking(move || {
        let mut line = [0; 6];
        process.read_exact(&mut line).unwrap();
        (line, process)
    })
    .await
    .unwrap();
    assert_eq!(&read, b"typed\n");
    process.write_all(b"shown").unwrap();
    drop(process);
    let seen = read_frames(&mut output).await;
    assert!(seen.ends_with(b"shown"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn resizing_is_harmless_before_and_after_and_without_a_terminal() {
    let (pipes, _ends) = Stdio::pipes(ALL).unwrap();
    pipes.resize(80, 24).unwrap();
    let stdio = Stdio::terminal(ALL);
    stdio.resize(80, 24).unwrap();
    let pty = nix::pty::openpty(None, None).unwrap();
    stdio.set_terminal(Terminal::new(pty.master).unwrap());
    drop(pty.slave);
    stdio.resize(120, 40).unwrap();
}

/// A connection that its peer closes once it has read everything.
struct ClosedByPeer(DuplexStream);

impl AsyncRead for ClosedByPeer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ClosedByPeer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
    }
}

#[tokio::test]
async fn a_peer_that_closes_after_the_end_has_lost_nothing() {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    pump::output(&b"all of it"[..], ClosedByPeer(ours)).await.unwrap();
    assert_eq!(read_frames(&mut theirs).await, b"all of it");
}

#[tokio::test]
async fn a_peer_that_closes_before_the_end_has_lost_output() {
    let (ours, theirs) = tokio::io::duplex(4096);
    drop(theirs);
    let error = pump::output(&b"some of it"[..], ours).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
