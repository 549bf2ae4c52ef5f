//! Processes: pidfd_open(2), sub-reapers (prctl(2)), starting children.
