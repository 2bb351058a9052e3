//! How the learning rate goes over a run: a factor from 0 to 1 for each step.
//! Reference: big_vision/utils.py, `create_learning_rate_schedule`.

use crate::{Error, Result};

/// The shape of the decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decay {
    /// 1.
    Constant,
    /// From 1 to 0 in a straight line.
    Linear,
    /// From 1 to 0 along half a cosine.
    Cosine,
    /// 1 / √(1 + t / timescale), which never ends: what follows may go on from anywhere.
    Rsqrt {
        /// Steps.
        timescale: f64,
    },
}

/// A decay with its warm-up and its cooldown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The decay, counted from the end of the warm-up.
    pub decay: Decay,
    /// Steps of the whole run.
    pub total: u64,
    /// Steps over which the factor grows from 0 in a straight line; it multiplies the decay.
    pub warmup: u64,
    /// Steps at the end over which the factor shrinks to 0 in a straight line; it multiplies the decay.
    pub cooldown: u64,
}

impl Schedule {
    /// Refuses what has no room.
    ///
    /// # Errors
    /// [`crate::Kind::Usage`]: warm-up and cooldown longer than the run, a timescale that is not above 0.
    pub fn check(&self) -> Result<()> {
        if self.warmup.saturating_add(self.cooldown) > self.total {
            return Err(Error::usage(format!(
                "a warm-up of {} steps and a cooldown of {} are longer than the run",
                self.warmup, self.cooldown
            ))
            .expected(format!("at most {} steps together", self.total)));
        }
        match self.decay {
            Decay::Rsqrt { timescale } if !(timescale > 0.0 && timescale.is_finite()) => {
                Err(Error::usage(format!("timescale is {timescale}")).expected("a number of steps above 0"))
            }
            _ => Ok(()),
        }
    }

    /// The factor of step `step`, the first being 0.
    pub fn at(&self, step: u64) -> f64 {
        let (step, total, warmup) = (step as f64, self.total as f64, self.warmup as f64);
        let progress = match total > warmup {
            true => ((step - warmup) / (total - warmup)).clamp(0.0, 1.0),
            false => 1.0,
        };
        let mut factor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Decay::Rsqrt { timescale } => (1.0 + (step - warmup).max(0.0) / timescale).powf(-0.5),
        };
        if self.warmup > 0 {
            factor *= (step / warmup).min(1.0);
        }
        if self.cooldown > 0 {
            factor *= ((total - step) / self.cooldown as f64).clamp(0.0, 1.0);
        }
        factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_at_chosen_steps() {
        let check = |decay: Decay, warmup: u64, cooldown: u64, want: &[(u64, f64)]| {
            let schedule = Schedule { decay, total: 100, warmup, cooldown };
            schedule.check().unwrap();
            for &(step, factor) in want {
                let got = schedule.at(step);
                assert!((got - factor).abs() < 1e-12, "{schedule:?} {step}: {got} {factor}");
            }
        };
        check(Decay::Constant, 0, 0, &[(0, 1.0), (99, 1.0), (1000, 1.0)]);
        check(Decay::Constant, 10, 20, &[(0, 0.0), (5, 0.5), (10, 1.0), (80, 1.0), (90, 0.5), (100, 0.0)]);
        check(Decay::Linear, 20, 0, &[(0, 0.0), (10, 0.5), (20, 1.0), (60, 0.5), (100, 0.0), (200, 0.0)]);
        check(Decay::Cosine, 0, 0, &[(0, 1.0), (50, 0.5), (25, 0.5 + 0.125f64.sqrt()), (100, 0.0)]);
        let rsqrt = Decay::Rsqrt { timescale: 10.0 };
        check(rsqrt, 10, 10, &[(5, 0.5), (10, 1.0), (40, 0.5), (95, 0.5 * 9.5f64.powf(-0.5))]);
        // All of it is warm-up.
        check(Decay::Cosine, 100, 0, &[(50, 0.0)]);
    }

    #[test]
    fn what_has_no_room_is_refused() {
        let of = |decay, warmup, cooldown| Schedule { decay, total: 10, warmup, cooldown }.check();
        assert!(of(Decay::Cosine, 5, 5).is_ok());
        assert!(of(Decay::Cosine, 5, 6).is_err() && of(Decay::Cosine, u64::MAX, 1).is_err());
        assert!(of(Decay::Rsqrt { timescale: 0.0 }, 0, 0).is_err());
        assert!(of(Decay::Rsqrt { timescale: f64::NAN }, 0, 0).is_err());
    }
}
