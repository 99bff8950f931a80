//! Renders the result of `lb explain http`.

use std::fmt::Write as _;
use std::net::SocketAddr;

use lb_ingress::proxy::Explanation;
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

/// A request with the endpoints of its Service.
#[derive(Debug)]
pub struct ExplainedRequest {
    pub request: Explanation,
    /// Those that may get the request.
    pub endpoints: Vec<SocketAddr>,
    /// Problems of the Ingress.
    pub problems: Vec<String>,
}

impl ExplainedRequest {
    pub fn render(&self, url: &str, method: &str, format: HttpFormat) -> Result<String, serde_json::Error> {
        match format {
            HttpFormat::Table => Ok(self.lines(url, method)),
            HttpFormat::Json => self.json(url, method),
        }
    }

    fn lines(&self, url: &str, method: &str) -> String {
        let Explanation {
            host,
            path,
            ingress,
            rule,
            path_match,
            canary,
            steps,
            answer,
            backend,
            backend_path,
        } = &self.request;
        let mut text = String::new();
        let mut line = |label: &str, value: &str| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{label:<11}{value}");
        };
        line("REQUEST", &format!("{method} {url}"));
        line("HOST", host);
        if let Some(path) = path {
            line("PATH", path);
        }
        line("INGRESS", ingress.as_deref().unwrap_or("none"));
        if let (Some(rule), Some(path_match)) = (rule, path_match) {
            line("RULE", &format!("{rule}: {path_match}"));
        }
        if let Some(canary) = canary {
            line("CANARY", canary);
        }
        for problem in &self.problems {
            line("PROBLEM", problem);
        }
        for step in steps {
            line("IF", step);
        }
        if let Some(answer) = answer {
            line("ANSWER", &format!("{}: {}", answer.status, answer.reason));
        }
        if let Some(backend) = backend {
            line("SERVICE", &format!("{} port {}", backend.service, backend.port));
            let endpoints: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
            match endpoints.is_empty() {
                true => line("ANSWER", "503: the Service has no ready endpoint"),
                false => line("ENDPOINTS", &endpoints.join(", ")),
            }
        }
        if let Some(path) = backend_path.as_ref().filter(|path| Some(*path) != self.request.path.as_ref()) {
            line("SENT PATH", path);
        }
        text
    }

    fn json(&self, url: &str, method: &str) -> Result<String, serde_json::Error> {
        let Explanation {
            host,
            path,
            ingress,
            rule,
            path_match,
            canary,
            steps,
            answer,
            backend,
            backend_path,
        } = &self.request;
        let text = serde_json::to_string_pretty(&json!({
            "method": method,
            "url": url,
            "host": host,
            "path": path,
            "ingress": ingress,
            "rule": rule,
            "pathMatch": path_match,
            "canary": canary,
            "problems": self.problems,
            "conditions": steps,
            "answer": answer.as_ref().map(|answer| json!({"status": answer.status, "reason": answer.reason})),
            "service": backend.as_ref().map(|backend| backend.service.to_string()),
            "port": backend.as_ref().map(|backend| &backend.port),
            "endpoints": self.endpoints,
            "sentPath": backend_path,
        }))?;
        Ok(text + "\n")
    }
}
