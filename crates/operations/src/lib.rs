//! Changes that take time: planned, journalled step by step, finished or undone after a crash.

mod platform;

pub use offshoot_engine::{ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery};
pub use platform::{Platform, Request, SharedPlatform};
