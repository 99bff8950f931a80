//! How evenly connections are spread over endpoints: figures that need no kernel.

use serde::Serialize;

/// The connections of each endpoint, wanted and seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    pub wanted: Vec<f64>,
    pub seen: Vec<u32>,
}

impl Spread {
    /// Returns a spread in proportion to shares: the connections that were seen are those wanted.
    pub fn in_proportion(shares: &[u32], seen: Vec<u32>) -> Self {
        let connections: f64 = seen.iter().copied().map(f64::from).sum();
        let all: f64 = shares.iter().copied().map(f64::from).sum();
        let wanted = shares.iter().map(|share| connections * f64::from(*share) / all).collect();
        Self { wanted, seen }
    }

    /// Returns seen divided by wanted, for each endpoint that is to get connections.
    pub fn ratios(&self) -> Vec<f64> {
        self.pairs().map(|(wanted, seen)| seen / wanted).collect()
    }

    /// Returns the greatest ratio of seen to wanted. With equal shares that is the busiest endpoint
    /// divided by the mean.
    pub fn busiest(&self) -> f64 {
        self.ratios().into_iter().fold(0.0, f64::max)
    }

    /// Returns chi-squared per degree of freedom: about 1 if each connection is spread at random,
    /// more if some endpoints are preferred, less if the endpoints take turns. Returns 0 for a
    /// single endpoint.
    pub fn chi_squared(&self) -> f64 {
        let sum: f64 = self.pairs().map(|(wanted, seen)| (seen - wanted).powi(2) / wanted).sum();
        let freedom = self.pairs().count().saturating_sub(1);
        if freedom == 0 { 0.0 } else { sum / freedom as f64 }
    }

    /// Returns the number of connections at endpoints that are to get none.
    pub fn strays(&self) -> u32 {
        let all = self.wanted.iter().zip(&self.seen);
        all.filter(|(wanted, _)| **wanted == 0.0).map(|(_, seen)| *seen).sum()
    }

    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> {
        let all = self.wanted.iter().zip(&self.seen);
        all.filter(|(wanted, _)| **wanted > 0.0).map(|(wanted, seen)| (*wanted, f64::from(*seen)))
    }
}

/// Returns the connections that the busiest endpoint has above its share: the greatest difference
/// of `seen` and the share of all connections in proportion to `shares`.
pub fn above_share(shares: &[u32], seen: &[u32]) -> f64 {
    let spread = Spread::in_proportion(shares, seen.to_vec());
    spread.pairs().map(|(wanted, seen)| seen - wanted).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_spread_has_no_deviation() {
        let spread = Spread::in_proportion(&[1, 2, 3], vec![10, 20, 30]);
        assert_eq!(spread.wanted, [10.0, 20.0, 30.0]);
        assert_eq!((spread.busiest(), spread.chi_squared(), spread.strays()), (1.0, 0.0, 0));
    }

    #[test]
    fn deviations_are_measured_against_the_share() {
        // (12 - 10)² / 10 + (8 - 10)² / 10, with one degree of freedom.
        let spread = Spread::in_proportion(&[1, 1], vec![12, 8]);
        assert!((spread.chi_squared() - 0.8).abs() < 1e-9);
        assert_eq!(spread.busiest(), 1.2);
        // The wanted ones are 5 and 15: the endpoint with the smaller share is the busier one.
        assert_eq!(Spread::in_proportion(&[1, 3], vec![10, 10]).busiest(), 2.0);
        assert_eq!(above_share(&[1, 3], &[10, 10]), 5.0);
    }

    #[test]
    fn an_endpoint_without_a_share_is_not_compared() {
        let spread = Spread::in_proportion(&[1, 0], vec![9, 1]);
        assert_eq!((spread.ratios(), spread.chi_squared(), spread.strays()), (vec![0.9], 0.0, 1));
    }
}
