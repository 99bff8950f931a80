//! `lb` as a process: exit codes, and what a person reads when something is missing.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use lb_common::layout::LAYOUT_VERSION;

fn lb(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    // Settings of the person who runs the tests play no part.
    command.args(args).env_clear();
    command
}

fn output(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn run(args: &[&str]) -> (i32, String, String) {
    output(lb(args))
}

/// A process that may do anything but use BPF, whoever runs the tests.
fn without_bpf(args: &[&str]) -> (i32, String, String) {
    const CAP_SYS_ADMIN: libc::c_ulong = 21;
    const CAP_BPF: libc::c_ulong = 39;
    let mut command = lb(args);
    // SAFETY: prctl(2) is async-signal-safe and touches no memory of this process.
    unsafe {
        command.pre_exec(|| {
            for capability in [CAP_SYS_ADMIN, CAP_BPF] {
                // A process that is not root lacks the right to drop them, and has none of them.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            Ok(())
        });
    }
    output(command)
}

#[test]
fn version() {
    let (code, stdout, stderr) = run(&["version"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(
        stdout.starts_with(&format!("lb {} (map layout {LAYOUT_VERSION}", env!("CARGO_PKG_VERSION"))),
        "{stdout}"
    );
}

#[test]
fn doctor_reports_what_it_cannot_check() {
    let (code, stdout, stderr) = without_bpf(&["doctor", "-o", "json"]);
    assert!(stderr.is_empty(), "{stderr}");
    let findings: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let has_error = findings.iter().any(|finding| finding["severity"] == "error");
    assert_eq!(code, i32::from(has_error), "{stdout}");
    let note = |check: &str| {
        findings.iter().any(|finding| finding["check"] == check && finding["severity"] == "note")
    };
    assert!(note("privileges") && note("kernel features"), "{stdout}");
}

#[test]
fn preflight_fails_if_something_would_break() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let ingress = |annotations: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: web, annotations: \
             {{{annotations}}}}}\nspec: {{ingressClassName: nginx}}\n"
        )
    };
    for (annotations, expected) in [
        ("nginx.ingress.kubernetes.io/app-root: /a", (0, "same")),
        ("nginx.ingress.kubernetes.io/mirror-target: x", (1, "breaks")),
    ] {
        std::fs::write(folder.path().join("web.yaml"), ingress(annotations)).unwrap();
        let (code, stdout, stderr) = run(&["preflight", "--manifests", path, "-o", "json"]);
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        let result = report["ingresses"][0]["result"].as_str().unwrap();
        assert_eq!(((code, result), stderr.as_str()), (expected, ""));
    }
    let (code, _, stderr) = run(&["preflight", "--manifests", "/nonexistent"]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: "), "{stderr}");
}

#[test]
fn help_is_no_failure() {
    for args in [&["--help"][..], &["agent", "--help"], &["get", "flows", "-h"]] {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stderr.as_str()), (0, ""), "{args:?}");
        assert!(stdout.contains("Usage: lb"), "{stdout}");
    }
}

/// Returns what bash offers for the last of these words.
fn completed_by_bash(script: &str, words: &[&str]) -> Vec<String> {
    let test = format!(
        "{script}\nCOMP_WORDS=({}) COMP_CWORD={}\n_lb lb '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2],
    );
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &test]);
    let (code, stdout, stderr) = output(bash);
    assert_eq!((code, stderr.as_str()), (0, ""));
    stdout.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let (code, script, _) = run(&["completions", "bash"]);
    assert_eq!(code, 0);
    assert_eq!(completed_by_bash(&script, &["lb", "ag"]), ["agent"]);
    assert_eq!(completed_by_bash(&script, &["lb", "agent", "--max-fl"]), ["--max-flows"]);
    assert_eq!(completed_by_bash(&script, &["lb", "get", "flows", "--output", "wi"]), ["wide"]);
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, stderr) = run(&["completions", shell]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{shell}");
        assert!(script.contains("doctor") && script.contains("max-flows"), "{shell}: {script}");
    }
    assert_eq!(run(&["completions", "csh"]).0, 2);
}

