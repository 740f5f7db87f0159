//! The clocks of the processes: each has an origin of its own and runs a little fast or slow, as
//! monotonic clocks of different machines do. Nobody's decisions may depend on what another's says.

use zex_core::Time;

use crate::chance::Chance;
use crate::scenario::START;

/// The most that a clock runs wrong, parts per million. NTP slews by up to 500; twice that.
const MAX_DRIFT_PPM: u64 = 1_000;
/// The latest origin: a few hundred days, microseconds.
const MAX_ORIGIN_US: u64 = 40_000_000_000_000;

/// Further ahead nobody plans, microseconds: 35 years.
const FOREVER_US: u64 = 1 << 50;

/// One process's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// What it shows at the start of the world.
    origin: u64,
    /// What it gains, parts per million; negative: what it loses.
    drift_ppm: i64,
}

impl Clock {
    /// Any origin; drift only where a scenario wants it.
    pub(crate) fn draw(chance: &mut Chance, drifts: bool) -> Self {
        let origin = START.0 + chance.between(0, MAX_ORIGIN_US);
        let drift = chance.between(0, 2 * MAX_DRIFT_PPM) as i64 - MAX_DRIFT_PPM as i64;
        Self { origin, drift_ppm: if drifts { drift } else { 0 } }
    }

    /// What it shows.
    pub(crate) fn reads(self, now: Time) -> Time {
        let past = now.0.saturating_sub(START.0);
        let gained = past as i64 * self.drift_ppm / 1_000_000;
        Time(self.origin + past.saturating_add_signed(gained))
    }

    /// The first moment at which it shows this.
    pub(crate) fn when(self, shown: Time) -> Time {
        let past = shown.0.saturating_sub(self.origin);
        let past = past.min(FOREVER_US) as i64;
        let lost = past * self.drift_ppm / (1_000_000 + self.drift_ppm);
        let mut at = START.0.saturating_add_signed(past - lost);
        // The divisions round; a step or two finds the exact one.
        while at > START.0 && self.reads(Time(at - 1)) >= shown {
            at -= 1;
        }
        while self.reads(Time(at)) < shown {
            at += 1;
        }
        Time(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_reaches_each_reading_once_and_never_before_its_moment() {
        let mut chance = Chance::new(5);
        for _ in 0..2_000 {
            let clock = Clock::draw(&mut chance, true);
            let now = START.plus_ms(chance.between(0, 4_000_000));
            let shown = Time(clock.reads(now).0 + chance.between(0, 70_000_000));
            let at = clock.when(shown);
            assert!(clock.reads(at) >= shown && clock.reads(Time(at.0 - 1)) < shown, "{clock:?}");
            assert!(at >= now);
        }
    }
}
