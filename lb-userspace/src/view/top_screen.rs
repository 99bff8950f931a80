//! The screen of `lb top`: its state, which keys change, and its lines. The code is pure.

use super::top::{ReasonRow, SortBy, TopReport, TopRow, per_second, sort};

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-C, which a terminal in raw mode sends as a byte.
    Interrupt,
    Char(char),
}

impl Key {
    /// Returns the keys in the bytes that a terminal has sent. Keys without a meaning here are left
    /// out.
    pub fn parse(mut bytes: &[u8]) -> Vec<Self> {
        let mut keys = Vec::new();
        while !bytes.is_empty() {
            let (key, length) = Self::first(bytes);
            keys.extend(key);
            bytes = &bytes[length..];
        }
        keys
    }

    /// Returns the first key, with the number of its bytes.
    fn first(bytes: &[u8]) -> (Option<Self>, usize) {
        const SEQUENCES: [(&[u8], Key); 14] = [
            (b"\x1b[A", Key::Up),
            (b"\x1bOA", Key::Up),
            (b"\x1b[B", Key::Down),
            (b"\x1bOB", Key::Down),
            (b"\x1b[5~", Key::PageUp),
            (b"\x1b[6~", Key::PageDown),
            (b"\x1b[H", Key::Home),
            (b"\x1bOH", Key::Home),
            (b"\x1b[1~", Key::Home),
            (b"\x1b[F", Key::End),
            (b"\x1bOF", Key::End),
            (b"\x1b[4~", Key::End),
            (b"\r", Key::Enter),
            (b"\x03", Key::Interrupt),
        ];
        if let Some((sequence, key)) = SEQUENCES.iter().find(|(sequence, _)| bytes.starts_with(sequence)) {
            return (Some(*key), sequence.len());
        }
        match bytes {
            // Another sequence: it ends with a letter or `~`.
            [0x1b, b'[' | b'O', rest @ ..] => {
                let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte));
                (None, end.map_or(bytes.len(), |end| end + 3))
            }
            [0x1b, ..] => (Some(Self::Escape), 1),
            [b'\n', ..] => (Some(Self::Enter), 1),
            [0x7f | 0x08, ..] => (Some(Self::Backspace), 1),
            [byte @ 0x20..=0x7e, ..] => (Some(Self::Char(char::from(*byte))), 1),
            _ => (None, 1),
        }
    }
}

/// The emphasis of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    #[default]
    Plain,
    Title,
    Heading,
    Selected,
}

/// A line of the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScreenLine {
    pub text: String,
    pub style: Style,
}

impl ScreenLine {
    /// Returns a line of at most `width` characters.
    fn new(text: &str, style: Style, width: usize) -> Self {
        Self { text: text.chars().take(width).collect(), style }
    }
}

/// The state of the screen, which the user changes by keys.
#[derive(Debug, Clone, Default)]
pub struct TopScreen {
    sort_by: SortBy,
    reversed: bool,
    filter: String,
    is_editing: bool,
    shows_help: bool,
    is_paused: bool,
    /// The service id of the selected row.
    selected: Option<u32>,
    /// The number of rows that a page has.
    page: usize,
}

const HELP: &str = "\
Keys

  up, down, k, j     select a Service; its endpoints are shown
  PgUp, PgDn         a page up or down
  Home, End, g, G    the first, the last Service
  s                  sort by the next column
  r                  reverse the order
  /                  filter by a part of the name; Enter keeps the filter, Esc clears it
  p                  pause: the screen stays as it is
  h, ?               this help
  q, Ctrl-C          quit

NEW/S counts connections of packets and calls at sockets. ACTIVE connections are TCP and SCTP until
one side closes. INACTIVE ones are UDP and the others. REFUSED/S and DROPPED/S are of packets and
calls to the Service.";

const KEYS: &str = "q quit  up/down select  s sort  r reverse  / filter  p pause  h help";

impl TopScreen {
    pub fn sorted_by(sort_by: SortBy) -> Self {
        Self { sort_by, ..Self::default() }
    }

