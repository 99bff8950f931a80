//! The framing of HTTP/1 requests: where each head and body ends, and which requests are refused.
//!
//! The HTTP engine accepts more than a proxy should: for example, it drops `Content-Length` beside
//! `Transfer-Encoding`. This scanner reads the same bytes first, and accepts only requests that
//! every server frames in the same way (RFC 9112 2.2, 5, 6, 7.1 and 11.2).

/// Longest head of a request in bytes.
const MAX_HEAD: usize = 32 << 10;
/// Fields of a request.
pub const MAX_FIELDS: usize = 100;
/// Longest line with the size of a chunk in bytes, extensions included.
const MAX_CHUNK_LINE: usize = 256;
/// All trailers of a request in bytes.
const MAX_TRAILERS: usize = 8 << 10;
/// Bytes of empty lines before a request line (RFC 9112 2.2).
const MAX_EMPTY_LINES: usize = 8;

/// Finds the ends of heads and bodies in the bytes of a connection.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// The head under way is a request for another protocol.
    upgrade: bool,
    /// Bytes at the start of an incomplete head in which no end was found.
    searched: usize,
    empty_lines: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Body {
        left: u64,
    },
    ChunkSize {
        length: usize,
        size: u64,
        digits: u8,
        part: SizePart,
    },
    ChunkData {
        left: u64,
    },
    ChunkEnd {
        return_seen: bool,
    },
    Trailers {
        length: usize,
        line: usize,
        return_seen: bool,
    },
    /// The answer to an upgrade decides about the following bytes.
    Upgrade,
    /// Another protocol.
    Tunnel,
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SizePart {
    Digits,
    Extension,
    Newline,
}

/// The result of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// The engine may read this many bytes.
    pub pass: usize,
    pub then: Then,
}

/// The state after the bytes that may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing, or an incomplete head: it must be kept and scanned again with the bytes after it.
    More,
    /// Bytes that must wait until the upgrade is answered.
    AwaitUpgrade,
    /// A head that is refused.
    RefuseHead(Refusal),
    /// A body that is refused.
    RefuseBody,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Malformed,
    /// No complete head within the time limit.
    Slow,
    /// Too many bytes or fields.
    TooLarge,
    /// A transfer coding other than `chunked`.
    Coding,
    Version,
}

impl Refusal {
    pub fn status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Slow => 408,
            Self::TooLarge => 431,
            Self::Coding => 501,
            Self::Version => 505,
        }
    }
}

/// The framing of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

impl Scanner {
    pub fn new() -> Self {
        Self { state: State::Head, upgrade: false, searched: 0, empty_lines: 0 }
    }

    /// Returns whether the next byte belongs to a head.
    pub fn in_head(&self) -> bool {
        self.state == State::Head
    }

    pub fn awaits_upgrade(&self) -> bool {
        self.state == State::Upgrade
    }

    /// Returns whether the connection has another protocol.
    pub fn in_tunnel(&self) -> bool {
        self.state == State::Tunnel
    }

    /// The upgrade was answered. If the protocol did not change, the next bytes are a request.
    pub fn upgraded(&mut self, switched: bool) {
        self.state = if switched { State::Tunnel } else { State::Head };
    }

