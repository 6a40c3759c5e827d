//! Argument parsing and printing: the only place that prints or exits.
#![allow(clippy::print_stdout)]
