//! Names of the tasks that print lines of progress. Each line begins with the name.

pub const BENCH: &str = "bench";
pub const DENY: &str = "deny";
pub const DEPLOY: &str = "deploy";
pub const IMAGE: &str = "image";
pub const INGRESS_SUITES: &str = "ingress-suites";
pub const K8S: &str = "k8s";
pub const KERNELS: &str = "kernels";
pub const MIRI: &str = "miri";
pub const MUTANTS: &str = "mutants";
pub const SETUP: &str = "setup";
