//! A join token becomes a certificate.
