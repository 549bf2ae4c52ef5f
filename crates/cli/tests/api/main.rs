//! The built program against an API of the test's own making, over a real unix socket.

mod copy;
mod exec;
mod fake;
mod operations;
mod reading;
mod terminal;
mod traffic;
