//! A seccomp filter whose way to a rule is short.
//!
//! Who installs a filter waits for the kernel to try every number of a system call on it: it remembers the calls that are
//! allowed whatever their arguments. A list of comparisons makes that as long as numbers times calls, for each thread of a
//! pod's start; a search tree needs a few steps for each number.
//!
//! ```text
//!  architecture? ──► number ──► is it at least the middle one? ─┬─► ... ──► is it this one? ──► arguments ──► allow
//!                                                               └─► ...            └──► kill
//! ```

use super::rules::{Argument, Rule};
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_KILL_PROCESS,
};
use seccompiler::{BpfProgram, sock_filter};
use std::collections::BTreeMap;

/// `AUDIT_ARCH_X86_64`. Calls of 32-bit programs have other numbers; those of x32 are larger than any of ours.
const ARCHITECTURE: u32 = 0xc000_003e;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS: u32 = 16;

/// What a call's arguments may be: one of these alternatives.
type Calls<'a> = [(u32, Vec<&'a [Argument]>)];

/// Allows these calls, and ends the process at any other.
pub fn program<'a>(rules: impl Iterator<Item = &'a Rule>) -> BpfProgram {
    let mut calls: BTreeMap<u32, Vec<&[Argument]>> = BTreeMap::new();
    for rule in rules {
        let number = u32::try_from(rule.call).expect("numbers of calls are small");
        calls.entry(number).or_default().push(rule.arguments);
    }
    let calls: Vec<_> = calls.into_iter().collect();
    let mut program = vec![load(ARCHITECTURE_AT), jump(BPF_JEQ, ARCHITECTURE, 1, 0), kill(), load(NUMBER)];
    program.extend(search(&calls));
    program
}

/// With the number in the accumulator.
fn search(calls: &Calls<'_>) -> BpfProgram {
    match calls {
        [] => vec![kill()],
        [(number, alternatives)] => {
            let body: BpfProgram = alternatives.iter().flat_map(|arguments| check(arguments)).chain([kill()]).collect();
            // What does not match is killed by the last instruction.
            let beyond = body.len() - 1;
            [otherwise(BPF_JEQ, *number, beyond), body].concat()
        }
        _ => {
            let (smaller, larger) = calls.split_at(calls.len() / 2);
            let smaller = search(smaller);
            let jump = when(BPF_JGE, larger[0].0, smaller.len());
            [jump, smaller, search(larger)].concat()
        }
    }
}

/// Allows the call if all of its arguments are right; else goes on behind.
fn check(arguments: &[Argument]) -> BpfProgram {
    let mut program = vec![allow()];
    for argument in arguments.iter().rev() {
        let (index, mask, value) = match *argument {
            Argument::Is(index, value) => (index, None, value),
            Argument::Has(index, mask, value) => (index, Some(mask), value),
        };
        // The low half of it, on a machine that is little-endian.
        let mut test = vec![load(ARGUMENTS + 8 * u32::from(index))];
        test.extend(mask.map(|mask| statement(BPF_ALU | BPF_AND | BPF_K, low(mask))));
        test.extend(otherwise(BPF_JEQ, low(value), program.len()));
        program = [test, program].concat();
    }
    program
}

/// Skips so many instructions if the comparison holds.
fn when(comparison: u32, value: u32, skipped: usize) -> BpfProgram {
    match u8::try_from(skipped) {
        Ok(skipped) => vec![jump(comparison, value, skipped, 0)],
        Err(_) => vec![jump(comparison, value, 0, 1), far(skipped)],
    }
}

/// Skips so many instructions if it does not.
fn otherwise(comparison: u32, value: u32, skipped: usize) -> BpfProgram {
    match u8::try_from(skipped) {
        Ok(skipped) => vec![jump(comparison, value, 0, skipped)],
        Err(_) => vec![jump(comparison, value, 1, 0), far(skipped)],
    }
}

