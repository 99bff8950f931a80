//! `cargo xtask fuzz`: sends generated packets through the kernel programs, and compares the
//! results with a model (`lb-testbed/tests/packets/fuzz.rs`). The part `packets` of the tests sends
//! 200,000 packets.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::process::{cargo, is_root};

/// Tests that share the packets: quiet and under pressure, with XDP and with tc.
const TESTS: u64 = 4;

#[derive(clap::Args)]
pub struct Options {
    /// Number of packets
    #[arg(long, default_value_t = 10_000_000)]
    packets: u64,
    /// Seed of the first round; the default is another one in each run
    #[arg(long)]
    seed: Option<u64>,
}

pub fn run(options: &Options) -> Result<()> {
    if !is_root() {
        bail!("loads kernel programs: run `sudo -E cargo xtask fuzz`");
    }
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs(),
    };
    let of_each = options.packets.div_ceil(TESTS);
    println!("{of_each} packets in each of {TESTS} tests; repeat this run with --seed {seed}");
    let mut command = cargo();
    command
        .args(["test", "--package", "lb-testbed", "--no-default-features", "--features", "programs"])
        .args(["--test", "packets", "--", "fuzz"])
        .env("SLUICE_FUZZ_PACKETS", of_each.to_string())
        .env("SLUICE_FUZZ_SEED", seed.to_string());
    if !command.status().context("cannot run cargo")?.success() {
        bail!("the programs and the model disagree, see above");
    }
    Ok(())
}
