//! Where a path or URL becomes an object store.
