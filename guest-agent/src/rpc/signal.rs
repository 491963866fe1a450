//! Signal, to one process or to all of a container.

use crate::agent::Agent;
use crate::error::Error;
use crate::id::ProcessName;
use agent_protocol::agent::{Empty, SignalRequest};

/// The highest signal number of Linux.
const MAX_SIGNAL: i32 = 64;

pub(super) fn signal(agent: &Agent, request: &SignalRequest) -> Result<Empty, Error> {
    let name = ProcessName::parse(&request.container_id, &request.exec_id)?;
    let signal = parse_signal(request.signal)?;
    let container = agent.containers.get(&name.container)?;
    let process = container.process(&name)?;
    if !request.all {
        process.signal(signal)?;
    } else if container.init.is_gone() {
        return Err(Error::Ended(container.init.name.clone()));
    } else if signal == libc::SIGKILL {
        container.cgroup.kill()?;
    } else {
        container.cgroup.signal(signal, container.init.pid())?;
    }
    Ok(Empty::new())
}

fn parse_signal(number: u32) -> Result<i32, Error> {
    match i32::try_from(number) {
        Ok(signal @ 1..=MAX_SIGNAL) => Ok(signal),
        _ => Err(Error::invalid("signal", &number.to_string(), "signals are 1 to 64")),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_signal;

    #[test]
    fn signal_numbers_have_a_range() {
        assert_eq!(parse_signal(15).unwrap(), 15);
        assert_eq!(parse_signal(64).unwrap(), 64);
        for number in [0, 65, u32::MAX] {
            assert!(parse_signal(number).is_err(), "{number}");
        }
    }
}
