//! Signals become a token; stopping has a limit.