    /// Scans the next bytes of the connection.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut pass = 0;
        while pass < bytes.len() {
            match self.step(&bytes[pass..]) {
                Ok(0) => {
                    let then = if self.state == State::Upgrade { Then::AwaitUpgrade } else { Then::More };
                    return Scan { pass, then };
                }
                Ok(taken) => pass += taken,
                Err(refusal) => {
                    let in_head = self.state == State::Head;
                    self.state = State::Refused;
                    return Scan {
                        pass,
                        then: if in_head { Then::RefuseHead(refusal) } else { Then::RefuseBody },
                    };
                }
            }
        }
        Scan { pass, then: Then::More }
    }

    /// Returns the number of bytes taken, which is 0 if the first bytes must wait.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.state {
            State::Head => self.head(bytes),
            State::Body { left } | State::ChunkData { left } => {
                let taken = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= taken as u64;
                if *left == 0 {
                    if matches!(self.state, State::Body { .. }) {
                        self.end_of_message();
                    } else {
                        self.state = State::ChunkEnd { return_seen: false };
                    }
                }
                Ok(taken)
            }
            State::ChunkSize { .. } | State::ChunkEnd { .. } | State::Trailers { .. } => {
                self.chunk_byte(bytes[0])?;
                Ok(1)
            }
            State::Upgrade => Ok(0),
            State::Tunnel => Ok(bytes.len()),
            State::Refused => Err(Refusal::Malformed),
        }
    }

    fn end_of_message(&mut self) {
        self.state = if self.upgrade { State::Upgrade } else { State::Head };
        self.upgrade = false;
    }

    fn head(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        if self.searched <= 1 && bytes.starts_with(b"\r\n") {
            self.searched = 0;
            self.empty_lines += 2;
            return if self.empty_lines > MAX_EMPTY_LINES { Err(Refusal::Malformed) } else { Ok(2) };
        }
        // The end may begin in the bytes that were searched before.
        let start = self.searched.saturating_sub(3);
        let Some(end) = find(&bytes[start..], b"\r\n\r\n").map(|end| start + end) else {
            self.searched = bytes.len();
            return if bytes.len() > MAX_HEAD { Err(Refusal::TooLarge) } else { Ok(0) };
        };
        self.searched = 0;
        self.empty_lines = 0;
        if end > MAX_HEAD {
            return Err(Refusal::TooLarge);
        }
        let (framing, upgrade) = check_head(&bytes[..end])?;
        self.upgrade = upgrade;
        match framing {
            Framing::Length(0) => self.end_of_message(),
            Framing::Length(left) => self.state = State::Body { left },
            Framing::Chunked => self.state = CHUNK_SIZE,
        }
        Ok(end + 4)
    }

    fn chunk_byte(&mut self, byte: u8) -> Result<(), Refusal> {
        let malformed = Err(Refusal::Malformed);
        match &mut self.state {
            State::ChunkSize { length, size, digits, part } => {
                *length += 1;
                if *length > MAX_CHUNK_LINE {
                    return malformed;
                }
                let digit = char::from(byte).to_digit(16).filter(|_| *part == SizePart::Digits);
                match (byte, *part) {
                    _ if digit.is_some() && *digits < 15 => {
                        *digits += 1;
                        *size = *size << 4 | u64::from(digit.unwrap_or(0));
                    }
                    (b'\r', SizePart::Digits | SizePart::Extension) if *digits > 0 => {
                        *part = SizePart::Newline;
                    }
                    (b';', SizePart::Digits) if *digits > 0 => *part = SizePart::Extension,
                    (b'\n', SizePart::Newline) => {
                        self.state = match *size {
                            0 => State::Trailers { length: 0, line: 0, return_seen: false },
                            left => State::ChunkData { left },
                        };
                    }
                    (byte, SizePart::Extension) if is_text(byte) => {}
                    _ => return malformed,
                }
            }
            State::ChunkEnd { return_seen } => match (byte, *return_seen) {
                (b'\r', false) => *return_seen = true,
                (b'\n', true) => self.state = CHUNK_SIZE,
                _ => return malformed,
            },
            State::Trailers { length, line, return_seen } => {
                *length += 1;
                match (byte, *return_seen) {
                    _ if *length > MAX_TRAILERS => return malformed,
                    (b'\r', false) => *return_seen = true,
                    (b'\n', true) if *line == 0 => self.end_of_message(),
                    (b'\n', true) => {
                        *line = 0;
                        *return_seen = false;
                    }
                    // A line that begins with a space continues the previous one (obs-fold).
                    (b' ' | b'\t', false) if *line == 0 => return malformed,
                    (byte, false) if is_text(byte) => *line += 1,
                    _ => return malformed,
                }
            }
            _ => return malformed,
        }
        Ok(())
    }
}

const CHUNK_SIZE: State = State::ChunkSize { length: 0, size: 0, digits: 0, part: SizePart::Digits };

fn find(bytes: &[u8], pattern: &[u8; 4]) -> Option<usize> {
    let mut start = 0;
    while let Some(offset) = bytes.get(start..)?.iter().position(|byte| *byte == pattern[0]) {
        start += offset;
        if bytes[start..].starts_with(pattern) {
            return Some(start);
        }
        start += 1;
    }
    None
}

