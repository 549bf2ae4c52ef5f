//! A client as the demo, the benchmark and the tests need one: what does somebody outside see while an environment
//! is cloned?
//!
//! [`http::Client`] is a small blocking HTTP/1.1 client with cookies; [`ping::Pinger`] asks at a steady pace over
//! several connections and reports every stall and failure; [`redis::Writer`] changes bulk data in Redis at a steady
//! pace. No dependencies, so that `cargo xtask` builds on a machine where nothing is set up yet.

pub mod http;
pub mod ping;
pub mod redis;

pub use http::{Answer, Client, Target};
pub use ping::{PingReport, Pinger, Rate, Span, Window, percentile};
pub use redis::{Redis, WriteReport, Writer, Writes};
