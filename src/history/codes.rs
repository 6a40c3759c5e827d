//! Files that give codes of texts instead of texts.
//!
//! DataFusion reads a column as what the file's metadata say of its Arrow type. So metadata that
//! say "dictionary" make the Parquet reader hand over what the file has anyway.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileReaderFactory;
use datafusion::error::Result as DfResult;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, encode_arrow_schema, parquet_to_arrow_schema};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataBuilder};

/// What a coded text is to Arrow.
pub(super) fn coded_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// Readers of files whose columns of these names are coded.
#[derive(Debug)]
pub(super) struct CodedReaders {
    pub(super) inner: Arc<dyn ParquetFileReaderFactory>,
    pub(super) columns: Arc<BTreeSet<String>>,
}

impl ParquetFileReaderFactory for CodedReaders {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        metadata_size: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DfResult<Box<dyn AsyncFileReader + Send>> {
        let inner = self.inner.create_reader(partition, file, metadata_size, metrics)?;
        Ok(Box::new(CodedReader { inner, columns: self.columns.clone() }))
    }
}

struct CodedReader {
    inner: Box<dyn AsyncFileReader + Send>,
    columns: Arc<BTreeSet<String>>,
}

impl fmt::Debug for CodedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CodedReader").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl AsyncFileReader for CodedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let columns = self.columns.clone();
        let metadata = self.inner.get_metadata(options);
        async move { Ok(Arc::new(coded(&*metadata.await?, &columns)?)) }.boxed()
    }
}

/// The metadata of a file whose `columns` are said to be dictionaries.
fn coded(metadata: &ParquetMetaData, columns: &BTreeSet<String>) -> ParquetResult<ParquetMetaData> {
    let file = metadata.file_metadata();
    let schema = parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata())?;
    let fields = schema.fields().iter().map(|field| match columns.contains(field.name()) {
        true => Arc::new(Field::new(field.name(), coded_type(), field.is_nullable())),
        false => field.clone(),
    });
    let schema = Schema::new(fields.collect::<Vec<_>>());
    let others = file.key_value_metadata().into_iter().flatten();
    let mut pairs: Vec<KeyValue> =
        others.filter(|pair| pair.key != ARROW_SCHEMA_META_KEY).cloned().collect();
    pairs.push(KeyValue::new(ARROW_SCHEMA_META_KEY.to_owned(), encode_arrow_schema(&schema)));
    let file = FileMetaData::new(
        file.version(),
        file.num_rows(),
        file.created_by().map(str::to_owned),
        Some(pairs),
        file.schema_descr_ptr(),
        file.column_orders().cloned(),
    );
    Ok(ParquetMetaDataBuilder::new(file)
        .set_row_groups(metadata.row_groups().to_vec())
        .set_column_index(metadata.column_index().cloned())
        .set_offset_index(metadata.offset_index().cloned())
        .build())
}
