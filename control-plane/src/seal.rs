//! Seals offers, so that what a host hands back can be believed.
