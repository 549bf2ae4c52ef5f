//! Files below a hostile directory: openat2(2) with RESOLVE_IN_ROOT, and what builds on it.
