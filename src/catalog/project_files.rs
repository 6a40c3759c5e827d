//! The files of a project: `schemas/<customer>.sql` and `queries/<customer>/*.sql`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::catalog::sql_text::SqlText;
use crate::error::{Error, Kind, Result};

/// The files of a project, by customer; every list is sorted.
#[derive(Debug, Default)]
pub(super) struct ProjectFiles {
    pub schemas: BTreeMap<String, PathBuf>,
    pub queries: BTreeMap<String, Vec<PathBuf>>,
}

impl ProjectFiles {
    /// Lists the files under `root`. Hidden files and files without the extension `.sql` are
    /// ignored; a misplaced query file is added to `errors`.
    ///
    /// # Errors
    /// A folder cannot be listed, or there is no schema file.
    pub fn find(root: &Path, errors: &mut Vec<Error>) -> Result<Self> {
        let schemas = root.join("schemas");
        if !schemas.is_dir() {
            let message = format!("there is no folder '{}'", display_path(&schemas).display());
            return Err(Error::config(message)
                .hint("pass the project folder with --project, or create schemas/<customer>.sql"));
        }
        let mut files = Self::default();
        for path in list_folder(&schemas)?.into_iter().filter(|path| is_sql(path)) {
            files.schemas.insert(file_stem(&path), path);
        }
        if files.schemas.is_empty() {
            let message =
                format!("there is no .sql file in '{}'", display_path(&schemas).display());
            return Err(Error::config(message)
                .hint("define each customer in a file schemas/<customer>.sql"));
        }
        let queries = root.join("queries");
        for path in if queries.is_dir() { list_folder(&queries)? } else { Vec::new() } {
            if path.is_dir() {
                files.add_query_folder(&path, errors)?;
            } else if is_sql(&path) {
                let message = "this query file is not in a customer's folder";
                errors.push(
                    SqlText::file_error(&display_path(&path), message)
                        .hint("move it to queries/<customer>/"),
                );
            }
        }
        Ok(files)
    }

    fn add_query_folder(&mut self, folder: &Path, errors: &mut Vec<Error>) -> Result<()> {
        let mut files = Vec::new();
        for path in list_folder(folder)? {
            if path.is_dir() {
                let message = "subfolders of a customer's folder are not read";
                errors.push(
                    SqlText::file_error(&display_path(&path), message)
                        .hint("move the files one level up"),
                );
            } else if is_sql(&path) {
                files.push(path);
            }
        }
        self.queries.insert(file_stem(folder), files);
        Ok(())
    }
}

/// The path as errors display it: without a leading `./`.
pub(super) fn display_path(path: &Path) -> PathBuf {
    path.strip_prefix(".").unwrap_or(path).to_owned()
}

/// Reads the text of a file, without its byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|cause| {
        let message = format!("cannot read '{}'", display_path(path).display());
        Error::new(Kind::Storage, message).because(cause)
    })?;
    Ok(strip_byte_order_mark(&text).to_owned())
}

/// `text` without the byte order mark that some editors write at the start of a file.
pub(crate) fn strip_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// The paths in a folder, sorted, without hidden ones.
fn list_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |cause: std::io::Error| {
        let message = format!("cannot list '{}'", display_path(folder).display());
        Error::new(Kind::Storage, message).because(cause)
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

/// The name of a file without its extension.
pub(super) fn file_stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
