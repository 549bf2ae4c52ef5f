//! The edge as its clients and the daemon see it: a real process on ports of the kernel's choice.

mod authority;
mod bodies;
mod clients;
mod domains;
mod http;
mod kit;
mod observed;
mod ports;
mod protection;
mod routes;
mod split;
mod stats;
mod tls;
