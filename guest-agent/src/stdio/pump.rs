//! Moves bytes between one channel of a process and one connection, in frames.

use super::{Endpoint, Terminal};
use agent_protocol::stream::{Channel, Frame, HEADER, MAX_PAYLOAD};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

/// How long a peer may take to read the end of a channel and close.
const LINGER: Duration = Duration::from_secs(10);

type TerminalSlot = watch::Receiver<Option<Arc<Terminal>>>;

pub(super) async fn run(endpoint: Endpoint, channel: Channel, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let result = match (endpoint, channel) {
        (Endpoint::Input(pipe), _) => input(stream, pipe).await,
        (Endpoint::Output(pipe), _) => output(&*pipe, stream).await,
        (Endpoint::Terminal(slot), Channel::Stdin) => match wait_for_terminal(slot).await {
            Some(terminal) => input(stream, &*terminal).await,
            None => Ok(()),
        },
        (Endpoint::Terminal(slot), _) => match wait_for_terminal(slot).await {
            Some(terminal) => output(&*terminal, stream).await,
            None => Ok(()),
        },
    };
    match result {
        Ok(()) => {}
        // How input ends that nobody reads any more.
        Err(error) if channel == Channel::Stdin => tracing::debug!(%error, "input broke"),
        Err(error) => tracing::warn!(?channel, %error, "output broke: what was not sent is lost"),
    }
}

/// A frame with its header. What is longer than this is two packets on the wire, the second one of a few bytes.
const LONGEST: usize = MAX_PAYLOAD;

/// The process's output to the shim; then the end, in-band.
pub(super) async fn output(
    mut from: impl AsyncRead + Unpin,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = from.read(&mut buffer[HEADER..]).await?;
        if length == 0 {
            break;
        }
        buffer[..HEADER].copy_from_slice(&Frame::Data(length).encode());
        stream.write_all(&buffer[..HEADER + length]).await?;
    }
    drop(buffer);
    stream.write_all(&Frame::End.encode()).await?;
    // Closing now could reset the connection under what is still on its way. Whatever breaks from here on is the shim's, which closes when it
    // has read the end.
    let mut rest = [0; 16];
    let closed = async {
        stream.shutdown().await?;
        while stream.read(&mut rest).await? != 0 {}
        io::Result::Ok(())
    };
    tokio::time::timeout(LINGER, closed).await.ok();
    Ok(())
}

/// The shim's input to the process. Returning closes the pipe, which is the end of file that the process sees.
async fn input(mut stream: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await?;
        let Frame::Data(length) = Frame::decode(header).map_err(io::Error::other)? else {
            return Ok(());
        };
        buffer.resize(length, 0);
        stream.read_exact(&mut buffer).await?;
        to.write_all(&buffer).await?;
    }
}

/// Reads a terminal that nobody is interested in.
pub(super) async fn discard(slot: TerminalSlot) {
    if let Some(terminal) = wait_for_terminal(slot).await {
        let mut nowhere = pin!(tokio::io::sink());
        tokio::io::copy(&mut &*terminal, &mut nowhere).await.ok();
    }
}

/// None if the process is deleted before it has a terminal.
async fn wait_for_terminal(mut slot: TerminalSlot) -> Option<Arc<Terminal>> {
    slot.wait_for(Option::is_some).await.ok()?.clone()
}
