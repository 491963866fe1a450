use super::frames::LONG;
use super::*;
use agent_protocol::stream::{Frame, HEADER, MAX_PAYLOAD};
use std::io;
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

const SOON: Duration = Duration::from_secs(10);

fn fifo(directory: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    path
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn open(stdio: &Stdio) -> Result<Opened, StdioError> {
    stdio.open(&"default".parse().unwrap(), &"web".parse().unwrap())
}

/// Connects one opened channel; returns the copies and the guest's end.
async fn connect(opened: Opened) -> (Copies, UnixStream) {
    let (ours, guest) = UnixStream::pair().unwrap();
    let ours = Mutex::new(Some(ours));
    let hello = Hello { container_id: "web".into(), exec_id: String::new(), channel: Channel::Stdin };
    let copies = opened.connect(&hello, |_| {
        let stream = lock(&ours).take();
        async move { stream.ok_or(io::ErrorKind::NotFound) }
    });
    (copies.await.unwrap(), guest)
}

/// Connects stdout and stderr, both opened; returns the copies and the guest's ends.
async fn connect_outputs(opened: Opened) -> (Copies, [UnixStream; 2]) {
    let pairs = [UnixStream::pair().unwrap(), UnixStream::pair().unwrap()];
    let [(stdout, out), (stderr, err)] = pairs;
    let ours = Mutex::new([Some(stdout), Some(stderr)]);
    let hello = Hello { container_id: "web".into(), exec_id: String::new(), channel: Channel::Stdin };
    let copies = opened.connect(&hello, |hello| {
        let stream = lock(&ours)[usize::from(hello.channel == Channel::Stderr)].take();
        async move { stream.ok_or(io::ErrorKind::NotFound) }
    });
    (copies.await.unwrap(), [out, err])
}

async fn send(guest: &mut UnixStream, frame: Frame, payload: &[u8]) {
    guest.write_all(&frame.encode()).await.unwrap();
    guest.write_all(payload).await.unwrap();
}

async fn receive(guest: &mut UnixStream) -> Option<Vec<u8>> {
    let mut header = [0; HEADER];
    guest.read_exact(&mut header).await.unwrap();
    match Frame::decode(header).unwrap() {
        Frame::End => None,
        Frame::Data(length) => {
            let mut payload = vec![0; length];
            guest.read_exact(&mut payload).await.unwrap();
            Some(payload)
        }
    }
}

#[tokio::test]
async fn output_arrives_whole_and_then_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    let data: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let sent = data.clone();
    let sender = tokio::spawn(async move {
        for chunk in sent.chunks(60_000) {
            send(&mut guest, Frame::Data(chunk.len()), chunk).await;
        }
        send(&mut guest, Frame::End, b"").await;
    });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, data);
    sender.await.unwrap();
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn long_and_short_frames_arrive_in_order_at_a_slow_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    let lengths = [3, MAX_PAYLOAD, LONG, 1, LONG - 1, LONG + 1, 5, 5, MAX_PAYLOAD, MAX_PAYLOAD, 30_000, 2].repeat(8);
    let frames: Vec<Vec<u8>> = lengths
        .iter()
        .enumerate()
        .map(|(n, &length)| (0..length).map(|at| (at / 3 + n).to_le_bytes()[0]).collect())
        .collect();
    let expected = frames.concat();
    let sender = tokio::spawn(async move {
        for (n, frame) in frames.iter().enumerate() {
            send(&mut guest, Frame::Data(frame.len()), frame).await;
            if n % 5 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        send(&mut guest, Frame::End, b"").await;
    });
    let mut received = Vec::new();
    let mut piece = [0; 7000];
    loop {
        match reader.read(&mut piece).await.unwrap() {
            0 => break,
            length => received.extend_from_slice(&piece[..length]),
        }
        if received.len() % 11 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    assert!(received == expected);
    sender.await.unwrap();
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn a_connection_that_breaks_within_a_long_frame_ends_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    send(&mut guest, Frame::Data(LONG * 2), &[1; LONG + 1]).await;
    drop(guest);
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    assert_eq!(received.len(), LONG + 1);
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn a_reader_that_stalls_is_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    let stalled = tokio::time::timeout(Duration::from_millis(100), async {
        loop {
            send(&mut guest, Frame::Data(60_000), &[0; 60_000]).await;
        }
    });
    assert!(stalled.await.is_err(), "back-pressure reaches the guest");
    assert!(!copies.drained(Awaited::END, Duration::from_millis(10)).await);
    copies.stop();
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn an_output_that_is_held_open_is_awaited_up_to_what_was_written() {
    let directory = tempfile::tempdir().unwrap();
    let (out, err) = (fifo(&directory, "out"), fifo(&directory, "err"));
    let stdio = Stdio { stdout: text(&out), stderr: text(&err), ..Default::default() };
    let (copies, mut guests) = connect_outputs(open(&stdio).unwrap()).await;
    let awaited = Awaited { stdout: 3, stderr: 4 };
    send(&mut guests[0], Frame::Data(3), b"out").await;
    assert!(!copies.drained(awaited, Duration::from_millis(50)).await, "stderr is still on its way");
    let late = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        send(&mut guests[1], Frame::Data(4), b"errs").await;
    };
    let (drained, ()) = tokio::join!(copies.drained(awaited, SOON), late);
    assert!(drained);
    assert!(!copies.drained(Awaited::END, Duration::from_millis(10)).await, "neither has ended");
}

#[tokio::test]
async fn output_that_fits_the_fifo_is_awaited_until_it_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    send(&mut guest, Frame::Data(3), b"out").await;
    let written = Awaited { stdout: 3, stderr: 0 };
    assert!(!copies.drained(written, Duration::from_millis(50)).await);
    send(&mut guest, Frame::End, b"").await;
    assert!(!copies.drained(Awaited::END, Duration::from_millis(50)).await);
    let mut received = String::new();
    let (read, drained) = tokio::join!(reader.read_to_string(&mut received), copies.drained(Awaited::END, SOON));
    assert_eq!(read.unwrap(), 3);
    assert!(drained);
}

