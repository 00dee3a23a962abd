//! The memory of DataFusion's operators, counted in the job's budget.

use std::fmt;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool, MemoryReservation};
use perennial_core::memory::MemoryBudget;

/// The budget as DataFusion's operators see it. A partial aggregation that gets no more gives its groups on early; others fail the batch.
#[derive(Debug)]
pub(crate) struct BudgetPool(pub(crate) Arc<MemoryBudget>);

impl fmt::Display for BudgetPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl MemoryPool for BudgetPool {
    fn name(&self) -> &str {
        "job"
    }

    fn grow(&self, _: &MemoryReservation, additional: usize) {
        self.0.grow(additional as u64);
    }

    fn shrink(&self, _: &MemoryReservation, shrink: usize) {
        self.0.shrink(shrink as u64);
    }

    fn try_grow(&self, _: &MemoryReservation, additional: usize) -> Result<()> {
        self.0.try_grow(additional as u64).map_err(|error| DataFusionError::ResourcesExhausted(error.to_string()))
    }

    fn reserved(&self) -> usize {
        usize::try_from(self.0.used()).unwrap_or(usize::MAX)
    }

    fn memory_limit(&self) -> MemoryLimit {
        match self.0.limit() {
            Some(limit) => MemoryLimit::Finite(usize::try_from(limit).unwrap_or(usize::MAX)),
            None => MemoryLimit::Infinite,
        }
    }
}
