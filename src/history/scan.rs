//! A snapshot's files as one Parquet scan of DataFusion's, without Delta's own plan above it.
//!
//! Delta's plan looks at every batch for what our tables never have (deletion vectors, mapped
//! columns), and hides the files' counts of rows and dictionaries from the planner. Where a table
//! has such a thing after all, because somebody else changed it, [`Files::of`] says so, and Delta's
//! plan is used.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::config::TableParquetOptions;
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, Statistics, ToDFSchema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::utils::conjunction;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::expressions::Column;
use datafusion::physical_plan::projection::ProjectionExpr;
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use deltalake::table::state::DeltaTableState;
use object_store::ObjectMeta;
use parquet::basic::Encoding;
use parquet::file::metadata::ParquetMetaData;

use super::codes::{CodedReaders, coded_type};
use super::table::DATE;

/// A dictionary up to this size, as stored, is one of few values.
const SMALL_DICTIONARY: i64 = 64 << 10;

/// The texts of a scan that its files store as small dictionaries: places in the table's schema.
/// It goes with the scan's first file.
#[derive(Debug, Clone)]
pub(super) struct FewValues(pub BTreeSet<usize>);

/// The files of a snapshot.
#[derive(Debug)]
pub(super) struct Files {
    /// In the order of the table's log.
    files: Vec<KnownFile>,
    state: DeltaTableState,
    /// The columns of the files.
    schema: SchemaRef,
    /// The columns and the partition column, as filters know them.
    filtered: SchemaRef,
}

#[derive(Debug)]
struct KnownFile {
    meta: ObjectMeta,
    rows: Option<usize>,
}

impl Files {
    /// The files of the table in folder `path`; `None` if they are not all that there is to it.
    pub(super) fn of(path: &Path, state: &DeltaTableState) -> Option<Self> {
        let mapped = state.metadata().configuration().get("delta.columnMapping.mode");
        if mapped.is_some_and(|mode| mode != "none") {
            return None;
        }
        let root = std::fs::canonicalize(path).ok()?;
        let mut files = Vec::new();
        for file in state.log_data().iter() {
            let name = file.path();
            let elsewhere = name.contains("://") || name.starts_with('/');
            if elsewhere || file.deletion_vector_descriptor().is_some() {
                return None;
            }
            let location =
                object_store::path::Path::from_absolute_path(root.join(name.as_ref())).ok()?;
            let meta = ObjectMeta {
                location,
                size: u64::try_from(file.size()).ok()?,
                last_modified: file.modification_datetime().ok()?,
                e_tag: None,
                version: None,
            };
            files.push(KnownFile { meta, rows: file.num_records() });
        }
        let all = state.snapshot().arrow_schema();
        let own = all.fields().iter().filter(|field| field.name() != DATE);
        let schema = Arc::new(Schema::new(own.cloned().collect::<Vec<_>>()));
        let date = Arc::new(Field::new(DATE, DataType::Date32, true));
        let filtered: Vec<_> = schema.fields().iter().cloned().chain([date]).collect();
        let filtered = Arc::new(Schema::new(filtered));
        Some(Self { files, state: state.clone(), schema, filtered })
    }

