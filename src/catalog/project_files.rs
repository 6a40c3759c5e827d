//! Which files make a project: `schemas/<customer>.sql` and `queries/<customer>/*.sql`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::catalog::file_error;
use crate::error::{Error, Kind, Result};

/// The files of a project, by customer; every list is sorted.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub schemas: BTreeMap<String, PathBuf>,
    pub queries: BTreeMap<String, Vec<PathBuf>>,
}

impl Layout {
    /// Lists the files under `root`. Hidden ones and those of other kinds are left alone.
    pub fn find(root: &Path, errors: &mut Vec<Error>) -> Result<Self> {
        let schemas = root.join("schemas");
        if !schemas.is_dir() {
            return Err((Error::config(format!(
                "there is no folder '{}'",
                shown(&schemas).display()
            )))
            .hint("give the project's folder with --project, or make schemas/<customer>.sql"));
        }
        let mut layout = Self::default();
        for path in entries(&schemas)?.into_iter().filter(|path| is_sql(path)) {
            layout.schemas.insert(stem(&path), path);
        }
        if layout.schemas.is_empty() {
            return Err((Error::config(format!(
                "there is no .sql file in '{}'",
                shown(&schemas).display()
            )))
            .hint("a customer is a file schemas/<customer>.sql"));
        }
        let queries = root.join("queries");
        for path in if queries.is_dir() { entries(&queries)? } else { Vec::new() } {
            if path.is_dir() {
                layout.add_folder(&path, errors)?;
            } else if is_sql(&path) {
                errors.push(
                    file_error(&shown(&path), "a query file outside any customer")
                        .hint("move it to queries/<customer>/"),
                );
            }
        }
        Ok(layout)
    }

    fn add_folder(&mut self, folder: &Path, errors: &mut Vec<Error>) -> Result<()> {
        let mut files = Vec::new();
        for path in entries(folder)? {
            if path.is_dir() {
                errors.push(
                    file_error(&shown(&path), "folders inside a customer's folder are not read")
                        .hint("move the files one level up"),
                );
            } else if is_sql(&path) {
                files.push(path);
            }
        }
        self.queries.insert(stem(folder), files);
        Ok(())
    }
}

/// The path as errors show it: without a leading `./`.
pub(super) fn shown(path: &Path) -> PathBuf {
    path.strip_prefix(".").unwrap_or(path).to_owned()
}

/// The text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|cause| {
        Error::new(Kind::Storage, format!("cannot read '{}'", shown(path).display())).because(cause)
    })?;
    Ok(strip_byte_order_mark(&text).to_owned())
}

/// `text` without the byte order mark that some editors put in front of it.
pub(crate) fn strip_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause: std::io::Error| {
        Error::new(Kind::Storage, format!("cannot list '{}'", shown(folder).display()))
            .because(cause)
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_sql(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension == "sql")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
