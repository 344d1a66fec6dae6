//! Pending task and online host: hands one to the other.
