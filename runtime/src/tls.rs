//! TLS 1.3 with our own acceptor and connector.
