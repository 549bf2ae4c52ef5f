//! Shares by weighted rendezvous hashing: every side gives every visitor a number, the largest wins.
//!
//! A side's number is its weight over an exponentially distributed one, which makes its share of the visitors its share
//! of the weights (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006). It depends on nothing
//! but the visitor, the side and its weight. So more weight moves visitors only towards a side, less only away from it,
//! and one that is down takes nobody else's along.
//!
//! The hash must be the same in every version and on every machine: the first 64 bits of SHA-256 for visitor and side,
//! put together by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014).

use sha2::{Digest, Sha256};

/// 64 bits of what is to be told apart: a visitor, a side.
pub(super) fn hash(what: &[u8]) -> u64 {
    let digest = Sha256::digest(what);
    let begin = digest.iter().take(8);
    begin.fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

/// The winner among sides, given by their place, hash and weight; without weight nobody wins.
pub(super) fn winner(
    visitor: u64,
    sides: impl Iterator<Item = (usize, u64, u32)>,
) -> Option<usize> {
    let numbers = sides
        .filter(|(_, _, weight)| *weight > 0)
        .map(|(at, side, weight)| (at, number(visitor, side, weight)));
    let best = numbers.reduce(|best, next| if next.1 > best.1 { next } else { best });
    best.map(|(at, _)| at)
}

#[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
fn number(visitor: u64, side: u64, weight: u32) -> f64 {
    // between 0 and 1, neither of them
    let uniform = ((finalise(visitor ^ side) >> 12) as f64 + 0.5) / (1_u64 << 52) as f64;
    f64::from(weight) / -uniform.ln()
}

fn finalise(mut bits: u64) -> u64 {
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 4] = ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"];

    fn sides(weights: &[u32]) -> impl Iterator<Item = (usize, u64, u32)> {
        let sides = NAMES.iter().zip(weights).enumerate();
        sides.map(|(at, (name, weight))| (at, hash(name.as_bytes()), *weight))
    }

    fn shares(weights: &[u32], visitors: u64, salt: u64) -> Vec<u64> {
        let mut shares = vec![0; weights.len()];
        for visitor in 0..visitors {
            let key = hash(format!("{salt}-{visitor}").as_bytes());
            shares[winner(key, sides(weights)).unwrap()] += 1;
        }
        shares
    }

    /// Whoever changes one of these sends visitors of running experiments to other sides.
    #[test]
    fn hashes_and_winners_stay_what_they_are() {
        assert_eq!(hash(b"192.0.2.1"), 0x37fc_ff24_bf62_035b);
        assert_eq!(hash(b"aaaaaaaa"), 0x1f3c_e404_15a2_081f);
        assert_eq!(finalise(1), 0x5692_161d_100b_05e5);
        let winners = (0..32).map(|visitor| {
            let key = hash(format!("visitor {visitor}").as_bytes());
            let winner = winner(key, sides(&[50, 30, 20])).unwrap();
            char::from(b'0' + u8::try_from(winner).unwrap())
        });
        assert_eq!(
            winners.collect::<String>(),
            "20120000201001011111210110100001"
        );
    }

    #[test]
    fn without_weight_nobody_wins() {
        assert_eq!(winner(7, sides(&[0, 0])), None);
        assert_eq!(winner(7, sides(&[])), None);
        assert_eq!(winner(7, sides(&[0, 1])), Some(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Five standard deviations: one failure in some hundred thousand runs would be chance, were they drawn anew.
        #[test]
        fn shares_are_those_of_the_weights(
            weights in proptest::collection::vec(0_u32..1_000, 1..5), salt: u64,
        ) {
            let sum: u32 = weights.iter().sum();
            prop_assume!(sum > 0);
            let visitors = 4_000;
            for (share, weight) in shares(&weights, visitors, salt).iter().zip(&weights) {
                let wanted = f64::from(*weight) / f64::from(sum);
                let deviation = (wanted * (1.0 - wanted) * visitors as f64).sqrt();
                let off = (*share as f64 - wanted * visitors as f64).abs();
                prop_assert!(off <= 5.0 * deviation + 1.0, "{weights:?}: {share} of {visitors}");
            }
        }

        #[test]
        fn visitors_move_only_towards_a_side_that_gets_more(
            weights in proptest::collection::vec(0_u32..1_000, 2..5),
            side in 0_usize..4, more in 1_u32..1_000, salt: u64,
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let side = side % weights.len();
            let mut after = weights.clone();
            after[side] += more;
            for visitor in 0..500_u64 {
                let key = hash(format!("{salt}-{visitor}").as_bytes());
                let (old, new) = (winner(key, sides(&weights)), winner(key, sides(&after)));
                prop_assert!(new == old || new == Some(side), "{weights:?} {after:?}");
            }
        }

        #[test]
        fn a_side_that_goes_takes_only_its_own_visitors_along(salt: u64, side in 0_usize..4) {
            let weights = [40, 30, 20, 10];
            for visitor in 0..500_u64 {
                let key = hash(format!("{salt}-{visitor}").as_bytes());
                let old = winner(key, sides(&weights)).unwrap();
                let new = winner(key, sides(&weights).filter(|(at, _, _)| *at != side)).unwrap();
                prop_assert!(new == old || old == side);
            }
        }
    }
}
