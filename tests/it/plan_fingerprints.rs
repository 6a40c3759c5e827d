//! The fingerprints and the stored texts of plans stay byte for byte what earlier versions wrote: a
//! deployed pipeline compares them with those in its log and in its snapshots.
//!
//! `tests/fixtures/plans` holds what version 0.1.0 of this program wrote for the repository's own
//! customers (`customers.txt`) and for a project with a query of every shape (`shapes.txt`).

use std::fmt::Write;
use std::path::Path;

use millstream::catalog;
use millstream::pipeline::{self, Engine};
use tokio::runtime::Runtime;

#[test]
fn plans_of_the_customers_keep_their_fingerprints_and_texts() {
    assert_plans(env!("CARGO_MANIFEST_DIR"), "customers.txt");
}

#[test]
fn plans_of_every_shape_keep_their_fingerprints_and_texts() {
    assert_plans(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/plans"), "shapes.txt");
}

/// Plans every query and stream of a project and compares the result with a fixture, line by line.
fn assert_plans(project: &str, fixture: &str) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/plans");
    let expected = std::fs::read_to_string(fixtures.join(fixture)).unwrap();
    let found = plans(Path::new(project));
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {fixture}", number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{fixture}");
}

/// One line with name and fingerprint for each plan, then its stored text, indented.
fn plans(project: &Path) -> String {
    let catalog = catalog::load(project, &[]).unwrap();
    let runtime = Runtime::new().unwrap();
    let mut text = String::new();
    for customer in &catalog.customers {
        let planned = runtime.block_on(pipeline::plan(&catalog.root, customer)).unwrap();
        let engine = Engine::new(customer.clone(), planned, true, 1).unwrap();
        for (name, fingerprint) in engine.fingerprints() {
            writeln!(text, "{}/{name} {fingerprint}", customer.name).unwrap();
            for line in engine.plan_text(&name).lines() {
                writeln!(text, "    {line}").unwrap();
            }
        }
    }
    text
}
