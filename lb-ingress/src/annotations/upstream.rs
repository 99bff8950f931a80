//! How the backend is reached: `backend-protocol`, `load-balance`, `upstream-hash-by`,
//! `proxy-next-upstream*`, `proxy-http-version`, `service-upstream`, `proxy-ssl-*`.

use super::reader::Reader;
use crate::routes::policy::{BackendProtocol, Balance, Retry, Upstream, UpstreamTls, UpstreamVersion};

/// Reads the choice of an endpoint, and the conditions for another try.
pub(super) fn read(reader: &mut Reader<'_>) -> (Balance, Retry) {
    if reader.flag("service-upstream") == Some(true) {
        reader.note(
            "service-upstream",
            "has no effect: requests go to the endpoints",
            "remove it, or keep it for other controllers",
        );
    }
    (balance(reader), retry(reader))
}

/// Reads the protocol towards endpoints. Without it, requests would leave without TLS.
pub(super) fn read_protocol(reader: &mut Reader<'_>) -> Upstream {
    Upstream {
        protocol: protocol(reader),
        tls: tls(reader),
        http_version: version(reader),
        ..Upstream::default()
    }
}

fn protocol(reader: &mut Reader<'_>) -> BackendProtocol {
    const NAME: &str = "backend-protocol";
    match reader.text(NAME).map(str::to_ascii_uppercase).as_deref() {
        None | Some("HTTP" | "AUTO_HTTP") => BackendProtocol::Http,
        Some("HTTPS") => BackendProtocol::Https,
        Some("GRPC") => BackendProtocol::Grpc,
        Some("GRPCS") => BackendProtocol::Grpcs,
        Some(other @ ("FCGI" | "AJP")) => {
            reader.unsupported(NAME, format_args!("{other} is not supported"), "serve HTTP in the pod");
            BackendProtocol::Http
        }
        Some(other) => {
            reader.bad(NAME, format_args!("`{other}` is unknown"), "use HTTP, HTTPS, GRPC or GRPCS");
            BackendProtocol::Http
        }
    }
}

fn balance(reader: &mut Reader<'_>) -> Balance {
    let hash = reader.template("upstream-hash-by");
    for name in ["upstream-hash-by-subset", "upstream-hash-by-subset-size"] {
        if reader.text(name).is_some_and(|value| value != "false") {
            reader.note(name, "has no effect: the hash selects one endpoint", "remove it");
        }
    }
    let algorithm = match reader.text("load-balance") {
        None | Some("round_robin") => Balance::RoundRobin,
        Some("ewma" | "least_conn") => Balance::LeastOfTwo,
        Some(other) => {
            reader.bad("load-balance", format_args!("`{other}` is unknown"), "use round_robin or ewma");
            Balance::RoundRobin
        }
    };
    hash.map_or(algorithm, Balance::Hash)
}

fn retry(reader: &mut Reader<'_>) -> Retry {
    const NAME: &str = "proxy-next-upstream";
    let mut retry = Retry::default();
    if let Some(tries) = reader.number("proxy-next-upstream-tries", 0, 100) {
        // 0 means no limit in nginx.
        retry.tries = if tries == 0 { 10 } else { tries };
    }
    retry.within = reader.duration("proxy-next-upstream-timeout").filter(|time| !time.is_zero());
    let Some(text) = reader.text(NAME) else { return retry };
    (retry.on_error, retry.on_timeout) = (false, false);
    let mut statuses = Vec::new();
    for word in text.split_whitespace() {
        match word {
            "error" => retry.on_error = true,
            "timeout" => retry.on_timeout = true,
            "invalid_header" => retry.on_invalid_header = true,
            "non_idempotent" => retry.non_idempotent = true,
            "off" => retry.tries = 1,
            "updating" => {}
            _ => match word.strip_prefix("http_").and_then(|status| status.parse::<u16>().ok()) {
                Some(status @ (403 | 404 | 429 | 500 | 502 | 503 | 504)) => statuses.push(status),
                _ => reader.bad(
                    NAME,
                    format_args!("`{word}` is unknown"),
                    "use error, timeout, invalid_header, http_502 and their like, non_idempotent, off",
                ),
            },
        }
    }
    statuses.sort_unstable();
    retry.on_status = statuses.into();
    retry
}

fn version(reader: &mut Reader<'_>) -> UpstreamVersion {
    match reader.text("proxy-http-version") {
        None | Some("1.1") => UpstreamVersion::Http11,
        Some("1.0") => UpstreamVersion::Http10,
        Some(other) => {
            reader.bad("proxy-http-version", format_args!("`{other}` is unknown"), "use 1.0 or 1.1");
            UpstreamVersion::Http11
        }
    }
}

fn tls(reader: &mut Reader<'_>) -> UpstreamTls {
    for name in ["proxy-ssl-ciphers", "proxy-ssl-protocols"] {
        if reader.text(name).is_some() {
            reader.note(name, "has no effect: TLS 1.2 and 1.3 are used with safe ciphers", "remove it");
        }
    }
    let verify = reader.switch("proxy-ssl-verify").unwrap_or(false);
    let send_name = reader.switch("proxy-ssl-server-name").unwrap_or(false);
    let default = UpstreamTls::default();
    let depth = reader.number("proxy-ssl-verify-depth", 1, 10).and_then(|depth| u8::try_from(depth).ok());
    let tls = UpstreamTls {
        secret: reader.secret("proxy-ssl-secret"),
        verify,
        verify_depth: depth.unwrap_or(default.verify_depth),
        name: reader.text("proxy-ssl-name").map(Into::into),
        send_name,
    };
    if tls.verify && tls.secret.is_none() {
        reader.bad("proxy-ssl-verify", "is on without proxy-ssl-secret", "name a Secret with ca.crt");
    }
    tls
}
