//! Which hosts are attached.
