//! The stream service: one connection per channel of a process.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::stream::{ACCEPTED, Hello, MAX_HELLO};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The shim sends its hello at once.
const HELLO: Duration = Duration::from_secs(10);

/// The answer to a hello whose channel can't be had.
const REFUSED: u8 = 1;

/// Serves one connection up to the point where the channel's pump takes it.
pub async fn serve(agent: Arc<Agent>, mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
    let hello = match tokio::time::timeout(HELLO, read_hello(&mut stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return tracing::debug!(%error, "stream without a hello"),
        Err(_) => return tracing::debug!("stream without a hello in time"),
    };
    if let Err(error) = attach(&agent, &hello, stream).await {
        tracing::debug!(%error, "stream refused");
    }
}

async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let length = usize::from(stream.read_u16_le().await?);
    if length > MAX_HELLO - 2 {
        return Err(io::Error::other("the hello is too long"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Hello::decode(&body).map_err(io::Error::other)
}

async fn attach(
    agent: &Agent,
    hello: &Hello,
    mut stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<(), Error> {
    let claim = || {
        let name = ProcessName::parse(&hello.container_id, &hello.exec_id)?;
        let process = agent.containers.get(&name.container)?.process(&name)?;
        let attachment = process.stdio.attach(hello.channel);
        attachment.map(|attachment| (process, attachment)).ok_or(Error::NoProcess(name))
    };
    match claim() {
        Ok((process, attachment)) => {
            stream.write_u8(ACCEPTED).await.map_err(Error::system("accept", "a stream"))?;
            process.stdio.run(attachment, stream);
            Ok(())
        }
        Err(error) => {
            stream.write_u8(REFUSED).await.map_err(Error::system("refuse", "a stream"))?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::stream::Channel;

    #[tokio::test]
    async fn a_hello_is_read_whole() {
        let hello = Hello { container_id: "web".into(), exec_id: String::new(), channel: Channel::Stdout };
        let bytes = hello.encode().unwrap();
        assert_eq!(read_hello(&mut &bytes[..]).await.unwrap(), hello);
        assert!(read_hello(&mut &bytes[..4]).await.is_err());
    }

    #[tokio::test]
    async fn a_hello_has_a_longest_length() {
        assert!(read_hello(&mut &[0xff; 70_000][..]).await.is_err());
    }
}
