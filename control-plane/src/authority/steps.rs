//! The steps of a rotation: begin, issue, serve, finish; and back.
//!
//! Both authorities are trusted from the first step to the last, so no certificate fails in between, and until the
//! last step everything can be taken back.

use std::sync::Arc;

use super::{
    Authority, AuthorityError, Phase, pin,
    ring::{Keyed, Retired, Ring, remembered_until},
};
use crate::clock::now;

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the next authority, and have everybody trust it too.
    Begin,
    /// Let it issue.
    Issue,
    /// Let the control plane show a certificate of it.
    Serve,
    /// Drop the other authority. `distrust`: nobody comes back by a certificate of it.
    Finish {
        /// The dropped key may be known to others.
        distrust: bool,
    },
    /// Back to the old authority.
    Rollback,
}

impl Step {
    /// Its name, as the audit log says it.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Issue => "issue",
            Self::Serve => "serve",
            Self::Finish { distrust: false } => "finish",
            Self::Finish { distrust: true } => "finish-and-distrust",
            Self::Rollback => "rollback",
        }
    }
}

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    /// The rotation does not stand there.
    #[error("{0}")]
    Phase(&'static str),
    /// A file or a certificate.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Where a rotation stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) phase: Phase,
    /// Unix milliseconds; 0 if there never was a rotation.
    pub(crate) phase_time: i64,
    /// SHA-256 of the certificate that issues, hex.
    pub(crate) issuing: String,
    /// SHA-256 of the other one that is trusted, hex.
    pub(crate) other: Option<String>,
    /// The version that a host has to have taken before the other one is dropped.
    pub(crate) needed: i64,
}

/// What a step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Move {
    /// It was taken already.
    Nothing,
    To(Phase),
}

/// What follows from a step in a phase, or why it cannot be taken.
fn follow(phase: Phase, step: Step) -> Result<Move, &'static str> {
    use Phase::{Begun, Issuing, RollingBack, Serving, Standby};
    Ok(match (step, phase) {
        (Step::Begin, Standby) => Move::To(Begun),
        (Step::Issue, Begun) => Move::To(Issuing),
        (Step::Serve, Issuing) => Move::To(Serving),
        (Step::Finish { .. }, Serving | RollingBack) => Move::To(Standby),
        // Nothing was issued by it yet.
        (Step::Rollback, Begun) => Move::To(Standby),
        (Step::Rollback, Issuing | Serving) => Move::To(RollingBack),

        (Step::Begin, Begun)
        | (Step::Issue, Issuing)
        | (Step::Serve, Serving)
        | (Step::Rollback, RollingBack) => Move::Nothing,

        (Step::Begin, Issuing | Serving) => {
            return Err("a rotation is under way; finish it or roll it back first");
        }
        (Step::Begin | Step::Issue | Step::Serve, RollingBack) => {
            return Err("the rotation is being rolled back; finish that first");
        }
        (Step::Issue | Step::Serve | Step::Finish { .. } | Step::Rollback, Standby) => {
            return Err("no rotation is under way; begin one first");
        }
        (Step::Issue, Serving) => return Err("the next authority issues already"),
        (Step::Serve, Begun) => return Err("let the next authority issue first"),
        (Step::Finish { .. }, Begun | Issuing) => {
            return Err("let the control plane serve with the next authority first");
        }
    })
}

impl Authority {
    /// Where the rotation stands.
    pub(crate) fn position(&self) -> Position {
        let ring = self.ring.load();
        Position {
            phase: ring.phase,
            phase_time: ring.phase_time,
            issuing: pin(&ring.issuing().certificate),
            other: ring.other().map(pin),
            needed: match ring.phase {
                Phase::Begun => ring.version,
                _ => ring.issue_version,
            },
        }
    }

    /// Whether a step can be taken now; `false` if it was taken already.
    pub(crate) fn can(&self, step: Step) -> Result<bool, StepError> {
        let phase = self.ring.load().phase;
        let follows = follow(phase, step).map_err(StepError::Phase)?;
        Ok(follows != Move::Nothing)
    }