/// Returns whether the byte may stand in a field value (RFC 9110 5.5).
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Returns whether the byte may stand in a method or field name (RFC 9110 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Checks a head without the empty line at its end. Returns the framing of the body, and whether
/// the request is one for another protocol.
fn check_head(head: &[u8]) -> Result<(Framing, bool), Refusal> {
    let mut lines = Lines(Some(head));
    let version_1_1 = check_request_line(lines.next().unwrap_or_default())?;
    let (mut length, mut chunked, mut hosts, mut fields) = (None, false, 0, 0);
    let (mut upgrade, mut connection_upgrade) = (false, false);
    for line in lines {
        fields += 1;
        if fields > MAX_FIELDS {
            return Err(Refusal::TooLarge);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Refusal::Malformed)?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A name cannot contain a space, so this refuses obs-fold and `Name :` too.
        if name.is_empty() || !name.iter().copied().all(is_token) || !value.iter().copied().all(is_text) {
            return Err(Refusal::Malformed);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                // The protocol h2c is never spoken after an upgrade (RFC 9113 3.1).
                upgrade |= !has_word(value, b"h2c");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                connection_upgrade |= has_word(value, b"upgrade");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let digits = std::str::from_utf8(value)
                    .ok()
                    .filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()));
                let value = digits.and_then(|digits| digits.parse().ok()).ok_or(Refusal::Malformed)?;
                if length.replace(value).is_some() {
                    return Err(Refusal::Malformed);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked {
                    return Err(Refusal::Malformed);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Coding);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && version_1_1) || (chunked && (length.is_some() || !version_1_1)) {
        return Err(Refusal::Malformed);
    }
    let framing = if chunked { Framing::Chunked } else { Framing::Length(length.unwrap_or(0)) };
    Ok((framing, upgrade && connection_upgrade && version_1_1))
}

/// Returns whether the version is 1.1.
fn check_request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Malformed);
    };
    let target_is_valid = !target.is_empty() && target.iter().all(|byte| *byte > b' ' && *byte != 0x7f);
    if method.is_empty() || !method.iter().copied().all(is_token) || !target_is_valid || method == b"CONNECT"
    {
        return Err(Refusal::Malformed);
    }
    match version {
        b"HTTP/1.1" => Ok(true),
        b"HTTP/1.0" => Ok(false),
        _ if version.starts_with(b"HTTP/") => Err(Refusal::Version),
        _ => Err(Refusal::Malformed),
    }
}

/// Returns whether a list that is separated by commas has the word, in any case.
pub fn has_word(list: &[u8], word: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(word))
}

