//! The proxies and the endpoint, each with one worker thread.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lb_testbed::agent::program;
use lb_testbed::host::Process;
use lb_testbed::ingress_bed::{EndpointState, ingress, service, slice};
use lb_testbed::{Certificate, IngressBed};
use serde::Serialize;
use serde_json::json;

/// The name in the certificate and in the rules.
pub const HOST: &str = "bench.example";
const PORT: u16 = 20_000;
const PROXY_CPU: &str = "0";
/// The CPU of clients and of the endpoint.
pub const LOAD_CPU: &str = "1";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Subject {
    Sluice,
    /// `lb ingress` without its access log. nginx and HAProxy write none.
    SluiceNoLog,
    Nginx,
    Haproxy,
}

pub const SUBJECTS: [Subject; 4] = [Subject::Sluice, Subject::SluiceNoLog, Subject::Nginx, Subject::Haproxy];

impl Subject {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sluice => "Sluice",
            Self::SluiceNoLog => "Sluice, no log",
            Self::Nginx => "nginx 1.22",
            Self::Haproxy => "HAProxy 2.6",
        }
    }

    fn ports(self) -> (u16, u16) {
        let number = 8_000 + 10 * self as u16;
        (number, number + 1)
    }
}

/// A running proxy.
pub struct Running {
    pub subject: Subject,
    process: Process,
}

impl Running {
    pub fn http(&self) -> SocketAddr {
        SocketAddr::new(IngressBed::HTTP.ip(), self.subject.ports().0)
    }

