//! Whether a run counts. The relay never changes, so where it takes much more or much less of a spawn than it does on a
//! quiet machine, something else was measured.

use std::{fmt, ops::RangeInclusive};

use crate::{
    commands::{True, yardsticks},
    field::Field,
    rounds::{Contest, Plan},
};

/// Times of the relay that are plausible, in spawns.
const PLAUSIBLE: RangeInclusive<f64> = 1.4..=2.4;

/// Samples of each, where the figures themselves hold none.
const SAMPLES: usize = 200;

/// The run is void: no figure of it means anything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Void(f64);

impl fmt::Display for Void {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "THIS RUN IS VOID: the relay took {:.2} x a spawn, and not {:.1} to {:.1}. Run it again on a quieter machine.",
            self.0,
            PLAUSIBLE.start(),
            PLAUSIBLE.end()
        )
    }
}

impl std::error::Error for Void {}

/// Judges by what was measured.
pub(crate) fn judge(contest: &Contest<True>) -> Result<(), Void> {
    let [(_, spawn), (_, relay)] = contest.yardsticks();
    let ratio = relay.ratio(spawn);
    match PLAUSIBLE.contains(&ratio) {
        true => Ok(()),
        false => Err(Void(ratio)),
    }
}

/// Measures only that, and judges.
pub(crate) async fn of(field: &Field) -> anyhow::Result<Result<(), Void>> {
    let mut contest = yardsticks(field);
    contest.run(Plan::of(SAMPLES, 20)).await?;
    Ok(judge(&contest))
}