#[tokio::test]
async fn output_that_nobody_reads_is_not_awaited() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    send(&mut guest, Frame::Data(3), b"out").await;
    assert!(copies.drained(Awaited { stdout: 3, stderr: 0 }, SOON).await);
    // Who comes later finds it, and sees no end.
    let mut reader = pipe::OpenOptions::new().open_receiver(&path).unwrap();
    let mut received = [0; 3];
    reader.read_exact(&mut received).await.unwrap();
    drop(reader);
    send(&mut guest, Frame::Data(5), b"later").await;
    send(&mut guest, Frame::End, b"").await;
    assert!(copies.drained(Awaited::END, SOON).await);
    assert_eq!(copies.missing(Awaited { stdout: 8, stderr: 0 }), 0);
}

#[tokio::test]
async fn a_broken_connection_ends_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    guest.write_all(&Frame::Data(5).encode()).await.unwrap();
    drop(guest);
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn an_oversized_frame_ends_the_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "out");
    let (copies, mut guest) = connect(open(&Stdio { stdout: text(&path), ..Default::default() }).unwrap()).await;
    guest.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(copies.drained(Awaited::END, SOON).await);
}

#[tokio::test]
async fn stdin_ends_after_close_io_and_not_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "in");
    let (copies, mut guest) = connect(open(&Stdio { stdin: text(&path), ..Default::default() }).unwrap()).await;
    copies.begin_input().unwrap();
    for client in ["one", "two"] {
        // A client that comes and goes does not end stdin.
        let mut writer = pipe::OpenOptions::new().open_sender(&path).unwrap();
        writer.write_all(client.as_bytes()).await.unwrap();
        drop(writer);
        assert_eq!(receive(&mut guest).await.unwrap(), client.as_bytes());
    }
    copies.close_stdin();
    copies.close_stdin();
    assert_eq!(receive(&mut guest).await, None);
}

#[tokio::test]
async fn input_written_before_close_io_is_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "in");
    let (copies, mut guest) = connect(open(&Stdio { stdin: text(&path), ..Default::default() }).unwrap()).await;
    copies.begin_input().unwrap();
    pipe::OpenOptions::new().open_sender(&path).unwrap().write_all(b"last words").await.unwrap();
    copies.close_stdin();
    assert_eq!(receive(&mut guest).await.unwrap(), b"last words");
    assert_eq!(receive(&mut guest).await, None);
}

#[tokio::test]
async fn no_client_can_write_before_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = fifo(&directory, "in");
    let (copies, _guest) = connect(open(&Stdio { stdin: text(&path), ..Default::default() }).unwrap()).await;
    assert!(pipe::OpenOptions::new().open_sender(&path).is_err(), "nobody reads yet");
    copies.begin_input().unwrap();
    assert!(pipe::OpenOptions::new().open_sender(&path).is_ok());
}

#[tokio::test]
async fn files_are_appended_to() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "old ").unwrap();
    let stdio = Stdio { stdout: format!("file://{}", path.display()), ..Default::default() };
    let (copies, mut guest) = connect(open(&stdio).unwrap()).await;
    send(&mut guest, Frame::Data(3), b"new").await;
    send(&mut guest, Frame::End, b"").await;
    assert!(copies.drained(Awaited::END, SOON).await);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old new");
}

#[tokio::test]
async fn a_logger_gets_output_and_the_containers_name() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let (program, log) = (directory.path().join("logger"), directory.path().join("log"));
    let script =
        "#!/bin/sh\nexec 5>&-\n{ echo \"$1=$CONTAINER_NAMESPACE/$CONTAINER_ID\"; cat <&3; } >$2.new\nmv $2.new $2\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    let stdout = format!("binary://{}?log={}", program.display(), log.display());
    let (copies, mut guest) = connect(open(&Stdio { stdout, ..Default::default() }).unwrap()).await;
    send(&mut guest, Frame::Data(5), b"hello").await;
    send(&mut guest, Frame::End, b"").await;
    assert!(copies.drained(Awaited::END, SOON).await);
    while !log.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "log=default/web\nhello");
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let missing = Stdio { stdout: "/nonexistent/fifo".into(), ..Default::default() };
    assert_eq!(open(&missing).unwrap_err().to_string(), "cannot open /nonexistent/fifo");
    let file = Stdio { stdin: "file:///etc/passwd".into(), ..Default::default() };
    assert_eq!(open(&file).unwrap_err().to_string(), "\"file:///etc/passwd\" can't be an input: only a FIFO can");
    let logger = Stdio { stdout: "binary:///nonexistent/log".into(), ..Default::default() };
    assert_eq!(open(&logger).unwrap_err().to_string(), "cannot run the logger /nonexistent/log");
    let loggers = Stdio { stderr: "binary:///nonexistent/other".into(), ..logger };
    let sentence = "stdout and stderr name different loggers, and one serves both";
    assert_eq!(open(&loggers).unwrap_err().to_string(), sentence);
}

#[test]
fn a_terminal_has_one_output() {
    let streams = |terminal| Stdio { stdin: "/i".into(), stdout: "/o".into(), stderr: "/e".into(), terminal }.streams();
    assert!(streams(false).stderr && !streams(true).stderr);
    assert!(streams(true).stdin && streams(true).stdout);
    assert_eq!(Stdio::default().streams(), Streams::default());
}
