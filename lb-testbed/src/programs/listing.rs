//! `lb-testbed programs`: the programs that this kernel loads, for `cargo xtask test kernels`.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::Result;
use lb_datapath::{Datapath, Features};
use serde::Serialize;

use super::subject::{Limits, load_options};

/// The programs that this kernel loads or refuses, and the features that it lacks.
#[derive(Debug, Serialize)]
pub struct ProgramListing {
    /// How tc programs are attached.
    tc: &'static str,
    xdp: &'static str,
    /// Verified instructions by program. `None` if the kernel does not count them (before 5.16).
    loaded: BTreeMap<String, Option<u32>>,
    /// Reason by program.
    refused: BTreeMap<String, String>,
    missing: Vec<&'static str>,
}

impl ProgramListing {
    /// Loads the programs on maps of their own.
    pub fn new() -> Result<Self> {
        let datapath = Datapath::load_private(&load_options(&Limits::default()))?;
        let features = datapath.features();
        let loaded = datapath.program_statistics()?.into_iter().map(|program| {
            let verified = program.verified_instructions;
            (program.name, (verified > 0).then_some(verified))
        });
        let refused = datapath.refusals().iter().map(|refusal| {
            let reason = refusal.log.last().unwrap_or(&refusal.error);
            (refusal.program.clone(), reason.clone())
        });
        Ok(Self {
            tc: if features.tcx { "tcx" } else { "clsact" },
            xdp: if features.xdp_frags { "multi-buffer" } else { "linear" },
            loaded: loaded.collect(),
            refused: refused.collect(),
            missing: features.missing(),
        })
    }
}

/// Returns the features of this kernel. The first call loads the programs on maps of their own,
/// because some features can be tried only with loaded programs.
pub fn features() -> Result<&'static Features> {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    if let Some(features) = FEATURES.get() {
        return Ok(features);
    }
    let datapath = Datapath::load_private(&load_options(&Limits::default()))?;
    Ok(FEATURES.get_or_init(|| datapath.features().clone()))
}
