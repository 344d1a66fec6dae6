//! A table of system calls as the program that the kernel runs before each of them (see the kernel's
//! `seccomp_filter.rst`).
//!
//! A search by halves rather than a list: the kernel walks it once for each number when it is installed, and for
//! each call whose arguments matter. It also compiles it each time, so that each instruction counts for every task.

use std::collections::BTreeMap;

use nix::libc::{self, sock_filter};

/// An instruction of the program.
pub(super) type Instruction = sock_filter;

/// The system's own calls; those of 32 bits have other numbers, and no process of ours needs them.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// Numbers from here on are of calls that nobody has looked at, or of the x32 variant.
pub(super) const UNKNOWN: u32 = 470;

/// Where the kernel puts the number, the architecture, and the low half of an argument.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// Something that holds of an argument's low 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    argument: u32,
    mask: u32,
    value: u32,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is made.
    Allow,
    /// It fails with this error.
    Refuse(i32),
    /// It is made only if all tests of one of these hold.
    Only(Vec<Vec<Test>>, i32),
    /// It is made unless all tests of one of these hold.
    Unless(Vec<Vec<Test>>, i32),
}

/// What becomes of each call by its number; of those that it does not name, they are made.
pub(super) type Table = BTreeMap<u32, Rule>;

impl Test {
    pub(super) fn is(argument: u32, value: i64) -> Self {
        Self::masked(argument, u32::MAX, value)
    }

    /// The bits of `mask` have this value.
    pub(super) fn masked(argument: u32, mask: u32, value: i64) -> Self {
        // The kernel reads these arguments as 32 bits.
        let value = value as u32;
        Self {
            argument,
            mask,
            value,
        }
    }

    /// Whether it is that one bit is set.
    fn is_a_bit(self) -> bool {
        self.mask == self.value && self.mask.is_power_of_two()
    }

    /// How many instructions it takes.
    fn length(self) -> usize {
        if self.mask == u32::MAX { 2 } else { 3 }
    }
}

