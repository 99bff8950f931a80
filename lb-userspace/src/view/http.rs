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
    /// The endpoints that may get the request.
    pub endpoints: Vec<SocketAddr>,
    /// Problems of the Ingress.
    pub problems: Vec<String>,
}

impl ExplainedRequest {
    /// Returns the status and the reason of an answer of the proxy itself. Returns `None` if an
    /// endpoint answers.
    fn answer(&self) -> Option<(u16, &str)> {
        match &self.request.answer {
            Some(answer) => Some((answer.status, answer.reason.as_str())),
            None if self.endpoints.is_empty() => Some((503, "the Service has no ready endpoint")),
            None => None,
        }
    }

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
        if let (Some(rule), Some(path_match)) = (&request.rule, &request.path_match) {
            line("RULE", &format!("{rule}: {path_match}"));
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
        if let Some(backend) = &request.backend {
            line("SERVICE", &format!("{} port {}", backend.service, backend.port));
        }
        match self.answer() {
            Some((status, reason)) => line("ANSWER", &format!("{status}: {reason}")),
            None => {
                let endpoints: Vec<_> = self.endpoints.iter().map(ToString::to_string).collect();
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
        let answer = self.answer().map(|(status, reason)| json!({"status": status, "reason": reason}));
        let text = serde_json::to_string_pretty(&json!({
            "method": method,
            "url": url,
            "host": request.host,
            "path": request.path,
            "ingress": request.ingress,
            "rule": request.rule,
            "pathMatch": request.path_match,
            "canary": request.canary,
            "problems": self.problems,
            "conditions": request.steps,
            "answer": answer,
            "service": request.backend.as_ref().map(|backend| backend.service.to_string()),
            "port": request.backend.as_ref().map(|backend| &backend.port),
            "endpoints": self.endpoints,
            "sentPath": request.backend_path,
        }))?;
        Ok(text + "\n")
    }
}