#[test]
fn every_command_has_a_manual_page() {
    let pages: [(&[&str], &str, &str); 4] = [
        (&[], "lb", "lb\\-doctor(1)"),
        (&["agent"], "lb-agent", "\\-\\-max\\-flows"),
        (&["get", "services"], "lb-get-services", "\\-\\-namespace"),
        (&["cleanup"], "lb-cleanup", "\\-\\-kube\\-proxy"),
    ];
    for (command, title, content) in pages {
        let (code, page, stderr) = run(&[&["man"], command].concat());
        assert_eq!((code, stderr.as_str()), (0, ""), "{command:?}");
        assert!(page.contains(&format!(".TH {title} 1")), "{page}");
        assert!(page.contains(content), "{page}");
    }
    let (code, stdout, stderr) = run(&["man", "get", "pods"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(stderr, "error: there is no command `lb get pods`: `lb help` lists the commands\n");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_the_nearest_right_one() {
    let (code, _, stderr) = run(&["agent", "--manifest", "x"]);
    assert_eq!(code, 2);
    assert!(stderr.starts_with("error: ") && stderr.contains("'--manifests'"), "{stderr}");
    assert_eq!(run(&[]).0, 2);
}

#[test]
fn a_wrong_configuration_file_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.yaml");
    std::fs::write(&path, "mode: tc\nnodNeame: x\n").unwrap();
    let (code, stdout, stderr) = run(&["agent", "--print-config", "--config", path.to_str().unwrap()]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert_eq!(
        stderr,
        format!("error: {}:2: unknown key \"nodNeame\", did you mean \"nodeName\"?\n", path.display())
    );

    let (code, _, stderr) = run(&["agent", "--config", "/nonexistent/sluice.yaml"]);
    assert_eq!(code, 2);
    assert_eq!(
        stderr,
        "error: cannot read the configuration file /nonexistent/sluice.yaml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn the_environment_is_between_flag_and_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sluice.yaml");
    std::fs::write(&path, "mode: tc\nlogFormat: json\nsnatPorts: 2000-3000\n").unwrap();
    let mut command = lb(&["agent", "--print-config", "--snat-ports=4000-5000"]);
    command.env("SLUICE_CONFIG", &path).env("SLUICE_MODE", "xdp").env("SLUICE_SNAT_PORTS", "6000-7000");
    let (code, stdout, stderr) = output(command);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for line in [
        "mode: xdp  # environment SLUICE_MODE".to_owned(),
        format!("logFormat: json  # {}:2", path.display()),
        "snatPorts: 4000-5000  # flag --snat-ports".to_owned(),
    ] {
        assert!(stdout.lines().any(|printed| printed == line), "no {line:?} in\n{stdout}");
    }
}

const EXPLAIN: [&str; 4] = ["explain", "tcp", "192.0.2.7", "10.96.0.10:80"];

#[test]
fn without_the_right_to_use_bpf_the_capability_is_named() {
    let others = [&["get", "services"][..], &["cleanup", "--dry-run"], &["agent", "--manifests", "/"]];
    for args in [&others[..], &[&EXPLAIN[..]]].concat() {
        let (code, _, stderr) = without_bpf(args);
        assert_eq!(code, 1, "{args:?}: {stderr}");
        assert!(stderr.contains("error: this process lacks CAP_BPF"), "{args:?}: {stderr}");
        assert!(stderr.contains("hint: run it as root"), "{args:?}: {stderr}");
    }
}

/// Needs root: without it the missing capability is named first.
#[test]
fn without_a_bpf_file_system_the_remedy_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    for args in [&["get", "services"][..], &["cleanup"], &["agent", "--manifests", "/"], &EXPLAIN[..]] {
        let (code, _, stderr) = run(&[args, &["--bpffs", path]].concat());
        assert_eq!(code, 1, "{args:?}: {stderr}");
        assert!(stderr.contains(&format!("{path} is not in a BPF file system")), "{args:?}: {stderr}");
        assert!(
            stderr.contains(&format!("hint: mount one there (`mount -t bpf bpf {path}`)")),
            "{args:?}: {stderr}"
        );
    }
}
