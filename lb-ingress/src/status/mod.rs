//! The addresses of Ingresses: what a controller writes to `status.loadBalancer`.

mod plan;

pub use plan::StatusPlan;
