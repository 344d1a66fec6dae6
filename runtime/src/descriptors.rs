//! How many files and connections this process may have open.

use std::sync::OnceLock;

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};

static GIVEN: OnceLock<(u64, u64)> = OnceLock::new();

/// Takes as many as whoever started this process allows. What is given at first is meant for programs that
/// cannot count further, often 1,024: too few for a fleet that stays connected, or for many tasks at once.
/// To be called once, before anything else.
pub fn raise() -> Result<(), Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let _ = GIVEN.set((soft, hard));
    }
    Ok(())
}

/// What this process was given, soft and hard, if it took more: the programs that it starts get no more either.
pub fn given() -> Option<(u64, u64)> {
    GIVEN.get().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_allowed_is_taken() {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard - 1), hard).unwrap();
        raise().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(given(), Some((soft.min(hard - 1), hard)));
    }
}
