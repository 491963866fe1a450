use super::super::super::process::packet_pair;
use super::*;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::AsRawFd;
use vmm_protocol::{DeviceId, MAX_MESSAGE};

const SOON: Duration = Duration::from_secs(5);

/// A client, and the socket that a VMM would have.
fn pair() -> (Client, OwnedFd) {
    let (ours, theirs) = packet_pair().unwrap();
    (Client::new(ours).unwrap(), theirs)
}

fn detach() -> Call {
    Call::Detach { device: DeviceId(1) }
}

fn say(peer: &OwnedFd, packet: &[u8]) {
    send(peer.as_raw_fd(), packet, MsgFlags::empty()).unwrap();
}

/// The next request's id. The peer's socket blocks, so that this runs beside the runtime.
async fn heard(peer: &OwnedFd) -> u32 {
    let peer = peer.try_clone().unwrap();
    let receive = move || {
        let mut packet = [0; MAX_MESSAGE];
        let length = recv(peer.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        decode::<Request>(&packet[..length]).unwrap().id
    };
    tokio::task::spawn_blocking(receive).await.unwrap()
}

fn reply(id: u32, result: Result<Answer, String>) -> Vec<u8> {
    encode(&Message::Reply(Reply { id, result })).unwrap()
}

async fn closed(client: &Client) -> Option<String> {
    client.said().wait_for(|said| said.closed.is_some()).await.unwrap().closed.clone().unwrap()
}

#[tokio::test]
async fn replies_may_come_in_any_order() {
    let (client, peer) = pair();
    let second = async {
        let mut ids = [heard(&peer).await, heard(&peer).await];
        ids.sort_unstable();
        say(&peer, &reply(ids[1], Err("second".into())));
        say(&peer, &reply(ids[0], Ok(Answer::Done)));
    };
    let (first, other, ()) =
        tokio::join!(client.call("a", detach(), &[], SOON), client.call("b", detach(), &[], SOON), second);
    assert_eq!(first.unwrap(), Answer::Done);
    assert_eq!(other.unwrap_err().to_string(), "the VMM refused to b: second");
}

#[tokio::test]
async fn descriptors_travel_with_a_request() {
    let (client, peer) = pair();
    let file = tempfile::tempfile().unwrap();
    let descriptors = [std::os::fd::AsFd::as_fd(&file)];
    let (result, ()) = tokio::join!(client.call("a", detach(), &descriptors, SOON), async {
        say(&peer, &reply(heard(&peer).await, Ok(Answer::Done)));
    });
    result.unwrap();
}

#[tokio::test]
async fn a_silent_vmm_ends_in_the_deadline() {
    let (client, _peer) = pair();
    let error = client.call("boot", detach(), &[], Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.to_string(), "waiting for the VMM to boot took longer than 0.02 s");
    assert!(client.shared.waiting().replies.is_empty());
}

#[tokio::test]
async fn a_reply_that_nobody_waits_for_is_ignored() {
    let (client, peer) = pair();
    say(&peer, &reply(77, Ok(Answer::Done)));
    let (result, ()) = tokio::join!(client.call("a", detach(), &[], SOON), async {
        let id = heard(&peer).await;
        say(&peer, &reply(id + 1, Err("wrong".into())));
        say(&peer, &reply(id, Ok(Answer::Done)));
    });
    assert_eq!(result.unwrap(), Answer::Done);
}

#[tokio::test]
async fn junk_and_oversized_packets_end_the_connection() {
    for packet in [&b"junk"[..], b"\xff", b"{\"reply\":{}}", &[b' '; MAX_MESSAGE + 1]] {
        let (client, peer) = pair();
        say(&peer, packet);
        assert!(closed(&client).await.is_some());
        let error = client.call("attach", detach(), &[], SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "the microVM is gone: the VMM ended before it could attach");
    }
}

#[tokio::test]
async fn a_vmm_that_dies_fails_the_requests_under_way() {
    let (client, peer) = pair();
    let (result, ()) = tokio::join!(client.call("attach", detach(), &[], SOON), async {
        heard(&peer).await;
        drop(peer);
    });
    assert!(matches!(result, Err(SandboxError::Gone(_))));
    assert_eq!(closed(&client).await, None);
}

#[tokio::test]
async fn repeated_events_take_no_memory() {
    let (client, peer) = pair();
    for _ in 0..100 {
        say(&peer, &encode(&Message::Event(Event::AgentReady)).unwrap());
        tokio::task::yield_now().await;
    }
    say(&peer, &encode(&Message::Event(Event::Stopped(StopReason::GuestStopped))).unwrap());
    let mut said = client.said();
    let said = said.wait_for(|said| said.stopped.is_some()).await.unwrap();
    assert!(said.agent_ready);
}

#[tokio::test]
async fn the_text_of_an_error_is_made_printable() {
    let (client, peer) = pair();
    let (result, ()) = tokio::join!(client.call("a", detach(), &[], SOON), async {
        say(&peer, &reply(heard(&peer).await, Err(format!("a\nb{}", "x".repeat(5000)))));
    });
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with("the VMM refused to a: a b") && text.len() < 1100, "{text}");
}
