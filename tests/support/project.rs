//! A temporary project folder (schemas, queries, data).

use std::path::Path;

use tempfile::TempDir;

/// A project folder for `--project`; it is deleted when it is dropped.
pub struct Project {
    folder: TempDir,
}

impl Project {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("millstream-").tempdir().unwrap();
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file and creates its folders.
    pub fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub fn schema(&self, customer: &str, text: &str) -> &Self {
        self.file(&format!("schemas/{customer}.sql"), text)
    }

    pub fn query(&self, customer: &str, name: &str, text: &str) -> &Self {
        self.file(&format!("queries/{customer}/{name}.sql"), text)
    }

    pub fn remove_query(&self, customer: &str, name: &str) {
        std::fs::remove_file(self.path().join(format!("queries/{customer}/{name}.sql"))).unwrap();
    }
}

/// A unique name, which no other test or run against the same broker uses.
pub fn unique(prefix: &str) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}_{}", &id[..10])
}
