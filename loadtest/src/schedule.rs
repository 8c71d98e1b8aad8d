//! Which message is next, and when it is due.
//!
//! In a closed loop a message is due when a session is free. In an open loop messages arrive by a Poisson process,
//! whatever the server does: the gaps are exponential and follow from the seed alone.

use std::time::Duration;

use crate::random::Random;

/// Told apart from the sequences that draw recipients and sizes.
const ARRIVALS: u64 = 0x6172_7269_7661_6c73;

/// One message to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Job {
    /// Its place in the load; what it is like follows from it and the seed.
    pub(crate) number: u64,
    /// When it is due, since the load began; nothing in a closed loop.
    pub(crate) due: Option<Duration>,
}

/// The messages nobody works on yet.
#[derive(Debug)]
pub(crate) struct Schedule {
    next: u64,
    messages: u64,
    arrivals: Option<Arrivals>,
    returned: Vec<Job>,
}

impl Schedule {
    /// `messages` of them, arriving at `rate` per second in the mean, or as fast as they are taken.
    pub(crate) fn new(messages: u64, rate: Option<f64>, seed: u64) -> Schedule {
        Schedule {
            next: 0,
            messages,
            arrivals: rate.map(|rate| Arrivals {
                random: Random::new(seed ^ ARRIVALS),
                rate,
                at: 0.0,
            }),
            returned: Vec::new(),
        }
    }

    /// The next one in order of arrival.
    pub(crate) fn take(&mut self) -> Option<Job> {
        if let Some(job) = self.returned.pop() {
            return Some(job);
        }
        if self.next >= self.messages {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let due = self.arrivals.as_mut().map(Arrivals::next);
        Some(Job { number, due })
    }

    /// Gives one back that its session could not send.
    pub(crate) fn give_back(&mut self, job: Job) {
        self.returned.push(job);
    }
}

#[derive(Debug)]
struct Arrivals {
    random: Random,
    rate: f64,
    at: f64,
}

impl Arrivals {
    fn next(&mut self) -> Duration {
        // 1 - [0, 1) is never 0
        self.at += -(1.0 - self.random.unit()).ln() / self.rate;
        Duration::try_from_secs_f64(self.at).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(rate: f64, seed: u64) -> Vec<f64> {
        let mut schedule = Schedule::new(20_000, Some(rate), seed);
        std::iter::from_fn(|| schedule.take())
            .map(|job| job.due.unwrap().as_secs_f64())
            .collect()
    }

    #[test]
    fn arrivals_are_poisson_and_follow_from_the_seed() {
        let times = due(1000.0, 7);
        assert_eq!(times, due(1000.0, 7));
        assert_ne!(times, due(1000.0, 8));
        let gaps: Vec<f64> = std::iter::once(&0.0)
            .chain(&times)
            .zip(&times)
            .map(|(a, b)| b - a)
            .collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation =
            (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // of an exponential distribution both are 1/rate
        assert!((mean - 0.001).abs() < 0.00003, "{mean}");
        assert!((deviation - 0.001).abs() < 0.00005, "{deviation}");
        let long = gaps.iter().filter(|gap| **gap > 0.002).count() as f64 / gaps.len() as f64;
        assert!((long - (-2.0f64).exp()).abs() < 0.01, "{long}");
    }

    #[test]
    fn every_message_is_given_out_once_and_again_when_it_came_back() {
        let mut schedule = Schedule::new(3, None, 0);
        let first = schedule.take().unwrap();
        assert_eq!(
            first,
            Job {
                number: 0,
                due: None
            }
        );
        schedule.give_back(first);
        let numbers: Vec<u64> = std::iter::from_fn(|| schedule.take())
            .map(|job| job.number)
            .collect();
        assert_eq!(numbers, [0, 1, 2]);
    }
}
