//! Session windows.

use perennial_core::error::Result;
use perennial_core::layout::{AggregateLayout, KeyLayout};

use super::{Operator, Taken};
use crate::state::StateReader;

impl Operator<'_> {
    pub(super) async fn take_sessions(
        &self,
        _reader: &StateReader<'_>,
        _partition: usize,
        _keys: &[KeyLayout],
        _aggregates: &[AggregateLayout],
    ) -> Result<Vec<Taken>> {
        Err(self.refuse("its state is not taken over"))
    }
}
