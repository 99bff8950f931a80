//! The named steps of a conversion. A test can end the agent at each of them, or let it fail there.

use std::fs;
use std::io;

use rustix::process::{Signal, getpid, kill_process};

/// The environment variable with the name of the step at which the agent ends itself by SIGKILL.
/// For tests: an agent that is started again must finish the conversion.
const KILL_AT: &str = "SLUICE_TEST_KILL_AT";

/// The environment variable with the path of a file that contains the name of the step that returns
/// an error, if there is this file. For tests: an agent that runs must return to its earlier maps.
const FAIL_AT: &str = "SLUICE_TEST_FAIL_AT";

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConversionStep {
    /// The new maps exist, and are empty.
    MapsCreated,
    /// The new maps have all entries that the agent writes.
    MapsFilled,
    /// The programs of the conversion replace some of the attached programs.
    PartlyAttached,
    /// The programs of the conversion replace all attached programs.
    Attached,
    /// The connections are copied. The earlier programs open new ones.
    Copied,
    /// The programs of the conversion open new connections.
    Opening,
    /// All connections are copied. The earlier programs are not used any more.
    Done,
    /// Some of the new maps are where the earlier ones were.
    PartlyPublished,
    /// All maps and links are in their folder. The earlier maps still exist.
    Published,
}

impl ConversionStep {
    const ALL: [(Self, &str); 9] = [
        (Self::MapsCreated, "maps-created"),
        (Self::MapsFilled, "maps-filled"),
        (Self::PartlyAttached, "partly-attached"),
        (Self::Attached, "attached"),
        (Self::Copied, "copied"),
        (Self::Opening, "opening"),
        (Self::Done, "done"),
        (Self::PartlyPublished, "partly-published"),
        (Self::Published, "published"),
    ];

    /// Call this when a step is reached. Returns an error only if a test wants one.
    pub fn reached(self) -> io::Result<()> {
        let Some((_, name)) = Self::ALL.into_iter().find(|(step, _)| *step == self) else { return Ok(()) };
        log::debug!("conversion: {name}");
        if std::env::var_os(KILL_AT).is_some_and(|step| step == *name) {
            // If this fails, the agent continues, and the test fails.
            let _ = kill_process(getpid(), Signal::KILL);
        }
        let step = std::env::var_os(FAIL_AT).and_then(|path| fs::read_to_string(path).ok());
        if step.is_some_and(|step| step == *name) {
            return Err(io::Error::other(format!("the step {name} fails for a test")));
        }
        Ok(())
    }
}
