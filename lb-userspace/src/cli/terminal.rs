//! Puts the terminal into raw mode and on the alternate screen for `lb top`, and restores it at the
//! end, also after a panic.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

use crate::view::top_screen::{Key, ScreenLine, Style};

/// The settings of the terminal before [`Terminal::enter`].
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Enters the alternate screen and hides the cursor. [`LEAVE`] does the reverse.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[0m\x1b[?25h\x1b[?1049l";

/// The terminal of this process. Dropping it restores it.
pub struct Terminal(());

/// Returns whether standard input and output are a terminal.
pub fn is_there() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

impl Terminal {
    /// Takes the terminal.
    pub fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                report(panic);
            }));
        });
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let terminal = Self(());
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        write(ENTER)?;
        Ok(terminal)
    }

    /// Returns the number of columns and lines.
    pub fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            // The size of the terminal is not set.
            _ => (80, 24),
        }
    }

    /// Draws the whole screen with one write.
    pub fn draw(&self, lines: &[ScreenLine]) -> io::Result<()> {
        let mut text = String::from("\x1b[H");
        for (number, line) in lines.iter().enumerate() {
            let style = match line.style {
                Style::Plain => "\x1b[0m",
                Style::Title => "\x1b[0;1m",
                Style::Heading => "\x1b[0;4m",
                Style::Selected => "\x1b[0;7m",
            };
            let end = if number + 1 < lines.len() { "\r\n" } else { "" };
            let _ = write!(text, "{style}{}\x1b[0m\x1b[K{end}", line.text);
        }
        write(&text)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, if it was taken.
fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // The terminal may be gone.
        let _ = write(LEAVE);
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.flush()
}

/// Reads keys on a thread of its own, until the terminal is gone. The thread ends with the process.
pub fn keys() -> io::Result<mpsc::UnboundedReceiver<Vec<Key>>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        let mut bytes = [0; 64];
        while let Ok(length @ 1..) = io::stdin().read(&mut bytes) {
            if sender.send(Key::parse(&bytes[..length])).is_err() {
                break;
            }
        }
    })?;
    Ok(receiver)
}
