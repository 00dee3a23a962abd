//! What people tell a running job to do.

use std::collections::BTreeSet;

use tokio::sync::watch;

/// Which queries are paused. Told from outside (HTTP) and by the supervisor itself, where an error asks for a person.
#[derive(Debug)]
pub struct Controls {
    paused: watch::Sender<BTreeSet<String>>,
}

impl Default for Controls {
    fn default() -> Self {
        Self { paused: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Controls {
    /// The query finishes its batch and begins no other.
    pub fn pause(&self, query: &str) {
        self.paused.send_if_modified(|paused| paused.insert(query.to_owned()));
    }

    /// The query goes on. Whether it was paused.
    pub fn resume(&self, query: &str) -> bool {
        self.paused.send_if_modified(|paused| paused.remove(query))
    }

    /// Whether the query is paused.
    pub fn is_paused(&self, query: &str) -> bool {
        self.paused.borrow().contains(query)
    }

    /// Waits until the query is not paused.
    pub async fn resumed(&self, query: &str) {
        // The sender lives as long as this does.
        let _ = self.paused.subscribe().wait_for(|paused| !paused.contains(query)).await;
    }
}
