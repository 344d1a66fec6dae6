//! Tracing to stderr and OTLP.
