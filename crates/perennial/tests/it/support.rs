//! What the tests of the program share.

/// The program under test.
pub const PERENNIAL: &str = env!("CARGO_BIN_EXE_perennial");

/// The address of a real server, as `scripts/services env` prints it.
pub fn server(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run `make test`, or `eval \"$(scripts/services env)\"`"))
}
