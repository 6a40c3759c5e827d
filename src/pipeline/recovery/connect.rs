//! Phase 1, connect: plans the queries, connects to Kafka, and opens the snapshot folder.

use std::sync::Arc;

use crate::catalog::{Catalog, Customer};
use crate::pipeline::config::PipelineConfig;
use crate::pipeline::engine::Engine;
use crate::pipeline::engine::reference_tables::ReferenceTables;
use crate::pipeline::planning::plan_with_versions;
use crate::pipeline::snapshot_lifecycle::SnapshotLifecycle;
use crate::pipeline::topics::ensure_topics;
use crate::source::{Cluster, blocking};
use crate::{Error, Result};

/// What a start is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartKind {
    /// The pipeline continues from its log.
    Resume,
    /// State and results are rebuilt from Kafka and history; the log may be lost.
    Rebuild,
}

/// An empty engine and the connections of a customer.
pub struct Connected {
    pub config: PipelineConfig,
    pub kind: StartKind,
    /// Whether the state of the whole customer is dropped.
    pub is_reset: bool,
    pub engine: Engine,
    pub tables: ReferenceTables,
    pub cluster: Arc<Cluster>,
    pub cluster_id: String,
    pub snapshots: SnapshotLifecycle,
}

impl Connected {
    /// The name of the customer.
    pub fn customer(&self) -> &str {
        &self.engine.customer.name
    }
}

/// Plans the queries of a customer, connects to Kafka, checks or creates its topics and lists its
/// snapshots.
///
/// # Errors
/// A query or table is invalid, no broker answers, topics are missing, or the snapshot folder
/// cannot be opened.
pub async fn connect(
    catalog: &Catalog,
    customer: &Arc<Customer>,
    config: &PipelineConfig,
    kind: StartKind,
) -> Result<Connected> {
    let is_reset = config.reset.contains(&customer.name);
    let versions = config.data_dir.join("tables").join(&customer.name);
    let used_versions = (!is_reset).then_some(versions.as_path());
    let plan = plan_with_versions(&catalog.root, customer, used_versions).await;
    let plan = plan.map_err(first_error)?;
    let tables =
        ReferenceTables::new(&catalog.root, versions, customer.tables.clone(), plan.tables.clone());
    let engine = Engine::new(customer.clone(), plan, config.history, config.parallelism)?;
    let (cluster, cluster_id) = connect_cluster(config).await?;
    ensure_topics(&cluster, customer, config).await?;
    let snapshots = SnapshotLifecycle::open(&customer.name, config, cluster.clone()).await?;
    let config = config.clone();
    Ok(Connected { config, kind, is_reset, engine, tables, cluster, cluster_id, snapshots })
}

/// Connects to the cluster and reads its id; the id is empty if the brokers have none.
async fn connect_cluster(config: &PipelineConfig) -> Result<(Arc<Cluster>, String)> {
    let kafka = config.kafka.clone();
    blocking(move || {
        let cluster = Cluster::connect(&kafka)?;
        let id = cluster.cluster_id()?.unwrap_or_default();
        Ok((Arc::new(cluster), id))
    })
    .await
}

/// The first of several planning errors, with the number of the others.
fn first_error(errors: Vec<Error>) -> Error {
    let others = errors.len().saturating_sub(1);
    let mut errors = errors.into_iter();
    let first =
        errors.next().unwrap_or_else(|| Error::internal("planning failed without an error"));
    if others == 0 {
        first
    } else {
        first.detail(format!("and {others} more; `millstream check` shows all"))
    }
}