/// The program of a table.
pub(super) fn compile(table: &Table) -> Vec<Instruction> {
    let mut program = vec![
        load(ARCH),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    program.extend(search(&ranges(table)));
    program
}

/// Where each rule begins; it goes on to the next.
fn ranges(table: &Table) -> Vec<(u32, Rule)> {
    let mut ranges: Vec<(u32, Rule)> = Vec::new();
    let mut add = |from: u32, rule: Rule| {
        if ranges.last().is_none_or(|(_, last)| *last != rule) {
            ranges.push((from, rule));
        }
    };
    let mut next = 0;
    for (number, rule) in table.range(..UNKNOWN) {
        if next < *number {
            add(next, Rule::Allow);
        }
        add(*number, rule.clone());
        next = number + 1;
    }
    if next < UNKNOWN {
        add(next, Rule::Allow);
    }
    add(UNKNOWN, Rule::Refuse(libc::ENOSYS));
    ranges
}

fn search(ranges: &[(u32, Rule)]) -> Vec<Instruction> {
    if let [(_, rule)] = ranges {
        return body(rule);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (first, low) = (high[0].0, search(low));
    let mut program = match u8::try_from(low.len()) {
        Ok(length) => vec![jump(libc::BPF_JGE, first, length, 0)],
        // So far no conditional jump reaches.
        Err(_) => vec![
            jump(libc::BPF_JGE, first, 0, 1),
            sock_filter {
                code: (libc::BPF_JMP | libc::BPF_JA) as u16,
                jt: 0,
                jf: 0,
                k: low.len() as u32,
            },
        ],
    };
    program.extend(low);
    program.extend(search(high));
    program
}

fn body(rule: &Rule) -> Vec<Instruction> {
    let refuse = |errno: i32| answer(libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let (alternatives, matched, otherwise) = match rule {
        Rule::Allow => return vec![allow],
        Rule::Refuse(errno) => return vec![refuse(*errno)],
        Rule::Only(alternatives, errno) => (alternatives, allow, refuse(*errno)),
        Rule::Unless(alternatives, errno) => (alternatives, refuse(*errno), allow),
    };
    if let Some((argument, bits)) = any_bit(alternatives) {
        let test = jump(libc::BPF_JSET, bits, 0, 1);
        return vec![load(ARGUMENTS + 8 * argument), test, matched, otherwise];
    }
    let mut program = Vec::new();
    for tests in alternatives {
        let mut left = tests.iter().map(|test| test.length()).sum::<usize>() + 1;
        for test in tests {
            program.push(load(ARGUMENTS + 8 * test.argument));
            if test.mask != u32::MAX {
                program.push(sock_filter {
                    code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16,
                    jt: 0,
                    jf: 0,
                    k: test.mask,
                });
            }
            left -= test.length();
            program.push(jump(libc::BPF_JEQ, test.value, 0, left as u8));
        }
        program.push(matched);
    }
    program.push(otherwise);
    program
}

/// The argument and its bits, where all that is looked for is whether one of them is set.
fn any_bit(alternatives: &[Vec<Test>]) -> Option<(u32, u32)> {
    let argument = alternatives.first()?.first()?.argument;
    let bit = |tests: &Vec<Test>| match tests[..] {
        [test] if test.argument == argument && test.is_a_bit() => Some(test.value),
        _ => None,
    };
    let bits = alternatives.iter().map(bit);
    let all = bits.collect::<Option<Vec<_>>>()?;
    Some((argument, all.into_iter().fold(0, |all, bit| all | bit)))
}

fn load(offset: u32) -> Instruction {
    sock_filter {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    }
}

fn jump(condition: u32, value: u32, jt: u8, jf: u8) -> Instruction {
    sock_filter {
        code: (libc::BPF_JMP | condition | libc::BPF_K) as u16,
        jt,
        jf,
        k: value,
    }
}

fn answer(action: u32) -> Instruction {
    sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: action,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would answer.
    fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => number,
            ARCH => arch,
            _ => arguments[((offset - ARGUMENTS) / 8) as usize] as u32,
        };
        let (mut at, mut a) = (0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let code = u32::from(code);
            match code & 7 {
                libc::BPF_LD => a = word(k),
                libc::BPF_ALU => a &= k,
                libc::BPF_RET => return k,
                _ if code & 0xf0 == libc::BPF_JA => at += k as usize,
                _ => {
                    let holds = match code & 0xf0 {
                        libc::BPF_JEQ => a == k,
                        libc::BPF_JSET => a & k != 0,
                        _ => a >= k,
                    };
                    at += usize::from(if holds { jt } else { jf });
                }
            }
        }
    }

    fn expected(rule: Option<&Rule>, number: u32, arguments: [u64; 6]) -> u32 {
        let refuse = |errno: i32| libc::SECCOMP_RET_ERRNO | errno as u32;
        let holds = |alternatives: &[Vec<Test>]| {
            alternatives.iter().any(|tests| {
                tests
                    .iter()
                    .all(|test| arguments[test.argument as usize] as u32 & test.mask == test.value)
            })
        };
        match rule {
            _ if number >= UNKNOWN => refuse(libc::ENOSYS),
            Some(Rule::Refuse(errno)) => refuse(*errno),
            Some(Rule::Only(alternatives, errno)) if !holds(alternatives) => refuse(*errno),
            Some(Rule::Unless(alternatives, errno)) if holds(alternatives) => refuse(*errno),
            _ => libc::SECCOMP_RET_ALLOW,
        }
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let test =
            (0u32..6, 0i64..4, any::<bool>()).prop_map(|(argument, value, whole)| match whole {
                true => Test::is(argument, value),
                false => Test::masked(argument, value as u32, value),
            });
        let tests = prop::collection::vec(prop::collection::vec(test, 1..3), 1..4);
        prop_oneof![
            Just(Rule::Allow),
            (1i32..40).prop_map(Rule::Refuse),
            (tests.clone(), 1i32..40).prop_map(|(tests, errno)| Rule::Only(tests, errno)),
            (tests, 1i32..40).prop_map(|(tests, errno)| Rule::Unless(tests, errno)),
        ]
    }

    proptest! {
        #[test]
        fn the_program_says_what_the_table_says(
            table in prop::collection::btree_map(0u32..UNKNOWN, rule(), 0..60),
            calls in prop::collection::vec((0u32..UNKNOWN + 9, [0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..4, 0u64..4]), 1..60),
        ) {
            let program = compile(&table);
            prop_assert!(program.len() < 4096, "longer than the kernel takes");
            let named = table.keys().map(|number| (*number, [1; 6]));
            for (number, arguments) in calls.into_iter().chain(named) {
                prop_assert_eq!(
                    run(&program, ARCHITECTURE, number, arguments),
                    expected(table.get(&number), number, arguments)
                );
            }
        }
    }

    #[test]
    fn calls_of_another_architecture_end_the_process() {
        let program = compile(&Table::new());
        let i386 = 0x4000_0003;
        assert_eq!(
            run(&program, i386, 1, [0; 6]),
            libc::SECCOMP_RET_KILL_PROCESS
        );
        let x32 = 0x4000_0001;
        let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(run(&program, ARCHITECTURE, x32, [0; 6]), refused);
        assert_eq!(
            run(&program, ARCHITECTURE, 1, [0; 6]),
            libc::SECCOMP_RET_ALLOW
        );
    }
}
