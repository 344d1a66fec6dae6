//! The ledger: SQLite, one writer, several readers.
