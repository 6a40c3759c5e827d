//! Tests over whole projects: how they load, and the text of each error.

mod declaration_errors;
mod loading;
mod name_errors;
mod parse_errors;

use std::fs;

use crate::catalog::{Catalog, load};
use crate::error::Error;

const CUSTOMER_A: &str = include_str!("../../../schemas/customer_a.sql");
const CUSTOMER_B: &str = include_str!("../../../schemas/customer_b.sql");

/// A valid schema file, which the tests change to an invalid one.
const VALID_SCHEMA: &str = "CREATE STREAM s (
  id BIGINT NOT NULL,
  ts TIMESTAMP,
  WATERMARK FOR ts AS ts
) WITH (topics = 't1');
";

struct Project(tempfile::TempDir);

impl Project {
    fn new(files: &[(&str, &str)]) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            let path = project.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        project
    }

    /// The schema files of the repository with these queries of customer A.
    fn shipped(queries: &[(&str, &str)]) -> Self {
        let mut files = vec![
            ("schemas/customer_a.sql", CUSTOMER_A),
            ("schemas/customer_b.sql", CUSTOMER_B),
            ("data/rooms.csv", "room,seats\nhall,2\n"),
            ("data/office_rooms.csv", "room,seats\nlobby,2\n"),
        ];
        files.extend(queries);
        Self::new(&files)
    }

    fn load(&self) -> Catalog {
        load(self.0.path(), &[]).unwrap_or_else(|errors| panic!("{}", self.render(&errors)))
    }

    fn errors(&self) -> String {
        self.errors_of(&[])
    }

    fn errors_of(&self, only: &[&str]) -> String {
        let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
        self.render(&load(self.0.path(), &only).unwrap_err())
    }

    fn render(&self, errors: &[Error]) -> String {
        let texts: Vec<String> = errors.iter().map(Error::to_string).collect();
        texts.join("\n\n").replace(&format!("{}/", self.0.path().display()), "")
    }
}

/// The errors of a project with one schema file.
fn schema_errors(schema: &str) -> String {
    Project::new(&[("schemas/c.sql", schema)]).errors()
}

/// The errors of query files over [`VALID_SCHEMA`].
fn query_errors(queries: &[(&str, &str)]) -> String {
    let mut files = vec![("schemas/c.sql", VALID_SCHEMA)];
    files.extend(queries);
    Project::new(&files).errors()
}

/// The errors of [`VALID_SCHEMA`] with `from` replaced.
fn schema_errors_with(from: &str, to: &str) -> String {
    assert!(VALID_SCHEMA.contains(from));
    schema_errors(&VALID_SCHEMA.replace(from, to))
}

/// Asserts that there is one error with this message, place and hint (empty: any hint).
#[track_caller]
fn expect_error(errors: &str, message: &str, place: &str, hint: &str) {
    assert!(errors.starts_with(&format!("{message}\n")), "{errors}");
    assert!(errors.contains(&format!("--> {place}\n")), "{errors}");
    assert!(hint.is_empty() || errors.ends_with(&format!("hint: {hint}")), "{errors}");
    assert_eq!(errors.matches("-->").count(), 1, "expected one error, found\n{errors}");
}
