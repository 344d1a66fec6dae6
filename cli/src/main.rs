//! Operate a fleet of machines as one.
fn main() {}
