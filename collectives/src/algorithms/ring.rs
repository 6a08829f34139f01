//! The ring: the bandwidth-optimal all-reduce where only neighbours are connected well.
//!
//! It is also the worked example of ARCHITECTURE.md: this file is all that there is to it.

use super::{Algorithm, none, world};
use crate::plan::verify::Claims;
use crate::plan::{Collective, Place};

/// Each part travels once around, collecting contributions, and once more, as the result. A part's
/// sum starts at a different rank for each part, so it is not the canonical order; while under way
/// it is an unfinished sum, in the accumulation type.
///
/// ```text
///   step 0        step 1                 step n-1                step n ...
///   rank r ─ r ─► rank r+1 ─ r ─► ... ─► rank r-1 has part r ──► result of part r, around
/// ```
pub(super) const ALL_REDUCE: Algorithm = Algorithm {
    name: "ring",
    collective: Collective::AllReduce,
    parts: world,
    // One slot for each step that something arrives in: no slot is used twice in a round.
    scratch: |world| 2 * world - 2,
    packets: none,
    claims: Claims::ALL.without_canonical(),
    write: |b| {
        let (me, n) = (b.rank(), b.world());
        let (next, last) = (b.ahead(1), 2 * n - 2);
        if n == 1 {
            b.reduce(0, [b.output(0)], [b.input(0)]);
        }
        for step in 0..if n == 1 { 0 } else { last + 1 } {
            let part = b.behind(step);
            let forward = (step < last).then(|| Place::scratch(next, step));
            if step == 0 {
                b.reduce(part, forward.map(Place::partial), [b.input(0)]);
            } else {
                let arrived = Place::scratch(me, step - 1);
                b.wait(0, [b.behind(1)]);
                if step < n - 1 {
                    let sum = [arrived.partial(), b.input(0)];
                    b.reduce(part, forward.map(Place::partial), sum);
                } else if step == n - 1 {
                    let sum = [arrived.partial(), b.input(0)];
                    b.reduce(part, forward.into_iter().chain([b.output(0)]), sum);
                } else {
                    b.copy(part, forward.into_iter().chain([b.output(0)]), arrived);
                }
            }
            if forward.is_some() {
                b.signal(0, [next]);
            }
        }
    },
};
