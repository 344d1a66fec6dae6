//! A whole fleet in one process, and stories about it.
