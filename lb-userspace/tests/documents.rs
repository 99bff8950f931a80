//! Every `lb` command in a code block of a document is a valid command line.

use std::ffi::OsString;
use std::path::Path;

use lb_testbed::documents::commands;
use lb_userspace::cli;
use lb_userspace::config::Machine;

const DOCUMENTS: [&str; 4] = ["README.md", "deploy/README.md", "docs/ingress.md", "docs/operations.md"];

#[test]
fn commands_in_documents_are_valid() {
    let machine = Machine::detect();
    let mut problems = Vec::new();
    let mut count = 0;
    for document in DOCUMENTS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(document);
        let text = std::fs::read_to_string(&path).unwrap();
        for arguments in commands(&text) {
            count += 1;
            let line = std::iter::once("lb".to_owned()).chain(arguments.iter().cloned()).map(OsString::from);
            match cli::parse(line, &machine) {
                Err(error) if !arguments.iter().any(|argument| argument == "--help") => {
                    problems.push(format!("{document}: lb {}: {error}", arguments.join(" ")));
                }
                _ => {}
            }
        }
    }
    assert!(count > 15, "the commands were not found");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
