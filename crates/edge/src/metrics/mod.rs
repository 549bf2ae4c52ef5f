//! What is counted of the whole edge, and the page that says it.

mod counters;
mod listener;
mod text;

pub(crate) use self::counters::{Counters, Refused};
pub(crate) use self::listener::listen;
