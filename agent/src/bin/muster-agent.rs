//! The lean agent.
fn main() {}
