//! Headers: literal lines of `configuration-snippet`.
//!
//! Only four directives of nginx are understood, with literal values and variables. Nothing is
//! ever executed. Every other line refuses the whole snippet.

use super::reader::{Reader, is_token};
use crate::routes::Template;
use crate::routes::policy::{Answer, Headers};

const NAME: &str = "configuration-snippet";

pub(super) fn read(reader: &mut Reader<'_>) -> (Headers, Option<Answer>) {
    let mut found = Found::default();
    for name in ["server-snippet", "stream-snippet", "modsecurity-snippet", "auth-snippet"] {
        if reader.text(name).is_some() {
            reader.unsupported(name, "is configuration of nginx", "replace it by annotations");
        }
    }
    match statements(reader.text(NAME).unwrap_or_default()) {
        Some(statements) => {
            for statement in statements {
                if let Err(reason) = found.add(&statement) {
                    reader.unsupported(
                        NAME,
                        format_args!("`{}` {reason}", statement.join(" ")),
                        "use only more_set_headers, add_header, proxy_set_header and return with literal \
                         values",
                    );
                }
            }
        }
        None => reader.bad(NAME, "does not end its statements by `;`", "correct it"),
    }
    let headers = Headers {
        to_backend: found.to_backend.into(),
        set_in_response: found.set_in_response.into(),
        add_to_response: found.add_to_response.into(),
    };
    (headers, found.answer)
}

#[derive(Default)]
struct Found {
    to_backend: Vec<(Box<str>, Template)>,
    set_in_response: Vec<(Box<str>, Template)>,
    add_to_response: Vec<(Box<str>, Template)>,
    answer: Option<Answer>,
}

impl Found {
    fn add(&mut self, statement: &[String]) -> Result<(), &'static str> {
        let words: Vec<&str> = statement.iter().map(String::as_str).collect();
        match words[..] {
            ["proxy_set_header", name, value] => self.to_backend.push(header(name, value)?),
            ["add_header", name, value] | ["add_header", name, value, "always"] => {
                self.add_to_response.push(header(name, value)?);
            }
            ["more_set_headers", ref lines @ ..] if !lines.is_empty() => {
                for line in lines {
                    let (name, value) = line.split_once(':').ok_or("has no `name: value`")?;
                    self.set_in_response.push(header(name.trim(), value.trim())?);
                }
            }
            ["return", status] => self.answer = Some(answer(status, "")?),
            ["return", status, text] => self.answer = Some(answer(status, text)?),
            _ => return Err("is not understood"),
        }
        Ok(())
    }
}

fn header(name: &str, value: &str) -> Result<(Box<str>, Template), &'static str> {
    let name = name.to_ascii_lowercase();
    // These decide where a message ends or which connection it uses.
    let forbidden = ["content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];
    if !is_token(&name) || forbidden.contains(&name.as_str()) {
        return Err("sets a header that must not be set");
    }
    if !is_value(value) {
        return Err("has a value that a header cannot have");
    }
    Ok((name.into(), Template::parse(value).map_err(|_| "has a variable that is not supported")?))
}

fn is_value(value: &str) -> bool {
    !value.chars().any(|c| c.is_control() && c != '\t')
}

fn answer(status: &str, text: &str) -> Result<Answer, &'static str> {
    let status = status.parse::<u16>().ok().filter(|status| (200..=599).contains(status));
    let text = Template::parse(text).map_err(|_| "has a variable that is not supported")?;
    Ok(Answer { status: status.ok_or("has no status from 200 to 599")?, text })
}

/// Splits a snippet into statements, and these into words. Words may be quoted. Returns `None` if
/// a quote or a statement does not end, or if there is a block.
fn statements(snippet: &str) -> Option<Vec<Vec<String>>> {
    let mut statements = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let mut chars = snippet.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            _ if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            ';' => statements.push(std::mem::take(&mut words)),
            '{' | '}' => {
                words.push(c.to_string());
                statements.push(std::mem::take(&mut words));
            }
            '"' | '\'' => {
                let mut word = String::new();
                loop {
                    match chars.next()? {
                        '\\' => word.push(chars.next()?),
                        end if end == c => break,
                        other => word.push(other),
                    }
                }
                words.push(word);
            }
            _ => {
                let mut word = c.to_string();
                while let Some(c) = chars.next_if(|c| !c.is_whitespace() && !";{}".contains(*c)) {
                    word.push(c);
                }
                words.push(word);
            }
        }
    }
    words.is_empty().then_some(statements)
}
