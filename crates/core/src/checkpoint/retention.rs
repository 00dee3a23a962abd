//! Which batches may go: a pure decision.

use crate::sink::BatchId;

/// The oldest batch that stays, if it is time to remove those before it. `kept` are the batches whose logs are there, ascending, and `next` is
/// the next batch. It is done in chunks: a batch should not pay for the removal of another one.
///
/// What recovery needs always stays: the last batch, and the one before it, from which it runs again.
pub fn oldest_to_keep(kept: &[BatchId], next: BatchId, to_retain: u64) -> Option<BatchId> {
    let to_retain = to_retain.max(2);
    let chunk = (to_retain / 10).max(1);
    (kept.len() as u64 > to_retain + chunk).then(|| next.saturating_sub(to_retain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_stays_and_no_more_than_that() {
        for to_retain in 0..35 {
            for first in [0, 7] {
                let mut kept = Vec::new();
                for batch in first..first + 120 {
                    kept.push(batch);
                    if let Some(oldest) = oldest_to_keep(&kept, batch + 1, to_retain) {
                        kept.retain(|kept| *kept >= oldest);
                        assert_eq!(kept.len() as u64, to_retain.max(2), "what was asked for stays");
                    }
                    assert!(kept.ends_with(&[batch]), "the last batch stays");
                    assert!(batch == first || kept.contains(&(batch - 1)), "and the one that it runs again from");
                    let most = to_retain.max(2) + (to_retain / 10).max(1);
                    assert!(kept.len() as u64 <= most, "{to_retain}: {} batches stay", kept.len());
                }
            }
        }
    }
}
