//! Printing that several commands share.

use crate::Error;

/// Prints each error to standard error, followed by an empty line.
pub fn print_errors(errors: &[Error]) {
    for error in errors {
        eprintln!("error: {error}\n");
    }
}
