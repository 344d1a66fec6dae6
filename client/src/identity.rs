//! A directory that holds a key, its certificate and whom to trust.
