//! Joins of two streams.

use perennial_core::error::Result;
use perennial_core::layout::SideLayout;

use super::{Operator, Taken};
use crate::state::StateReader;

impl Operator<'_> {
    pub(super) async fn take_buffers(
        &self,
        _reader: &StateReader<'_>,
        _partition: usize,
        _sides: &[SideLayout; 2],
    ) -> Result<Vec<Taken>> {
        Err(self.refuse("its state is not taken over"))
    }
}
