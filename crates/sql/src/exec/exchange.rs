//! Spreads the rows of a plan over the partitions of a state, by key.

use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::RecordBatch;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use super::merge::split;

/// The rows of a batch, spread.
#[derive(Debug)]
struct Exchanged {
    /// Per partition of the state the rows for it, input partition by input partition.
    rows: Vec<Mutex<Vec<RecordBatch>>>,
    /// The memory that they take, counted until the batch ends.
    _memory: Vec<MemoryReservation>,
}

/// The exchange of one batch. It runs when the first partition asks for its rows; an error belongs to all partitions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exchange {
    exchanged: Arc<OnceCell<Result<Exchanged, Arc<DataFusionError>>>>,
}

impl Exchange {
    /// The rows of `input` whose keys (columns at `keys`) belong to `partition` of `partitions`; they can be taken once.
    pub(crate) async fn take(
        &self,
        input: &Arc<dyn ExecutionPlan>,
        keys: &[usize],
        (partition, partitions): (usize, usize),
        context: &Arc<TaskContext>,
    ) -> Result<Vec<RecordBatch>> {
        let exchange = || async { exchange(input, keys, partitions, context).await.map_err(Arc::new) };
        match self.exchanged.get_or_init(exchange).await {
            Ok(exchanged) => {
                Ok(std::mem::take(&mut *exchanged.rows[partition].lock().unwrap_or_else(PoisonError::into_inner)))
            }
            Err(error) => Err(DataFusionError::Shared(error.clone())),
        }
    }
}

/// Runs a plan, each partition on its own task, and spreads what it gives by key. The order of the result does not depend on which task
/// was faster: floating-point sums come out the same when the batch is run again.
async fn exchange(
    input: &Arc<dyn ExecutionPlan>,
    keys: &[usize],
    partitions: usize,
    context: &Arc<TaskContext>,
) -> Result<Exchanged> {
    let inputs = super::partitions(input);
    let mut tasks = JoinSet::new();
    for number in 0..inputs {
        let (input, context, keys) = (input.clone(), context.clone(), keys.to_vec());
        tasks.spawn(async move {
            let memory = MemoryConsumer::new("rows to merge").register(context.memory_pool());
            let mut parts: Vec<(usize, RecordBatch)> = Vec::new();
            let mut rows = input.execute(number, context)?;
            while let Some(rows) = rows.next().await {
                let rows = rows?;
                memory.try_grow(rows.get_array_memory_size())?;
                parts.extend(split(&rows, &keys, partitions)?);
            }
            Ok::<_, DataFusionError>((number, parts, memory))
        });
    }
    let mut memory = Vec::with_capacity(inputs);
    let mut by_input: Vec<Vec<(usize, RecordBatch)>> = vec![Vec::new(); inputs];
    while let Some(done) = tasks.join_next().await {
        let (number, parts, reserved) = done.map_err(|error| DataFusionError::ExecutionJoin(Box::new(error)))??;
        by_input[number] = parts;
        memory.push(reserved);
    }
    let mut exchanged: Vec<Vec<RecordBatch>> = vec![Vec::new(); partitions];
    for (partition, rows) in by_input.into_iter().flatten() {
        exchanged[partition].push(rows);
    }
    Ok(Exchanged { rows: exchanged.into_iter().map(Mutex::new).collect(), _memory: memory })
}
