//! First trust: a join token or an old key becomes a certificate.
