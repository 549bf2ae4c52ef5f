//! The edge as its clients and the daemon see it: a real process on ports of the kernel's choice.

mod authority;
mod backend;
mod bodies;
mod clients;
mod disk;
mod domains;
mod ending;
mod failover;
mod grpc;
mod http;
mod kit;
mod lasting;
mod mirror;
mod observed;
mod ports;
mod protection;
mod routes;
mod service;
mod short;
mod slow;
mod split;
mod stats;
mod tls;
