//! Real containers are cut and go on in a clone.

mod state;
mod support;
mod two_nodes;
