//! Files in a directory.
