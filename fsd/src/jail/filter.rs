//! The seccomp filter of the threads that serve.

use super::plan::SYSTEM_CALLS;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

/// Calls that are allowed unless they make memory executable; the argument is the third.
const MEMORY: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// Confines the calling thread. A call that it may not make ends the process: only code that an attacker has taken
/// over makes one.
pub fn confine_thread() -> io::Result<()> {
    let program = compile().map_err(io::Error::other)?;
    seccompiler::apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

fn compile() -> Result<BpfProgram, BackendError> {
    let mut rules = BTreeMap::new();
    for &call in SYSTEM_CALLS {
        let conditions = if MEMORY.contains(&call) { vec![not_executable()?] } else { Vec::new() };
        rules.insert(call, conditions);
    }
    // abort(3) signals itself; nothing else is signalled.
    let aborts = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::SIGABRT as u64)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![aborts])?]);
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

fn not_executable() -> Result<SeccompRule, BackendError> {
    let executable = libc::PROT_EXEC as u64;
    let condition = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(executable), 0)?;
    SeccompRule::new(vec![condition])
}
