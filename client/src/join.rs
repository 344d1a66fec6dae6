//! The join string: address, token and pin in one.
