//! Open, serve, stop.
