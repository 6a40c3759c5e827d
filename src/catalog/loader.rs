//! Reads the files of a project into a [`Catalog`].

use std::path::Path;
use std::sync::Arc;

use crate::catalog::customer::Catalog;
use crate::catalog::customer_builder::CustomerBuilder;
use crate::catalog::project_files::{ProjectFiles, display_path};
use crate::catalog::sql_text::SqlText;
use crate::catalog::{suggestion, topic_overlap};
use crate::error::{Error, Result};

/// Reads `schemas/*.sql` and `queries/*/*.sql` under `root`.
///
/// If `only` is not empty, the catalog and the errors cover these customers only. The topics of the
/// other customers still take part in the check for topics that are read twice.
///
/// # Errors
/// All errors in all of the files.
pub fn load(root: &Path, only: &[String]) -> Result<Catalog, Vec<Error>> {
    let (catalog, errors) = load_with_errors(root, only)?;
    if errors.is_empty() { Ok(catalog) } else { Err(errors) }
}

/// As [`load`], but returns the valid part of the catalog together with the errors, so that the
/// valid queries can be planned and their errors reported too.
///
/// # Errors
/// There is no project at `root`.
pub fn load_with_errors(root: &Path, only: &[String]) -> Result<(Catalog, Vec<Error>), Vec<Error>> {
    let mut errors = Vec::new();
    let files = ProjectFiles::find(root, &mut errors).map_err(|error| vec![error])?;
    let is_selected = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    check_customer_names(&files, only, &is_selected, &mut errors);
    let mut builders: Vec<CustomerBuilder> = (files.schemas.iter())
        .map(|(name, schema)| {
            let queries = files.queries.get(name).map(Vec::as_slice).unwrap_or_default();
            CustomerBuilder::read(name, schema, queries)
        })
        .collect();
    topic_overlap::check(&mut builders, &is_selected);
    let mut customers = Vec::new();
    for mut builder in builders.into_iter().filter(|builder| is_selected(&builder.name)) {
        errors.append(&mut builder.errors);
        customers.push(Arc::new(builder.finish(&mut errors)));
    }
    Ok((Catalog { root: root.to_owned(), customers }, errors))
}

/// Reports requested customers that do not exist, and query folders without a schema file.
fn check_customer_names(
    files: &ProjectFiles,
    only: &[String],
    is_selected: &dyn Fn(&str) -> bool,
    errors: &mut Vec<Error>,
) {
    for wanted in only.iter().filter(|wanted| !files.schemas.contains_key(*wanted)) {
        let known = files.schemas.keys().map(String::as_str);
        let error = Error::config(format!("there is no customer '{wanted}'"));
        errors.push(error.hint(suggestion::suggest_or_list(wanted, "customers", known)));
    }
    for (folder, queries) in &files.queries {
        if let Some(file) = queries.first()
            && !files.schemas.contains_key(folder)
            && is_selected(folder)
        {
            let message = format!("customer '{folder}' has no schema file");
            errors.push(
                SqlText::file_error(&display_path(file), message)
                    .hint(format!("create schemas/{folder}.sql, or rename the folder")),
            );
        }
    }
}
