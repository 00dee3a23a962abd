//! `now()` and its like: the timestamp of the batch, as the offset log has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};

/// The clock of one planned query, set at the start of each of its batches. Milliseconds since the epoch.
#[derive(Debug, Default)]
pub(crate) struct BatchClock(AtomicI64);

impl BatchClock {
    pub(crate) fn set(&self, timestamp_ms: i64) {
        self.0.store(timestamp_ms, Ordering::Release);
    }

    fn micros(&self) -> i64 {
        self.0.load(Ordering::Acquire).saturating_mul(1_000)
    }
}

/// Names of the functions of the clock: volatile for the optimiser, so that they are not folded into constants when the query is
/// planned, but the same whenever a batch is run again.
pub(crate) const CLOCK_FUNCTIONS: &[&str] = &["now", "current_date"];

/// A function of the batch clock.
#[derive(Debug)]
struct Now {
    name: &'static str,
    aliases: Vec<String>,
    returns: DataType,
    zone: Arc<str>,
    clock: Arc<BatchClock>,
    signature: Signature,
}

/// `now()` and `current_date()` with their other names, reading `clock`.
pub(crate) fn functions(clock: &Arc<BatchClock>, zone: &Arc<str>) -> Vec<ScalarUDF> {
    let function = |name, aliases: &[&str], returns| {
        ScalarUDF::from(Now {
            name,
            aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
            returns,
            zone: zone.clone(),
            clock: clock.clone(),
            signature: Signature::one_of(vec![TypeSignature::Nullary], Volatility::Volatile),
        })
    };
    vec![
        function("now", &["current_timestamp"], DataType::Timestamp(TimeUnit::Microsecond, Some(zone.clone()))),
        function("current_date", &["curdate", "today"], DataType::Date32),
    ]
}

impl PartialEq for Now {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.returns == other.returns && Arc::ptr_eq(&self.clock, &other.clock)
    }
}

impl Eq for Now {}

impl std::hash::Hash for Now {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for Now {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let now = ScalarValue::TimestampMicrosecond(Some(self.clock.micros()), Some(self.zone.clone()));
        // The cast to a date gives the day in the session's zone.
        Ok(ColumnarValue::Scalar(now.cast_to(&self.returns)?))
    }
}
