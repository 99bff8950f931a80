//! `lb migrate`: prints the settings that are equivalent to the configuration of another proxy.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::{KubeProxyError, Translation, translated_yaml};

#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Print the settings that are equivalent to a configuration of kube-proxy
    ///
    /// The output is a file for `lb agent --config`. At its end are the fields without an
    /// equivalent, with the reason.
    KubeProxy(KubeProxyArgs),
}

#[derive(Debug, Args)]
pub struct KubeProxyArgs {
    /// File with a KubeProxyConfiguration, or with the ConfigMap of kubeadm that contains one. `-`
    /// is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl Migrate {
    /// Returns the text to print.
    pub fn run(&self) -> Result<String, KubeProxyError> {
        let Self::KubeProxy(KubeProxyArgs { file }) = self;
        if file != Path::new("-") {
            return Ok(translated_yaml(&Translation::read(file)?));
        }
        let path = || PathBuf::from("standard input");
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|source| KubeProxyError::Read { path: path(), source })?;
        Ok(translated_yaml(&Translation::parse(&path(), &text)?))
    }
}
