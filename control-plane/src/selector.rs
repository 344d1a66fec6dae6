//! Which hosts: parse and match.
