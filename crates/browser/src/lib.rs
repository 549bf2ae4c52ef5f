//! A browser for tests and benchmarks: Chromium through its driver, by WebDriver
//! (W3C, <https://www.w3.org/TR/webdriver2/>). There are clients in Rust; what they are built on is under the MPL.
//!
//! Everything waits in the calling thread and happens in its network namespace, the browser as well.

mod client;
mod person;

pub use client::{Client, DOWN, ENTER, ESCAPE, Element, Error, SHIFT_TAB, TAB};
pub use person::Person;
