//! Real containers are cut and go on in a clone.

mod bench;
mod containers;
mod failures;
mod ladder;
mod load;
mod mariadb;
mod net;
mod obstacles;
mod product;
mod state;
mod support;
mod two_nodes;
