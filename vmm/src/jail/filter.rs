//! Compiles the rules of a thread into a seccomp filter and installs it.

use super::ThreadKind;
use super::rules::{self, Argument, Rule};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;
use std::io;

const ARCHITECTURE: TargetArch = TargetArch::x86_64;

/// Confines the calling thread. A call that the rules do not have ends the process at once: only code that an
/// attacker has taken over makes one.
pub fn install(kind: ThreadKind) -> io::Result<()> {
    if kind == ThreadKind::Main {
        apply(&no_clone3().map_err(io::Error::other)?)?;
    }
    apply(&compile(kind).map_err(io::Error::other)?)
}

fn apply(program: &BpfProgram) -> io::Result<()> {
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

/// The filter of one kind of thread.
pub fn compile(kind: ThreadKind) -> Result<BpfProgram, BackendError> {
    let mut table: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for rule in rules::of(kind) {
        let alternatives = table.entry(rule.call).or_default();
        // A call without rules is allowed with any arguments.
        if !rule.arguments.is_empty() {
            alternatives.push(condition(rule)?);
        }
    }
    SeccompFilter::new(table, SeccompAction::KillProcess, SeccompAction::Allow, ARCHITECTURE)?.try_into()
}

fn condition(rule: &Rule) -> Result<SeccompRule, BackendError> {
    let conditions = rule.arguments.iter().map(|argument| match *argument {
        Argument::Is(index, value) => SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value),
        Argument::Has(index, mask, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
        }
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// Makes the C library start threads with clone(2), whose flags a filter can see. The flags of clone3(2) lie in
/// memory, where they could say "process" or "user namespace".
fn no_clone3() -> Result<BpfProgram, BackendError> {
    let table = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(table, SeccompAction::Allow, missing, ARCHITECTURE)?.try_into()
}
