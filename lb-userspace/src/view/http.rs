//! Renders the result of `lb explain http`.

use std::fmt::Write as _;

use lb_ingress::proxy::{Explanation, OwnAnswer};
use serde_json::json;

/// Option `-o` of `lb explain http`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum HttpFormat {
    /// Text for people
    #[default]
    Table,
    /// A JSON object; with --client another one, of the packet
    Json,
}

/// A request with the problems of its Ingress.
#[derive(Debug)]
pub struct ExplainedRequest {
    pub request: Explanation,
    /// The Node of the proxy, if the backend has topology hints.
    pub node: Option<ProxyNode>,
    /// Problems of the Ingress.
    pub problems: Vec<String>,
}

/// The Node whose proxy receives a request.
#[derive(Debug)]
pub struct ProxyNode {
    pub name: String,
    pub exists: bool,
    pub zone: Option<String>,
}

impl ExplainedRequest {
    pub fn render(&self, url: &str, method: &str, format: HttpFormat) -> Result<String, serde_json::Error> {
        match format {
            HttpFormat::Table => Ok(self.lines(url, method)),
            HttpFormat::Json => self.json(url, method),
        }
    }

    fn lines(&self, url: &str, method: &str) -> String {
        let request = &self.request;
        let mut text = String::new();
        let mut line = |label: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{label:<11}{value}");
        };
        line("REQUEST", &format!("{method} {url}"));
        line("HOST", &request.host);
        if let Some(path) = &request.path {
            line("PATH", path);
        }
        line("INGRESS", request.ingress.as_deref().unwrap_or("none"));
        match (&request.rule, &request.path_match) {
            (Some(rule), Some(path_match)) => line("RULE", &format!("{rule}: {path_match}")),
            (Some(rule), None) => line("RULE", rule),
            (None, _) => {}
        }
        if let Some(canary) = &request.canary {
            line("CANARY", canary);
        }
        for problem in &self.problems {
            line("PROBLEM", problem);
        }
        for step in &request.steps {
            line("IF", step);
        }
        if request.passthrough {
            line("TLS", "the endpoint decrypts the connection (ssl-passthrough)");
        }
        if let Some(reason) = &request.fallback {
            line("INSTEAD", &format!("{reason}, so default-backend receives the request"));
        }
        if let Some(backend) = &request.backend {
            line("SERVICE", &format!("{} port {}", backend.service, backend.port));
        }
        if let Some(ProxyNode { name, exists, zone }) = &self.node {
            let text = match (exists, zone) {
                (true, Some(zone)) => format!("{name} in zone {zone}: topology hints apply"),
                (true, None) => format!("{name} without a zone: only hints for nodes apply"),
                (false, _) => format!(
                    "{name} does not exist: topology hints have no effect, name the proxy's Node with --node"
                ),
            };
            line("NODE", &text);
        }
        match &request.answer {
            Some(OwnAnswer { status: Some(status), reason }) => {
                line("ANSWER", &format!("{status}: {reason}"));
            }
            Some(OwnAnswer { status: None, reason }) => {
                line("ANSWER", &format!("none, the proxy closes the connection: {reason}"));
            }
            None => {
                let endpoints: Vec<_> = request.endpoints.iter().map(ToString::to_string).collect();
                line("ENDPOINTS", &endpoints.join(", "));
            }
        }
        if let Some(path) = &request.backend_path
            && request.backend_path != request.path
        {
            line("SENT PATH", path);
        }
        text
    }

    fn json(&self, url: &str, method: &str) -> Result<String, serde_json::Error> {
        let request = &self.request;
        let answer = request.answer.as_ref();
        let answer = answer.map(|answer| json!({"status": answer.status, "reason": answer.reason}));
        let text = serde_json::to_string_pretty(&json!({
            "method": method,
            "url": url,
            "host": request.host,
            "path": request.path,
            "ingress": request.ingress,
            "rule": request.rule,
            "pathMatch": request.path_match,
            "canary": request.canary,
            "passthrough": request.passthrough,
            "problems": self.problems,
            "conditions": request.steps,
            "answer": answer,
            "fallback": request.fallback,
            "service": request.backend.as_ref().map(|backend| backend.service.to_string()),
            "port": request.backend.as_ref().map(|backend| &backend.port),
            "node": self.node.as_ref().map(|node| json!({"name": node.name, "zone": node.zone})),
            "endpoints": request.endpoints,
            "sentPath": request.backend_path,
        }))?;
        Ok(text + "\n")
    }
}
