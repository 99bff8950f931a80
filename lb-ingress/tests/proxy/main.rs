//! The proxy with real sockets: clients, the proxy and endpoints in one process.

mod auth;
mod backend_tls;
mod cases;
mod frames;
mod hostile;
mod hostile_endpoints;
mod hostile_http2;
mod world;
