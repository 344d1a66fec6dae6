//! Doors: gRPC in and out.
