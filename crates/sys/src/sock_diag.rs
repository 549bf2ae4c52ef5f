//! Sockets of a network namespace by netlink (sock_diag(7)), and destroying them.
