//! Tests of the decoder: its rules by example, and comparisons with a reference and serde_json.

mod differential;
mod grammar;
mod hostile;
mod messages;
mod random_messages;
mod reference_decoder;
mod rejection_text;
mod support;
mod type_conversion;