    /// Takes a step: durable once this returns. One at a time; blocks on the disk.
    pub(crate) fn step(&self, step: Step) -> Result<(), StepError> {
        let ring = self.ring.load_full();
        let phase = match follow(ring.phase, step).map_err(StepError::Phase)? {
            Move::Nothing => return Ok(()),
            Move::To(phase) => phase,
        };
        let now = now();
        let version = ring.version + 1;
        let mut next = Ring {
            version,
            phase,
            phase_time: now,
            issue_version: match step {
                Step::Issue | Step::Rollback => version,
                _ => ring.issue_version,
            },
            current: Arc::clone(&ring.current),
            next: ring.next.clone(),
            retired: ring.retired.clone(),
        };
        match (step, &ring.next) {
            (Step::Begin, _) => {
                let made = Keyed::make()?;
                let voucher = ring.current.vouch_for(&made)?;
                next.next = Some((made.into(), voucher));
            }
            (Step::Finish { distrust }, Some((other, voucher))) => {
                let forward = ring.phase == Phase::Serving;
                let (stays, goes) = match forward {
                    true => (other, &ring.current),
                    false => (&ring.current, other),
                };
                let retired = Retired {
                    certificate: goes.certificate.clone(),
                    voucher: forward.then(|| voucher.clone()),
                    recognized: !distrust,
                    until: remembered_until(now),
                };
                next.retired = ring.retiring(retired, now);
                next.current = Arc::clone(stays);
                next.next = None;
            }
            (Step::Rollback, _) if phase == Phase::Standby => next.next = None,
            _ => {}
        }
        next.store(&self.directory)?;
        self.ring.store(Arc::new(next));
        Ok(())
    }

    /// Tells whoever passes the authorities on; to be called once the listener trusts them.
    pub(crate) fn tell(&self) {
        self.version.send_replace(self.version());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use muster_client::identity::generate_key;
    use muster_runtime::tls::{SpiffeKind, signed_by_authority};

    use super::*;

    const FINISH: Step = Step::Finish { distrust: false };

    fn open(directory: &std::path::Path) -> Authority {
        Authority::open(directory, "muster.internal").unwrap()
    }

    /// Each step survives a restart, and what was issued before it is still taken.
    #[test]
    fn a_rotation_goes_on_where_it_stood_and_trusts_both_until_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let first = open(directory).certificate();
        let key = generate_key();
        let mut issued = Vec::new();
        for (step, phase) in [
            (Step::Begin, Phase::Begun),
            (Step::Issue, Phase::Issuing),
            (Step::Serve, Phase::Serving),
        ] {
            open(directory).step(step).unwrap();
            let authority = open(directory);
            assert_eq!(authority.position().phase, phase);
            authority.step(step).unwrap();
            let id = authority.id(SpiffeKind::Host, "h-1");
            let leaf = authority
                .issue_local(&id, &key, Duration::from_secs(60))
                .unwrap();
            issued.push(leaf.chain[0].clone());
            assert!(authority.trusted().contains(&first));
            for leaf in &issued {
                let now = std::time::SystemTime::now();
                let signed = |by| signed_by_authority(leaf, by, now).is_ok();
                assert!(authority.trusted().iter().any(signed));
            }
        }
        open(directory).step(FINISH).unwrap();
        let last = open(directory);
        assert_eq!(last.position().phase, Phase::Standby);
        assert_eq!(last.trusted().len(), 1);
        assert_ne!(last.certificate(), first);
        assert!(last.recognized().contains(&first));
        let kept = std::fs::read_to_string(directory.join("authorities.json")).unwrap();
        assert_eq!(kept.matches("PRIVATE KEY").count(), 2, "of one authority");
        let key = std::fs::read_to_string(directory.join("ca.key")).unwrap();
        assert!(kept.contains(&key.replace('\n', "\\n")));
    }

    #[test]
    fn until_the_finish_there_is_a_way_back() {
        for steps in 1..=3 {
            let directory = tempfile::tempdir().unwrap();
            let authority = open(directory.path());
            let first = authority.certificate();
            for step in [Step::Begin, Step::Issue, Step::Serve].iter().take(steps) {
                authority.step(*step).unwrap();
            }
            let version = authority.version();
            authority.step(Step::Rollback).unwrap();
            assert!(authority.version() > version);
            assert_eq!(authority.certificate(), first);
            assert_eq!(authority.pin(), pin(&first));
            if steps > 1 {
                assert_eq!(authority.trusted().len(), 2, "what was issued still counts");
                authority.step(FINISH).unwrap();
            }
            assert_eq!(authority.trusted(), [first]);
            assert_eq!(authority.position().phase, Phase::Standby);
        }
    }

    #[test]
    fn a_key_that_others_may_know_brings_nobody_back() {
        let directory = tempfile::tempdir().unwrap();
        let authority = open(directory.path());
        let first = authority.certificate();
        for step in [Step::Begin, Step::Issue, Step::Serve] {
            authority.step(step).unwrap();
        }
        authority.step(Step::Finish { distrust: true }).unwrap();
        assert!(!authority.recognized().contains(&first));
    }

    #[test]
    fn no_step_is_skipped() {
        for (phase, step) in [
            (Phase::Standby, Step::Issue),
            (Phase::Standby, FINISH),
            (Phase::Standby, Step::Rollback),
            (Phase::Begun, Step::Serve),
            (Phase::Begun, FINISH),
            (Phase::Issuing, FINISH),
            (Phase::Issuing, Step::Begin),
            (Phase::RollingBack, Step::Serve),
        ] {
            assert!(follow(phase, step).is_err(), "{phase:?} {step:?}");
        }
    }
}
