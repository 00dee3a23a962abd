//! What the `kafka` source, the `kafka` sink and the simulator share: properties, requests, topics, and what errors mean.

mod errors;
mod properties;
mod requests;
#[cfg(test)]
pub(crate) mod testing;

pub use errors::classify;
pub(crate) use errors::{Events, config_error};
pub use properties::Properties;
pub(crate) use properties::Scalar;
pub(crate) use requests::{Requests, admin, check_topic_name, missing_topic};
