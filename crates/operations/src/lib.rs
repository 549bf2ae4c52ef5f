//! Changes that take time: planned, journalled step by step, finished or undone after a crash.
//!
//! One file for each kind of operation; `runner` drives them, `recover` takes up what a crash left, `supervise`
//! looks after what runs.

mod clone;
mod create;
mod domains;
mod health;
mod hold;
mod https;
mod image;
mod live;
mod locks;
pub mod platform;
mod pool;
mod power;
mod promote;
mod ramp;
mod recover;
mod remove;
mod rename;
mod runner;
mod saga;
mod service;
mod shared;
mod submit;
mod supervise;
mod swap;
#[cfg(test)]
mod tests;
mod traffic;
mod view;
mod watch;

pub use https::Https;
pub use offshoot_engine::{ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery};
pub use platform::{Platform, Request, SharedPlatform};
pub use service::Operations;
pub use shared::Settings;
