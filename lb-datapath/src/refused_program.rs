//! Programs that this kernel refuses, with the reason from the verifier.

use std::fmt;

use aya::programs::ProgramError;

/// A program that could not be loaded. All other programs work without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedProgram {
    pub program: String,
    /// The kernel release (`uname -r`).
    pub kernel: String,
    /// The error of the system call.
    pub error: String,
    /// The last lines of the verifier's log: the refused instruction and the reason.
    pub log: Vec<String>,
}

/// The number of log lines that are kept, and their maximal length: the last instruction, its
/// registers and the reason.
const LINES: usize = 5;
const WIDTH: usize = 160;

impl RefusedProgram {
    pub(crate) fn new(program: &str, kernel: &str, error: &ProgramError) -> Self {
        let (error, log) = match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                (io_error.to_string(), decisive_lines(&verifier_log.to_string()))
            }
            other => (chain(other), Vec::new()),
        };
        Self { program: program.to_owned(), kernel: kernel.to_owned(), error, log }
    }

    /// Returns whether the kernel lacks this helper function.
    pub(crate) fn lacks(&self, helper: &str) -> bool {
        self.log.iter().any(|line| line.contains("unknown func") && line.contains(helper))
    }

    /// Returns the remedy.
    pub fn remedy(&self) -> &'static str {
        let log = self.log.join("\n");
        let contains_one_of = |texts: &[&str]| texts.iter().any(|text| log.contains(text));
        if self.log.is_empty() && self.error.starts_with("Operation not permitted") {
            "allow it: the container must be privileged, and neither kernel lockdown nor another security module may forbid \
             bpf(2) (`cat /sys/kernel/security/lockdown`, the kernel's log)"
        } else if self.log.is_empty() && self.error.starts_with("Invalid argument") {
            "this kernel was built without programs of this type: CONFIG_CGROUP_BPF for calls at sockets, CONFIG_BPF_EVENTS \
             for lb_connected"
        } else if contains_one_of(&[
            "unknown func",
            "invalid func",
            "cannot use helper",
            "program of this type cannot",
        ]) {
            "this kernel lacks a function that the program needs: a newer kernel has it (docs/kernels.md)"
        } else if contains_one_of(&["non-JITed programs"]) {
            "switch the BPF compiler on: `sysctl net.core.bpf_jit_enable=1`, or a kernel with CONFIG_BPF_JIT"
        } else if contains_one_of(&["too large", "too complex", "combined stack size"]) {
            "the program is too large for this kernel's verifier: use a newer kernel, and report this line"
        } else {
            "use a newer kernel (docs/kernels.md lists those that are tested), and report this line"
        }
    }
}

impl fmt::Display for RefusedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { program, kernel, error, log } = self;
        write!(f, "Linux {kernel} refuses {program}: {error}")?;
        if !log.is_empty() {
            write!(f, "; end of the verifier's log: {}", log.join(" | "))?;
        }
        write!(f, "; remedy: {}", self.remedy())
    }
}

/// Returns the last lines of a verifier's log that contain the reason. The statistics at its end do
/// not.
fn decisive_lines(log: &str) -> Vec<String> {
    const STATISTICS: [&str; 4] = ["processed ", "verification time ", "stack depth ", "mark_precise:"];
    let is_relevant =
        |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|statistics| line.starts_with(statistics));
    let mut lines: Vec<String> = log
        .lines()
        .rev()
        .map(str::trim)
        .filter(is_relevant)
        .take(LINES)
        .map(|line| line.chars().take(WIDTH).collect())
        .collect();
    lines.reverse();
    lines
}

/// Formats an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The end of Linux 6.1's log for `lb_tc_ingress` on 2026-11-26.
    const LOG: &str = "\
from 2871 to 2873: R0_w=scalar() R1=pkt(off=0)
2873: (bf) r1 = r7
2874: (0f) r1 += r2
math between pkt pointer and register with unbounded min value is not allowed
processed 24310 insns (limit 1000000) max_states_per_insn 4 total_states 1193 peak_states 700 mark_read 95

";

    fn refusal(error: &str, log: &str) -> RefusedProgram {
        RefusedProgram {
            program: "lb_tc_ingress".to_owned(),
            kernel: "6.1.0-56-cloud-amd64".to_owned(),
            error: error.to_owned(),
            log: decisive_lines(log),
        }
    }

    #[test]
    fn a_refusal_is_one_line_with_the_end_of_the_log_and_a_remedy() {
        assert_eq!(
            refusal("Permission denied (os error 13)", LOG).to_string(),
            "Linux 6.1.0-56-cloud-amd64 refuses lb_tc_ingress: Permission denied (os error 13); end of the verifier's log: \
             from 2871 to 2873: R0_w=scalar() R1=pkt(off=0) | 2873: (bf) r1 = r7 | 2874: (0f) r1 += r2 | \
             math between pkt pointer and register with unbounded min value is not allowed; remedy: use a newer kernel \
             (docs/kernels.md lists those that are tested), and report this line"
        );
    }

    #[test]
    fn a_long_log_is_cut() {
        let log = format!("{}\n", "x".repeat(1000)).repeat(50);
        let refusal = refusal("Invalid argument (os error 22)", &log);
        assert_eq!(refusal.log.len(), LINES);
        assert!(refusal.log.iter().all(|line| line.len() == WIDTH));
    }

    #[test]
    fn the_remedy_follows_from_the_log() {
        let unknown = "12: (85) call unknown#46\nunknown func bpf_get_socket_cookie#46\n";
        assert!(refusal("Invalid argument", unknown).lacks("bpf_get_socket_cookie"));
        let remedy = |error, log| refusal(error, log).remedy();
        assert!(
            remedy("Invalid argument", "12: (85) call unknown#46\nunknown func bpf_get_socket_cookie#46\n")
                .contains("lacks a function")
        );
        assert!(
            remedy("Permission denied", "combined stack size of 3 calls is 544. Too large\n")
                .contains("too large")
        );
        // Linux 6.1 with net.core.bpf_jit_enable=0.
        let interpreted = "tail_calls are not allowed in non-JITed programs with bpf-to-bpf calls\n";
        assert!(remedy("Invalid argument", interpreted).contains("bpf_jit_enable"));
        assert!(remedy("Operation not permitted (os error 1)", "").contains("lockdown"));
        assert!(remedy("Invalid argument (os error 22)", "").contains("CONFIG_CGROUP_BPF"));
        assert!(remedy("Permission denied (os error 13)", LOG).contains("newer kernel"));
    }
}