/// The lines of a head, which end with CRLF. A bare CR or LF stays in its line, where no check
/// accepts it.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let bytes = self.0?;
        let mut start = 0;
        while let Some(offset) = bytes[start..].iter().position(|byte| *byte == b'\r') {
            let at = start + offset;
            if bytes.get(at + 1) == Some(&b'\n') {
                self.0 = Some(&bytes[at + 2..]);
                return Some(&bytes[..at]);
            }
            start = at + 1;
        }
        self.0 = None;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans the bytes in pieces of `size`, as [`super::super::guard`] does. Returns the bytes that
    /// passed, and the end.
    fn scan_in_pieces(bytes: &[u8], size: usize) -> (Vec<u8>, Then) {
        let (mut scanner, mut passed, mut held) = (Scanner::new(), Vec::new(), Vec::new());
        let mut then = Then::More;
        for piece in bytes.chunks(size) {
            held.extend_from_slice(piece);
            let scan = scanner.scan(&held);
            passed.extend(held.drain(..scan.pass));
            then = scan.then;
            if matches!(then, Then::RefuseHead(_) | Then::RefuseBody) {
                break;
            }
        }
        (passed, then)
    }

    fn refusal(head: &str) -> Option<u16> {
        let ends: Vec<_> = [1, 7, 1 << 20].map(|size| scan_in_pieces(head.as_bytes(), size).1).into();
        assert!(ends.iter().all(|end| *end == ends[0]), "{head}: {ends:?}");
        match ends[0] {
            Then::RefuseHead(refusal) => Some(refusal.status()),
            Then::RefuseBody => Some(0),
            Then::More | Then::AwaitUpgrade => None,
        }
    }

    #[test]
    fn smuggled_requests_are_refused() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        for (fields, expected) in [
            ("Content-Length: 0", None),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", Some(400)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5", Some(400)),
            ("Content-Length: 5\r\nContent-Length: 5", Some(400)),
            ("Content-Length: 5, 5", Some(400)),
            ("Content-Length: +5", Some(400)),
            ("Content-Length: 0x5", Some(400)),
            ("Content-Length:", Some(400)),
            ("Content-Length: 99999999999999999999", Some(400)),
            ("Transfer-Encoding: xchunked", Some(501)),
            ("Transfer-Encoding: gzip, chunked", Some(501)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Some(400)),
            ("Transfer-Encoding: \u{b}chunked", Some(400)),
            ("Transfer-Encoding : chunked", Some(400)),
            (" Transfer-Encoding: chunked", Some(400)),
            ("X: a\r\n b", Some(400)),
            ("X: a\r\n\tb: c", Some(400)),
            ("X: a\nContent-Length: 5", Some(400)),
            ("X: a\rContent-Length: 5", Some(400)),
            ("X: a\0b", Some(400)),
            ("X", Some(400)),
            (": a", Some(400)),
            ("Host: b", Some(400)),
            ("X\u{e4}: a", Some(400)),
            ("X: \u{e4}", None),
            ("X:", None),
        ] {
            assert_eq!(refusal(&post(fields)), expected, "{fields:?}");
        }
        for (head, expected) in [
            ("GET / HTTP/1.0\r\n\r\n", None),
            ("\r\nGET / HTTP/1.0\r\n\r\n", None),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Some(400)),
            ("GET / HTTP/1.1\r\n\r\n", Some(400)),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Some(400)),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Some(400)),
            ("GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", Some(400)),
            ("GET /\r\n\r\n", Some(400)),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Some(505)),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Some(400)),
            ("G\u{e4}T / HTTP/1.1\r\nHost: a\r\n\r\n", Some(400)),
            ("\r\n\r\n\r\n\r\n\r\n", Some(400)),
        ] {
            assert_eq!(refusal(head), expected, "{head:?}");
        }
    }

    #[test]
    fn heads_are_bounded() {
        let fields = |count: usize| {
            let fields: String = (0..count).map(|n| format!("X-{n}: a\r\n")).collect();
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
        };
        assert_eq!(refusal(&fields(MAX_FIELDS - 1)), None);
        assert_eq!(refusal(&fields(MAX_FIELDS)), Some(431));
        let long = |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(length));
        assert_eq!(refusal(&long(MAX_HEAD - 64)), None);
        assert_eq!(refusal(&long(MAX_HEAD)), Some(431));
        let endless = format!("GET /{}", "a".repeat(MAX_HEAD));
        assert_eq!(refusal(&endless), Some(431));
    }

    #[test]
    fn bodies_end_where_they_say() {
        let second = "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
        for first in [
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n\r\n\r\nabc".to_owned(),
            "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             A;x=y\r\n0123456789\r\n1\r\n\r\r\n0\r\nX: y\r\n\r\n"
                .to_owned(),
        ] {
            let bytes = format!("{first}{second}");
            for size in 1..bytes.len() {
                assert_eq!(scan_in_pieces(bytes.as_bytes(), size), (bytes.clone().into(), Then::More));
            }
            // A refused head passes not even in part, however the bytes arrive.
            let bytes = format!("{first}GET /\n");
            let bytes = format!("{bytes}\r\n\r\n");
            for size in 1..bytes.len() {
                let expected = (first.clone().into(), Then::RefuseHead(Refusal::Malformed));
                assert_eq!(scan_in_pieces(bytes.as_bytes(), size), expected, "{size}");
            }
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for chunks in [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "\r\nhello",
            "-5\r\n",
            "0x5\r\n",
            "5 \r\nhello",
            "10000000000000000\r\n",
            "5;\n\r\nhello",
            "0\r\nX: y\nZ: a\r\n\r\n",
            "0\r\nX: y\r\n z\r\n\r\n",
            "0\r\n z\r\n\r\n",
        ] {
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            assert_eq!(refusal(&request), Some(0), "{chunks:?}");
        }
    }

    #[test]
    fn bytes_after_an_upgrade_wait() {
        let upgrade =
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
        let bytes = format!("{upgrade}\x01\n\n");
        for size in 1..bytes.len() - 3 {
            assert_eq!(scan_in_pieces(bytes.as_bytes(), size), (upgrade.into(), Then::AwaitUpgrade));
        }
        let mut scanner = Scanner::new();
        scanner.scan(upgrade.as_bytes());
        assert!(scanner.awaits_upgrade());
        scanner.upgraded(true);
        assert_eq!(scanner.scan(b"\x01\n\n"), Scan { pass: 3, then: Then::More });
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        ] {
            assert_eq!(Scanner::new().scan(head.as_bytes()), Scan { pass: head.len(), then: Then::More });
        }
    }
}
