//! Entering network namespaces on a thread of its own (setns(2)).