    /// The columns of the files.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Reads `projection` of the files that may hold rows for which `filters` are true. The rows
    /// are filtered by nobody.
    pub(super) async fn scan(
        &self,
        session: &dyn Session,
        projection: Vec<usize>,
        filters: Vec<Expr>,
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let mut kept = self.kept(session, filters)?;
        // By date, so that rows come in about the order of time.
        kept.sort_by(|a, b| a.meta.location.cmp(&b.meta.location));
        let url = ObjectStoreUrl::local_filesystem();
        let store = session.runtime_env().object_store(&url)?;
        let cache = session.runtime_env().cache_manager.get_file_metadata_cache();
        let mut few = BTreeSet::new();
        if let Some(largest) = kept.iter().max_by_key(|file| file.meta.size) {
            let metadata = DFParquetMetadata::new(store.as_ref(), &largest.meta)
                .with_file_metadata_cache(Some(cache.clone()));
            few = self.few_values(metadata.fetch_metadata().await?.as_ref());
        }
        let mut group: Vec<PartitionedFile> =
            kept.iter().map(|file| PartitionedFile::from(file.meta.clone())).collect();
        for (file, known) in group.iter_mut().zip(&kept) {
            file.statistics = Some(Arc::new(self.statistics(known.rows)));
        }
        if let Some(first) = group.first_mut() {
            *first = first.clone().with_extension(FewValues(few));
        }
        let rows = kept.iter().map(|file| file.rows).sum::<Option<usize>>();
        let options = TableParquetOptions {
            global: session.config_options().execution.parquet.clone(),
            ..TableParquetOptions::default()
        };
        let source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(options)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(
                store, cache,
            )));
        let groups = if group.is_empty() { Vec::new() } else { vec![FileGroup::new(group)] };
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(self.statistics(rows))
            .with_limit(limit)
            .with_projection_indices(Some(projection))?;
        Ok(DataSourceExec::from_data_source(config.build()))
    }

    /// The files that the log does not rule out.
    fn kept(&self, session: &dyn Session, filters: Vec<Expr>) -> DataFusionResult<Vec<&KnownFile>> {
        let Some(filter) = conjunction(filters) else { return Ok(self.files.iter().collect()) };
        let schema = self.filtered.clone().to_dfschema()?;
        let filter = session.create_physical_expr(filter, &schema)?;
        let predicate = PruningPredicate::try_new(filter, self.filtered.clone())?;
        let keep = predicate.prune(&self.state.log_data())?;
        Ok(self.files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| file).collect())
    }

    fn statistics(&self, rows: Option<usize>) -> Statistics {
        Statistics {
            num_rows: rows.map_or(Precision::Absent, Precision::Exact),
            total_byte_size: Precision::Absent,
            column_statistics: vec![ColumnStatistics::new_unknown(); self.schema.fields().len()],
        }
    }

    /// The texts that a file stores as small dictionaries throughout.
    fn few_values(&self, metadata: &ParquetMetaData) -> BTreeSet<usize> {
        let columns = metadata.file_metadata().schema_descr().columns();
        let is_small = |column: usize| {
            metadata.row_groups().iter().all(|group| {
                let chunk = group.column(column);
                let all_coded =
                    match (chunk.page_encoding_stats(), chunk.page_encoding_stats_mask()) {
                        (Some(pages), _) => pages.iter().all(|page| {
                            page.page_type == parquet::basic::PageType::DICTIONARY_PAGE
                                || page.encoding == Encoding::RLE_DICTIONARY
                        }),
                        (None, Some(mask)) => mask.is_only(Encoding::RLE_DICTIONARY),
                        (None, None) => false,
                    };
                let bytes = chunk.dictionary_page_offset().map(|at| chunk.data_page_offset() - at);
                all_coded && bytes.is_some_and(|bytes| bytes <= SMALL_DICTIONARY)
            })
        };
        let fields = self.schema.fields().iter().enumerate();
        let texts = fields.filter(|(_, field)| *field.data_type() == DataType::Utf8);
        let small = texts.filter(|(_, field)| {
            let name = [field.name().as_str()];
            let column = columns.iter().position(|column| column.path().parts() == name);
            column.is_some_and(is_small)
        });
        small.map(|(index, _)| index).collect()
    }
}

/// The columns of a scan's output that its files store as small dictionaries; none if it is not a
/// scan of [`Files`].
pub(super) fn few_values(config: &FileScanConfig) -> BTreeSet<usize> {
    let first = config.file_groups.iter().flat_map(|group| group.iter()).next();
    let Some(FewValues(few)) = first.and_then(|file| file.extension::<FewValues>()) else {
        return BTreeSet::new();
    };
    let column = |expr: &ProjectionExpr| {
        expr.expr.downcast_ref::<Column>().is_some_and(|column| few.contains(&column.index()))
    };
    let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else {
        return BTreeSet::new();
    };
    let projection = source.projection().into_iter().flat_map(|projection| projection.iter());
    projection.enumerate().filter(|(_, expr)| column(expr)).map(|(place, _)| place).collect()
}

/// The same scan with the columns `coded` of its output as codes; `None` where its filter or an
/// expression of its own reads one of them.
pub(super) fn coded(
    config: &FileScanConfig,
    coded: &BTreeSet<usize>,
) -> DataFusionResult<Option<Arc<dyn ExecutionPlan>>> {
    let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else {
        return Ok(None);
    };
    let (Some(projection), Some(inner)) =
        (source.projection(), source.parquet_file_reader_factory())
    else {
        return Ok(None);
    };
    let place_of = |place: usize| {
        let expr = projection.as_ref().get(place)?;
        expr.expr.downcast_ref::<Column>().map(Column::index)
    };
    let columns: BTreeSet<usize> = coded.iter().filter_map(|place| place_of(*place)).collect();
    let reads = |expr: &Arc<dyn PhysicalExpr>| {
        collect_columns(expr).iter().any(|column| columns.contains(&column.index()))
    };
    let own = projection.iter().map(|expr| &expr.expr).filter(|expr| !expr.is::<Column>());
    if own.chain(source.predicate()).any(reads) {
        return Ok(None);
    }
    let schema = source.table_schema().file_schema();
    let fields =
        schema.fields().iter().enumerate().map(|(place, field)| match columns.contains(&place) {
            true => Arc::new(field.as_ref().clone().with_data_type(coded_type())),
            false => field.clone(),
        });
    let table = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let names = columns.iter().map(|place| schema.field(*place).name().clone()).collect();
    let mut fresh = ParquetSource::new(table)
        .with_table_parquet_options(source.table_parquet_options().clone())
        .with_parquet_file_reader_factory(Arc::new(CodedReaders {
            inner: inner.clone(),
            columns: Arc::new(names),
        }));
    if let Some(predicate) = source.predicate() {
        fresh = fresh.with_predicate(predicate.clone());
    }
    let Some(fresh) = fresh.try_pushdown_projection(projection)? else { return Ok(None) };
    let config = FileScanConfigBuilder::from(config.clone()).with_source(fresh).build();
    Ok(Some(DataSourceExec::from_data_source(config)))
}
