//! The proxy with real sockets: clients, the proxy and endpoints in one process.

mod auth;
mod cases;
mod hostile;
mod world;