fn far(skipped: usize) -> sock_filter {
    statement(BPF_JMP | BPF_JA, u32::try_from(skipped).expect("a filter is short"))
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn allow() -> sock_filter {
    statement(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
}

fn kill() -> sock_filter {
    statement(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)
}

#[expect(clippy::cast_possible_truncation, reason = "what is compared is 32 bits wide")]
fn low(value: u64) -> u32 {
    value as u32
}

fn statement(code: u32, k: u32) -> sock_filter {
    jump_code(code, k, 0, 0)
}

fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    jump_code(BPF_JMP | comparison | BPF_K, k, jt, jf)
}

fn jump_code(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("a code has 16 bits"), jt, jf, k }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jail::{ThreadKind, rules};

    /// What the kernel would do, and in how many steps; `None` of it: allowed.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> (bool, usize) {
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            (at, steps) = (at + 1, steps + 1);
            let branch = |holds: bool| usize::from(if holds { jt } else { jf });
            if code == BPF_LD | BPF_W | BPF_ABS {
                accumulator = match k {
                    NUMBER => number,
                    ARCHITECTURE_AT => architecture,
                    _ => low(arguments[usize::try_from((k - ARGUMENTS) / 8).unwrap()]),
                };
            } else if code == BPF_ALU | BPF_AND | BPF_K {
                accumulator &= k;
            } else if code == BPF_JMP | BPF_JEQ | BPF_K {
                at += branch(accumulator == k);
            } else if code == BPF_JMP | BPF_JGE | BPF_K {
                at += branch(accumulator >= k);
            } else if code == BPF_JMP | BPF_JA {
                at += usize::try_from(k).unwrap();
            } else {
                assert_eq!(code, BPF_RET | BPF_K);
                return (k == SECCOMP_RET_ALLOW, steps);
            }
        }
    }

    fn allowed(kind: ThreadKind, number: u32, arguments: [u64; 6]) -> bool {
        let allows = |rule: &&Rule| {
            rule.call == i64::from(number)
                && rule.arguments.iter().all(|argument| match *argument {
                    Argument::Is(index, value) => low(arguments[usize::from(index)]) == low(value),
                    Argument::Has(index, mask, value) => low(arguments[usize::from(index)] & mask) == low(value),
                })
        };
        rules::of(kind).any(|rule| allows(&rule))
    }

    /// Arguments that a rule names, arguments that it does not, and what lies above the half that counts.
    fn tries() -> Vec<[u64; 6]> {
        let mut tries = vec![[0; 6], [u64::MAX; 6]];
        for rule in ThreadKind::ALL.into_iter().flat_map(rules::of) {
            let mut right = [0; 6];
            for argument in rule.arguments {
                let (Argument::Is(index, value) | Argument::Has(index, _, value)) = *argument;
                right[usize::from(index)] = value;
            }
            let (mut above, mut beside) = (right, right);
            for argument in rule.arguments {
                let (Argument::Is(index, _) | Argument::Has(index, ..)) = *argument;
                above[usize::from(index)] |= 1 << 40;
                beside[usize::from(index)] ^= 1 << 2;
            }
            tries.extend([right, above, beside]);
        }
        tries.sort_unstable();
        tries.dedup();
        tries
    }

    #[test]
    fn the_tree_says_what_the_rules_say() {
        let tries = tries();
        for kind in ThreadKind::ALL {
            let program = program(rules::of(kind));
            for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
                for arguments in &tries {
                    let (is, _) = run(&program, ARCHITECTURE, number, *arguments);
                    assert_eq!(is, allowed(kind, number, *arguments), "{kind:?}: call {number} {arguments:x?}");
                }
            }
        }
    }

    #[test]
    fn other_architectures_have_no_calls() {
        let program = program(rules::of(ThreadKind::Main));
        assert!((0..600).all(|number| run(&program, 0x4000_0003, number, [0; 6]) == (false, 3)));
    }

    #[test]
    fn a_number_is_found_in_a_few_steps() {
        for kind in ThreadKind::ALL {
            let program = program(rules::of(kind));
            let steps = |number| run(&program, ARCHITECTURE, number, [u64::MAX; 6]).1;
            // Those with rules for their arguments are told apart from the others by the first of these.
            let free =
                |number: &u32| rules::of(kind).all(|rule| rule.call != i64::from(*number) || rule.arguments.is_empty());
            let most = (0..600).filter(free).map(steps).max().unwrap();
            assert!(most <= 14, "{kind:?}: {most} steps");
        }
    }

    #[test]
    fn long_ways_are_jumped() {
        let numbers: Vec<_> = (0..400).map(|call| Rule { call, arguments: &[] }).collect();
        let program = program(numbers.iter());
        assert!((0..400).all(|number| run(&program, ARCHITECTURE, number, [0; 6]).0));
        assert!((400..600).all(|number| !run(&program, ARCHITECTURE, number, [0; 6]).0));
    }
}
