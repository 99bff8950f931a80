//! `lb top` in a real terminal, and without one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use lb_testbed::host::{HTTP_PORT, Process};
use lb_testbed::{Family, agent};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::check::{answered_by, eventually};
use crate::world::{To, World};

/// `lb top` of the first node in a pseudo terminal. Dropping it kills it.
struct Terminal {
    process: Process,
    keyboard: File,
    /// Keeps the terminal and its settings after the end of the command.
    device: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn start(world: &World, columns: u16, lines: u16) -> Result<Self> {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&controller)?;
        unlockpt(&controller)?;
        let path = ptsname(&controller, Vec::new())?;
        let device = open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
        tcsetwinsize(&device, size(columns, lines))?;
        let node = world.node(0);
        let mut command = node.host.place.command(agent::program()?)?;
        command.arg("top").arg("--bpffs").arg(&node.bpffs);
        command.stdin(device.try_clone()?).stdout(device.try_clone()?).stderr(device.try_clone()?);
        let terminal = device.as_raw_fd();
        // SAFETY: between fork and exec the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                // Signals of the terminal, such as a change of its size, reach this session.
                if libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let process = Process(command.spawn()?);
        let keyboard = File::from(controller);
        let mut output = keyboard.try_clone()?;
        let screen = Arc::new(Mutex::new(vt100::Parser::new(lines, columns, 0)));
        let drawn = Arc::clone(&screen);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The read fails when the terminal is gone.
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                drawn.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..length]);
            }
        });
        Ok(Self { process, keyboard, device, screen })
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner).screen().contents()
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        Ok(self.keyboard.write_all(keys.as_bytes())?)
    }

    /// Waits until the screen has these texts, and none of `without`.
    fn expect(&self, with: &[&str], without: &[&str]) -> Result<()> {
        eventually(|| {
            let text = self.text();
            let is_right =
                with.iter().all(|it| text.contains(it)) && !without.iter().any(|it| text.contains(it));
            ensure!(is_right, "expected {with:?} and not {without:?}:\n{text}");
            Ok(())
        })
    }

    fn resize(&self, columns: u16, lines: u16) -> Result<()> {
        let mut parser = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        parser.screen_mut().set_size(lines, columns);
        drop(parser);
        Ok(tcsetwinsize(&self.device, size(columns, lines))?)
    }

    /// Returns whether the terminal shows the alternate screen, or hides the cursor, or is raw.
    fn is_taken(&self) -> Result<bool> {
        let is_raw = !tcgetattr(&self.device)?.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO);
        let parser = self.screen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(is_raw || parser.screen().alternate_screen() || parser.screen().hide_cursor())
    }

    /// Waits for the end. The terminal is as before then.
    fn finish(mut self) -> Result<ExitStatus> {
        let status = self.process.wait()?;
        eventually(|| {
            ensure!(!self.is_taken()?, "the terminal is not as before");
            Ok(())
        })?;
        Ok(status)
    }
}

fn size(columns: u16, lines: u16) -> Winsize {
    Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Connections, keys, a change of size, and every way to end it.
pub fn in_a_terminal(world: &mut World) -> Result<()> {
    let (busy, idle) = (world.publish(&[1])?, world.publish(&[3])?);
    let (busy_name, idle_name) = (busy.service.name.clone(), idle.service.name.clone());
    let target = busy.cluster_ip(Family::V4, To::Http);
    let mut held = world.pod(2).host.hold_http(target)?;
    answered_by(&[held.request()?], &[1])?;
    let mut terminal = Terminal::start(world, 110, 30)?;
    terminal.expect(&["lb top", "NEW/S", &busy_name, &idle_name, "sorted by new/s", "q quit"], &[])?;
    ensure!(terminal.is_taken()?, "the terminal is not raw");
    // The endpoints of the selected Service.
    terminal.press(&format!("/{busy_name}:http\r"))?;
    let endpoint = world.pod(1).host.at(Family::V4, HTTP_PORT).to_string();
    terminal.expect(&[&busy_name, "ENDPOINT", &endpoint, "ready, here"], &[&idle_name])?;
    // New connections have a rate.
    let label = format!("default/{busy_name}:http");
    eventually(|| {
        answered_by(&world.pod(2).host.get(&[target], 5)?, &[1])?;
        let text = terminal.text();
        let row = text.lines().find(|line| line.contains(&label)).context(text.clone())?;
        ensure!(!matches!(row.split_whitespace().nth(2), Some("0" | "-")), "no rate: {row}");
        Ok(())
    })?;
    terminal.press("\x1bs")?;
    terminal.expect(&["sorted by active", &idle_name], &["filter: "])?;
    terminal.press("?")?;
    terminal.expect(&["this help"], &["NEW/S      "])?;
    terminal.press("x")?;
    terminal.resize(40, 6)?;
    terminal.expect(&["lb top", "SERVICE", "q quit"], &["ENDPOINT "])?;
    terminal.resize(110, 30)?;
    terminal.expect(&["ENDPOINT ", "DROPPED/S"], &[])?;
    terminal.press("q")?;
    ensure!(terminal.finish()?.success(), "q does not end it with status 0");

    for signal in [Signal::INT, Signal::TERM] {
        let terminal = Terminal::start(world, 80, 24)?;
        terminal.expect(&["lb top"], &[])?;
        terminal.process.signal(signal)?;
        ensure!(terminal.finish()?.success(), "{signal:?} does not end it with status 0");
    }
    let mut terminal = Terminal::start(world, 80, 24)?;
    terminal.expect(&["lb top"], &[])?;
    terminal.press("\x03")?;
    ensure!(terminal.finish()?.success(), "Ctrl-C does not end it with status 0");

    // Without a terminal it prints a table, or JSON.
    let table = world.agent(0)?.lb(&["top"])?;
    ensure!(table.starts_with("SERVICE") && table.contains(&label), "{table}");
    let report: Value = serde_json::from_str(&world.agent(0)?.lb(&["top", "-o", "json"])?)?;
    let services = report["services"].as_array().context("no services")?;
    let http = |it: &&Value| it["name"] == busy_name.as_str() && it["portName"] == "http";
    let row = services.iter().find(http).with_context(|| report.to_string())?;
    ensure!(row["activeConnections"].as_u64() >= Some(1), "the open connection is not counted: {row}");
    ensure!(row["endpoints"] == 2, "one endpoint of each family: {row}");
    Ok(())
}
