//! From a thread that reads to a stream of blocks.

use futures::StreamExt;
use perennial_core::error::{Error, Result};
use perennial_core::records::Input;
use perennial_core::source::InputStream;
use tokio::sync::mpsc;

/// How many blocks a reader may be ahead of the one that is being worked on.
const READ_AHEAD: usize = 2;

/// Where a reader puts its blocks.
pub(crate) struct Output(mpsc::Sender<Input>);

impl Output {
    /// Waits until there is room. `false`: nobody listens any more, and the reader may go home.
    #[must_use]
    pub(crate) fn send(&self, input: Input) -> bool {
        self.0.blocking_send(input).is_ok()
    }

    /// Whether nobody listens any more.
    #[cfg(feature = "kafka")]
    pub(crate) fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// Runs `work` on a thread of its own, ahead of who reads the stream. The stream ends when `work` has returned; its error, or its
/// panic, is the last item, so that a reader that dies is never taken for the end of the data.
pub(crate) fn read_ahead(work: impl FnOnce(&Output) -> Result<()> + Send + 'static) -> InputStream {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let reader = tokio::task::spawn_blocking(move || work(&Output(sender)));
    futures::stream::unfold((receiver, Some(reader)), |(mut receiver, mut reader)| async move {
        if let Some(input) = receiver.recv().await {
            return Some((Ok(input), (receiver, reader)));
        }
        match reader.take()?.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((Err(error), (receiver, None))),
            Err(panic) => Some((Err(Error::bug(format!("a reader broke down: {panic}"))), (receiver, None))),
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use arrow::datatypes::Schema;
    use futures::TryStreamExt;
    use perennial_core::error::class;
    use perennial_core::records::Position;

    use super::*;

    fn input(offset: u64) -> Input {
        let rows = RecordBatch::new_empty(Arc::new(Schema::empty()));
        Input::Rows(rows, Position::File { path: "x".into(), offset })
    }

    #[tokio::test]
    async fn blocks_come_in_order_and_then_the_error() {
        let mut stream = read_ahead(|output| {
            assert!((0..10).all(|i| output.send(input(i))));
            Err(Error::new(class::TIMEOUT, "late"))
        });
        for expected in 0..10 {
            let Input::Rows(_, Position::File { offset, .. }) = stream.try_next().await.unwrap().unwrap() else {
                panic!()
            };
            assert_eq!(offset, expected);
        }
        assert_eq!(stream.try_next().await.unwrap_err().class(), class::TIMEOUT);
        assert!(stream.try_next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_panic_is_not_the_end_of_the_data() {
        let stream = read_ahead(|_| panic!("on purpose"));
        let error = stream.try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.class(), class::INTERNAL);
    }

    #[tokio::test]
    async fn a_reader_ends_when_nobody_listens() {
        let (ended, wait) = tokio::sync::oneshot::channel();
        let stream = read_ahead(move |output| {
            while output.send(input(0)) {}
            assert!(output.is_abandoned());
            ended.send(()).ok();
            Ok(())
        });
        drop(stream);
        wait.await.unwrap();
    }
}
