//! One request becomes one task per host.
