//! The interoperability tests of gRPC: its client, the proxy, its server.

use anyhow::{Result, ensure};
use lb_testbed::IngressBed;
use serde_json::json;

use crate::programs::{GO_PROGRAMS, NAME, PORT, endpoint, path, run, write_objects};

/// All cases that need no credentials of a cloud and no second server.
const CASES: [&str; 13] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
];

#[test]
fn grpc() -> Result<()> {
    let (client, server) = (path(GO_PROGRAMS, "grpc-client")?, path(GO_PROGRAMS, "grpc-server")?);
    let port = PORT.to_string();
    for (protocol, server_tls) in [("GRPC", "--use_tls=false"), ("GRPCS", "--use_tls=true")] {
        let bed = IngressBed::build()?;
        let certificate = write_objects(
            &bed,
            json!({
                "nginx.ingress.kubernetes.io/backend-protocol": protocol,
                "nginx.ingress.kubernetes.io/ssl-redirect": "false",
            }),
        )?;
        // Without these options the server looks for files in its source folder.
        let files = ["tls_cert_file=tls.crt", "tls_key_file=tls.key"].map(|option| {
            let (name, file) = option.split_once('=').unwrap_or_default();
            format!("--{name}={}", bed.folder().join(file).display())
        });
        let arguments = ["--port", &port, server_tls, &files[0], &files[1]];
        let _server = bed.start_server(bed.place.command(&server)?.args(arguments), endpoint())?;
        let proxy = bed.start_proxy(&["--no-access-log"])?;
        let ca = format!("--ca_file={}", certificate.display());
        let name = format!("--server_host_override={NAME}");
        let with_tls = ["--use_tls=true", "--use_test_ca=true", &ca, &name];
        let kinds = [(IngressBed::HTTP, &["--use_tls=false"][..]), (IngressBed::HTTPS, &with_tls)];
        for (address, tls) in kinds {
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let mut failures = Vec::new();
            for case in CASES {
                let to = ["--server_host", &host, "--server_port", &port, "--test_case", case];
                let (passed, text) = run(&bed, &client, &[&to, tls].concat())?;
                if !passed {
                    failures.push(format!("{case}: {text}"));
                }
            }
            println!("{protocol} by {address}: {} of {} passed", CASES.len() - failures.len(), CASES.len());
            ensure!(failures.is_empty(), "{protocol}, {address}: {}", failures.join("\n"));
        }
        proxy.stop()?;
    }
    Ok(())
}
