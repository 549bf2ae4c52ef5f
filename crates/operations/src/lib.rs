//! Changes that take time: planned, journalled step by step, finished or undone after a crash.

mod platform;

pub use platform::{
    ByteStream, ExecInput, ExecOutput, ExecSession, LogQuery, Platform, Request, SharedPlatform,
};
