//! The daemon's API over its unix socket.

mod body;
mod client;
mod events;
mod lines;
mod route;
mod sse;

pub(crate) use body::{Upload, UploadWriter, download};
pub(crate) use client::{Client, problem_of};
pub(crate) use events::updates;
pub(crate) use lines::Lines;
pub(crate) use route::Route;