    pub fn https(&self) -> SocketAddr {
        SocketAddr::new(IngressBed::HTTP.ip(), self.subject.ports().1)
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The server behind the proxies.
pub struct Endpoint {
    _process: Process,
}

impl Endpoint {
    pub fn start(bed: &IngressBed) -> Result<Self> {
        let address = SocketAddr::new(IngressBed::endpoint(0).into(), PORT);
        let folder = bed.folder();
        let config = format!(
            "daemon off; master_process off; pid {0}/endpoint.pid; error_log /dev/null crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 100000000; {1}\n\
             server {{ listen {address} backlog=4096; return 200 'hello, world, from an endpoint'; }} }}\n",
            folder.display(),
            nginx_folders(bed)
        );
        let mut command = nginx(bed, "endpoint.conf", &config, LOAD_CPU)?;
        Ok(Self { _process: bed.start_server(&mut command, address)? })
    }
}

/// Starts a proxy, after [`prepare`].
pub fn start(bed: &IngressBed, subject: Subject) -> Result<Running> {
    let (http, https) = subject.ports();
    let listen = SocketAddr::new(IngressBed::HTTP.ip(), http);
    let endpoint = SocketAddr::new(IngressBed::endpoint(0).into(), PORT);
    let folder = bed.folder().display().to_string();
    let mut command = match subject {
        Subject::Sluice | Subject::SluiceNoLog => {
            let mut command = on_cpu(bed, program()?, PROXY_CPU)?;
            command.args(["ingress", "--manifests"]).arg(bed.manifests.path());
            command.args(["--http", &format!(":{http}"), "--https", &format!(":{https}")]);
            command.args(["--admin", &format!("127.0.0.1:{}", http + 2)]);
            command.env("TOKIO_WORKER_THREADS", "1");
            if subject == Subject::SluiceNoLog {
                command.arg("--no-access-log");
            }
            command
        }
        Subject::Nginx => {
            // The fields that lb ingress sets, and connections to the endpoint that are kept.
            let config = format!(
                "daemon off; master_process off; pid {folder}/nginx.pid; error_log /dev/null crit;\n\
                 events {{ worker_connections 4096; }}\n\
                 http {{ access_log off; keepalive_requests 100000000; {folders}\n\
                 upstream endpoint {{ server {endpoint}; keepalive 128; keepalive_requests 100000000; }}\n\
                 server {{ listen {http} backlog=4096; listen {https} ssl http2 backlog=4096;\n\
                 server_name {HOST}; ssl_certificate {folder}/tls.crt; ssl_certificate_key {folder}/tls.key;\n\
                 ssl_protocols TLSv1.2 TLSv1.3;\n\
                 location / {{ proxy_pass http://endpoint; proxy_http_version 1.1;\n\
                 proxy_set_header Connection ''; proxy_set_header Host $http_host;\n\
                 proxy_set_header X-Request-ID $request_id; proxy_set_header X-Real-IP $remote_addr;\n\
                 proxy_set_header X-Forwarded-For $remote_addr;\n\
                 proxy_set_header X-Forwarded-Host $http_host;\n\
                 proxy_set_header X-Forwarded-Port $server_port;\n\
                 proxy_set_header X-Forwarded-Proto $scheme;\n\
                 proxy_set_header X-Scheme $scheme; }} }} }}\n",
                folders = nginx_folders(bed)
            );
            nginx(bed, "nginx.conf", &config, PROXY_CPU)?
        }
        Subject::Haproxy => {
            let pem = ["tls.crt", "tls.key"].map(|file| fs::read_to_string(bed.folder().join(file)));
            let [certificate, key] = pem;
            fs::write(bed.folder().join("haproxy.pem"), certificate? + &key?)?;
            let config = format!(
                "global\n maxconn 4096\n nbthread 1\n ssl-default-bind-options ssl-min-ver TLSv1.2\n\
                 defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
                 http-reuse always\n\
                 frontend web\n bind :{http} backlog 4096\n\
                 bind :{https} ssl crt {folder}/haproxy.pem alpn h2,http/1.1 backlog 4096\n\
                 option forwardfor\n unique-id-format %{{+X}}o%rt%Ts%pid\n unique-id-header X-Request-ID\n\
                 http-request set-header X-Forwarded-Host %[req.hdr(host)]\n\
                 http-request set-header X-Forwarded-Port %[dst_port]\n\
                 http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}\n\
                 http-request set-header X-Forwarded-Proto http if !{{ ssl_fc }}\n\
                 http-request set-header X-Real-IP %[src]\n\
                 use_backend endpoint if {{ hdr(host),field(1,:) -i {HOST} }} {{ path_beg / }}\n\
                 backend endpoint\n server one {endpoint} pool-max-conn 128\n"
            );
            let file = bed.folder().join("haproxy.cfg");
            fs::write(&file, config)?;
            let mut command = on_cpu(bed, &server("usr/sbin/haproxy")?, PROXY_CPU)?;
            command.arg("-db").arg("-f").arg(file).env("LD_LIBRARY_PATH", libraries()?);
            command
        }
    };
    let process = bed.start_server(&mut command, listen)?;
    Ok(Running { subject, process })
}

/// Returns the path of a file of the unpacked servers.
fn server(file: &str) -> Result<PathBuf> {
    let folder = std::env::var_os("SLUICE_BENCH_SERVERS");
    let folder = folder.context("SLUICE_BENCH_SERVERS is not set: run `cargo xtask bench ingress`")?;
    let path = PathBuf::from(folder).join(file);
    ensure!(path.exists(), "{} does not exist", path.display());
    Ok(path)
}

fn libraries() -> Result<PathBuf> {
    server("usr/lib/x86_64-linux-gnu")
}

/// Folders that nginx creates when it starts.
fn nginx_folders(bed: &IngressBed) -> String {
    let folder = bed.folder().display().to_string();
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {folder}/nginx-{kind};"))
        .concat()
}

fn nginx(bed: &IngressBed, file: &str, config: &str, cpu: &str) -> Result<Command> {
    let file = bed.folder().join(file);
    fs::write(&file, config)?;
    let mut command = on_cpu(bed, &server("usr/sbin/nginx")?, cpu)?;
    command.args(["-e", "/dev/null", "-c"]).arg(file).env("LD_LIBRARY_PATH", libraries()?);
    Ok(command)
}

/// Returns a command that runs in the namespace of the bed on one CPU.
pub fn on_cpu(bed: &IngressBed, program: &std::path::Path, cpu: &str) -> Result<Command> {
    let mut command = bed.place.command("taskset")?;
    command.args(["--cpu-list", cpu]).arg(program);
    Ok(command)
}

/// Makes the certificate of the proxies, and writes the objects of `lb ingress`.
pub fn prepare(bed: &IngressBed) -> Result<()> {
    let certificate = Certificate::create(&bed.folder(), "tls", HOST)?;
    let mut ingress = ingress("web", HOST);
    ingress["metadata"]["annotations"] = json!({"nginx.ingress.kubernetes.io/ssl-redirect": "false"});
    ingress["spec"]["tls"] = json!([{"hosts": [HOST], "secretName": "web"}]);
    let slice = slice("web", PORT, &[(IngressBed::endpoint(0), EndpointState::Ready)]);
    bed.manifests.write("web.yaml", &[service("web"), slice, certificate.secret("web")?, ingress])
}