    /// Returns whether the screen keeps its numbers.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Returns the Services that are shown, in their order.
    fn rows<'a>(&self, report: &'a TopReport) -> Vec<&'a TopRow> {
        let is_shown = |row: &&TopRow| row.service.label().contains(&self.filter);
        report.services.iter().filter(is_shown).collect()
    }

    /// Returns the services of a report in the order of the screen.
    pub fn arrange(&self, report: &mut TopReport) {
        sort(&mut report.services, self.sort_by, self.reversed);
    }

    /// Handles a key. Returns true if the command ends.
    pub fn press(&mut self, key: Key, report: &mut TopReport) -> bool {
        if key == Key::Interrupt {
            return true;
        }
        if self.is_editing {
            self.edit(key);
            return false;
        }
        if self.shows_help {
            self.shows_help = false;
            return key == Key::Char('q');
        }
        match key {
            Key::Char('q') => return true,
            Key::Char('h' | '?') => self.shows_help = true,
            Key::Char('s') => {
                self.sort_by = self.sort_by.next();
                self.arrange(report);
            }
            Key::Char('r') => {
                self.reversed = !self.reversed;
                self.arrange(report);
            }
            Key::Char('p') => self.is_paused = !self.is_paused,
            Key::Char('/') => self.is_editing = true,
            Key::Escape => self.filter.clear(),
            Key::Up | Key::Char('k') => self.select(report, |at, _| at.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(report, |at, _| at + 1),
            Key::PageUp => self.select(report, |at, page| at.saturating_sub(page)),
            Key::PageDown => self.select(report, |at, page| at + page),
            Key::Home | Key::Char('g') => self.select(report, |_, _| 0),
            Key::End | Key::Char('G') => self.select(report, |_, _| usize::MAX),
            _ => {}
        }
        false
    }

    fn edit(&mut self, key: Key) {
        match key {
            Key::Enter => self.is_editing = false,
            Key::Escape => {
                self.is_editing = false;
                self.filter.clear();
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    /// Returns the position of the selected row: the first one if none is selected, or if it is not
    /// shown any more.
    fn position(&self, rows: &[&TopRow]) -> usize {
        rows.iter().position(|row| Some(row.service_id) == self.selected).unwrap_or(0)
    }

    fn select(&mut self, report: &TopReport, to: impl FnOnce(usize, usize) -> usize) {
        let rows = self.rows(report);
        let position = to(self.position(&rows), self.page.max(1)).min(rows.len().saturating_sub(1));
        self.selected = rows.get(position).map(|row| row.service_id);
    }

    /// Returns the lines of a screen of this size, at most `height` lines of `width` characters.
    /// `note` is shown in the last line.
    pub fn lines(&mut self, report: &TopReport, note: &str, width: usize, height: usize) -> Vec<ScreenLine> {
        let mut lines = self.head(report, width);
        if self.shows_help {
            lines.extend(HELP.lines().map(|line| ScreenLine::new(line, Style::Plain, width)));
        } else {
            self.body(report, width, height.saturating_sub(lines.len() + 1), &mut lines);
        }
        lines.truncate(height.saturating_sub(1));
        while lines.len() + 1 < height {
            lines.push(ScreenLine::new("", Style::Plain, width));
        }
        let last = match (self.is_editing, note) {
            (true, _) => format!("filter: {}_", self.filter),
            (false, "") => KEYS.to_owned(),
            (false, note) => note.to_owned(),
        };
        lines.push(ScreenLine::new(&last, Style::Title, width));
        lines.truncate(height);
        lines
    }

    fn head(&self, report: &TopReport, width: usize) -> Vec<ScreenLine> {
        let active: u64 = report.services.iter().map(|row| row.active_connections).sum();
        let of = |outcome: &str| {
            let rows = report.reasons.iter().filter(|row| row.outcome == outcome);
            per_second(rows.map(|row| row.per_second).sum())
        };
        let numbers = format!(
            "lb top  {} Service ports  {} new/s  {active} active  {} packets/s  {} refused/s  {} dropped/s",
            report.services.len(),
            per_second(report.new_per_second),
            per_second(report.packets_per_second),
            of("refused"),
            of("dropped"),
        );
        let order = if self.reversed { ", reversed" } else { "" };
        let filter =
            if self.filter.is_empty() { String::new() } else { format!("  filter: {}", self.filter) };
        let paused = if self.is_paused { "  paused" } else { "" };
        let choice = format!("sorted by {}{order}{filter}{paused}", self.sort_by.label());
        vec![ScreenLine::new(&numbers, Style::Title, width), ScreenLine::new(&choice, Style::Plain, width)]
    }

    /// Adds at most `height` lines: the Services, the endpoints of the selected one, and reasons.
    /// A small screen has Services only.
    fn body(&mut self, report: &TopReport, width: usize, height: usize, lines: &mut Vec<ScreenLine>) {
        let rows = self.rows(report);
        let position = self.position(&rows);
        let selected = rows.get(position).map(|row| &row.service);
        let endpoints: Vec<_> = report
            .endpoints
            .iter()
            .filter(|row| Some(&row.service) == selected)
            .map(|row| {
                let state = if row.local { format!("{}, here", row.state) } else { row.state.to_owned() };
                let numbers = [row.active_connections, row.inactive_connections, row.weight];
                let [active, inactive, weight] = numbers.map(|number| number.to_string());
                vec![row.address.to_string(), state, active, inactive, weight]
            })
            .collect();
        let reasons: Vec<_> = report.reasons.iter().map(ReasonRow::cells).collect();
        let part = |needed: usize, most: usize| if needed == 0 { 0 } else { needed.min(most) + 1 };
        let for_endpoints = if height < 9 { 0 } else { part(endpoints.len(), height / 3 - 1) };
        let for_reasons = if height < 15 { 0 } else { part(reasons.len(), height / 4 - 1) };
        let for_services = height - for_endpoints - for_reasons;
        self.page = for_services.saturating_sub(1);
        let cells: Vec<_> = rows.iter().map(|row| row.cells()).collect();
        let first = position.saturating_sub(self.page.saturating_sub(1));
        let services = aligned(&TopRow::COLUMNS, &cells, first, self.page);
        push(lines, services, for_services, position.checked_sub(first), width);
        let columns = ["ENDPOINT", "STATE", "ACTIVE", "INACTIVE", "WEIGHT"];
        push(lines, aligned(&columns, &endpoints, 0, height), for_endpoints, None, width);
        push(lines, aligned(&ReasonRow::COLUMNS, &reasons, 0, height), for_reasons, None, width);
    }
}

/// Adds a table of exactly `height` lines: a heading and rows. `selected` is the number of a row.
fn push(
    lines: &mut Vec<ScreenLine>,
    table: Vec<String>,
    height: usize,
    selected: Option<usize>,
    width: usize,
) {
    for number in 0..height {
        let text = table.get(number).map_or("", String::as_str);
        let style = match number.checked_sub(1) {
            None => Style::Heading,
            row if row == selected && !text.is_empty() => Style::Selected,
            Some(_) => Style::Plain,
        };
        lines.push(ScreenLine::new(text, style, width));
    }
}

/// Returns a heading and the rows from `first` on, at most `count`, in columns.
fn aligned(columns: &[&str], rows: &[Vec<String>], first: usize, count: usize) -> Vec<String> {
    let heading: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
    let shown: Vec<_> = std::iter::once(&heading).chain(rows.iter().skip(first).take(count)).collect();
    let width = |column: usize| shown.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(number, (cell, &width))| {
            // Names are aligned to the left, numbers to the right.
            if number < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    shown.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::super::top::tests::report;
    use super::*;
    use crate::testing::assert_golden;

    /// Returns the screen as text, with a mark before the selected line.
    fn text(screen: &mut TopScreen, report: &TopReport, width: usize, height: usize) -> String {
        let lines = screen.lines(report, "", width, height);
        assert_eq!(lines.len(), height);
        assert!(lines.iter().all(|line| line.text.chars().count() <= width));
        let mark = |line: &ScreenLine| if line.style == Style::Selected { ">" } else { " " };
        lines.iter().map(|line| format!("{}{}", mark(line), line.text).trim_end().to_owned() + "\n").collect()
    }

    fn press(screen: &mut TopScreen, report: &mut TopReport, keys: &str) {
        for key in Key::parse(keys.as_bytes()) {
            assert!(!screen.press(key, report), "{keys:?} quits");
        }
    }

    #[test]
    fn screen() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        press(&mut screen, &mut report, "\x1b[B");
        assert_golden("top-screen.txt", &text(&mut screen, &report, 100, 24));
    }

    #[test]
    fn help() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        press(&mut screen, &mut report, "h");
        assert_golden("top-help.txt", &text(&mut screen, &report, 100, 24));
        press(&mut screen, &mut report, "x");
        assert!(text(&mut screen, &report, 100, 24).contains("kube-dns"));
    }

    #[test]
    fn every_size_is_filled_and_no_line_is_longer() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        for keys in ["", "G", "h", "x/web"] {
            press(&mut screen, &mut report, keys);
            for (width, height) in (0..120).step_by(7).flat_map(|width| (0..40).map(move |h| (width, h))) {
                text(&mut screen, &report, width, height);
            }
        }
    }

    #[test]
    fn the_selected_service_stays_selected_when_the_order_changes() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        press(&mut screen, &mut report, "G");
        assert!(text(&mut screen, &report, 100, 24).contains("\n>shop/cart"));
        press(&mut screen, &mut report, "sss");
        let refused = text(&mut screen, &report, 100, 24);
        assert!(refused.contains("sorted by refused/s") && refused.contains("\n>shop/cart"), "{refused}");
        press(&mut screen, &mut report, "r");
        assert!(text(&mut screen, &report, 100, 24).contains("refused/s, reversed"));
    }

    #[test]
    fn a_selected_row_is_visible_on_a_small_screen() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        for keys in ["G", "g", "\x1b[6~", "\x1b[5~", "jj", "k"] {
            press(&mut screen, &mut report, keys);
            assert!(text(&mut screen, &report, 80, 5).contains("\n>"), "{keys:?}");
        }
    }

    #[test]
    fn filters_are_edited() {
        let (mut screen, mut report) = (TopScreen::default(), report());
        press(&mut screen, &mut report, "/carx\x7ft");
        let editing = text(&mut screen, &report, 100, 24);
        assert!(editing.ends_with(" filter: cart_\n") && !editing.contains("kube-dns"), "{editing}");
        // While a filter is edited, q is a letter.
        press(&mut screen, &mut report, "q\x7f\r");
        assert!(text(&mut screen, &report, 100, 24).contains("  filter: cart\n"));
        press(&mut screen, &mut report, "\x1b");
        assert!(text(&mut screen, &report, 100, 24).contains("kube-dns"));
    }

    #[test]
    fn q_and_ctrl_c_quit() {
        let mut report = report();
        for keys in ["q", "\x03"] {
            let key = Key::parse(keys.as_bytes())[0];
            assert!(TopScreen::default().press(key, &mut report));
        }
        let mut screen = TopScreen::default();
        press(&mut screen, &mut report, "p");
        assert!(screen.is_paused());
    }

    #[test]
    fn keys_are_parsed() {
        use Key::*;
        assert_eq!(Key::parse(b"a\x1b[A\x1bOB\x1b[5~\r"), [Char('a'), Up, Down, PageUp, Enter]);
        assert_eq!(Key::parse(b"\x1b"), [Escape]);
        // F5, and a part of a sequence.
        assert_eq!(Key::parse(b"\x1b[15~x\x1b["), [Char('x')]);
        assert_eq!(Key::parse("ä".as_bytes()), []);
    }
}
