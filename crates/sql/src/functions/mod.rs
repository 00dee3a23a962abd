//! Functions that DataFusion and its Spark package lack or have otherwise.

pub(crate) mod arithmetic;
pub(crate) mod clock;
pub(crate) mod keys;
pub(crate) mod sum;
pub(crate) mod window;
