//! Grouping by texts of few values, and filters on them, by their codes.
//!
//! ```text
//!  Final: group by text                      Final: group by text
//!     ▲                                         ▲
//!  Partial: group by text          ═►        Projection: id ─► text
//!     ▲                                         ▲
//!  files: text                               Partial: group by id(code), filters on codes
//!                                               ▲
//!                                            files: codes and a dictionary
//! ```
//!
//! Parquet stores such a text as a small dictionary and a code for each row. Made into texts, each
//! row would be copied, hashed and compared. A rule after all others of DataFusion's lets the files
//! give codes, where what reads them is a first aggregate that uses the text only as a key or in
//! comparisons with a constant. Ids are the query's own: each text has one, whichever file's
//! dictionary it comes from, so partials of several threads go together as ever.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, RecordBatch, StringArray, new_null_array,
};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Result as DfResult, ScalarValue, exec_datafusion_err};
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::logical_expr::{ColumnarValue, Operator};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, PhysicalGroupBy};
use datafusion::physical_plan::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};

use super::scan;

/// The rule. See the module.
#[derive(Debug)]
pub(super) struct CodedTexts;

impl PhysicalOptimizerRule for CodedTexts {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _: &ConfigOptions,
    ) -> DfResult<Arc<dyn ExecutionPlan>> {
        let plan = plan.transform_up(|node| {
            let aggregate = node.downcast_ref::<AggregateExec>();
            Ok(match aggregate.map(over_codes).transpose()?.flatten() {
                Some(coded) => Transformed::yes(coded),
                None => Transformed::no(node),
            })
        })?;
        Ok(plan.data)
    }

    fn name(&self) -> &str {
        "coded_texts"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The aggregate over codes; `None` where that cannot be, or gains nothing.
fn over_codes(aggregate: &AggregateExec) -> DfResult<Option<Arc<dyn ExecutionPlan>>> {
    let reads_rows = matches!(
        aggregate.mode(),
        AggregateMode::Partial | AggregateMode::Single | AggregateMode::SinglePartitioned
    );
    let keys = aggregate.group_expr();
    if !reads_rows || !keys.is_single() || aggregate.limit_options().is_some() {
        return Ok(None);
    }
    let Some(scan) = aggregate.input().downcast_ref::<DataSourceExec>() else { return Ok(None) };
    let Some(config) = scan.data_source().downcast_ref::<FileScanConfig>() else {
        return Ok(None);
    };
    let mut coded = scan::few_values(config);
    coded.retain(|column| is_of_use(aggregate, *column));
    for column in unfit(aggregate) {
        coded.remove(&column);
    }
    if coded.is_empty() {
        return Ok(None);
    }
    let Some(input) = scan::coded(config, &coded)? else { return Ok(None) };
    let mut texts: HashMap<usize, Arc<Texts>> = HashMap::new();
    let keys = keys.expr().iter().enumerate().map(|(place, (expr, name))| {
        let column = expr.downcast_ref::<Column>().map(Column::index);
        let Some(column) = column.filter(|column| coded.contains(column)) else {
            return (expr.clone(), name.clone());
        };
        let texts = texts.entry(place).or_default().clone();
        (Arc::new(Id { column, texts }) as Arc<dyn PhysicalExpr>, name.clone())
    });
    let keys = PhysicalGroupBy::new_single(keys.collect());
    let filters = aggregate
        .filter_expr()
        .iter()
        .map(|filter| filter.clone().map(|filter| on_codes(filter, &coded)).transpose());
    let schema = input.schema();
    let over = AggregateExec::try_new(
        *aggregate.mode(),
        keys,
        aggregate.aggr_expr().to_vec(),
        filters.collect::<DfResult<Vec<_>>>()?,
        input,
        schema,
    )?;
    let fields = aggregate.schema();
    let columns = fields.fields().iter().enumerate().map(|(place, field)| {
        let expr: Arc<dyn PhysicalExpr> = match texts.get(&place) {
            Some(texts) => {
                let (field, texts) = (field.clone(), texts.clone());
                Arc::new(Text { id: place, field, texts })
            }
            None => Arc::new(Column::new(field.name(), place)),
        };
        ProjectionExpr { expr, alias: field.name().clone() }
    });
    let columns: Vec<_> = columns.collect();
    Ok(Some(Arc::new(ProjectionExec::try_new(columns, Arc::new(over))?)))
}

/// Whether a column is a key, or compared in a filter.
fn is_of_use(aggregate: &AggregateExec, column: usize) -> bool {
    let is_key = |expr: &Arc<dyn PhysicalExpr>| {
        expr.downcast_ref::<Column>().is_some_and(|known| known.index() == column)
    };
    let reads = |filter: &Arc<dyn PhysicalExpr>| {
        collect_columns(filter).iter().any(|known| known.index() == column)
    };
    aggregate.group_expr().expr().iter().any(|(expr, _)| is_key(expr))
        || aggregate.filter_expr().iter().flatten().any(reads)
}

/// Columns that are used in another way than codes can be.
fn unfit(aggregate: &AggregateExec) -> BTreeSet<usize> {
    let mut unfit = BTreeSet::new();
    let mut all_of = |expr: &Arc<dyn PhysicalExpr>| {
        unfit.extend(collect_columns(expr).iter().map(Column::index));
    };
    let keys = aggregate.group_expr().expr().iter().map(|(expr, _)| expr);
    keys.filter(|expr| !expr.is::<Column>()).for_each(&mut all_of);
    for function in aggregate.aggr_expr() {
        function.expressions().iter().for_each(&mut all_of);
        function.order_bys().iter().for_each(|order| all_of(&order.expr));
    }
    for filter in aggregate.filter_expr().iter().flatten() {
        beside_comparisons(filter, &mut unfit);
    }
    unfit
}

fn beside_comparisons(expr: &Arc<dyn PhysicalExpr>, columns: &mut BTreeSet<usize>) {
    if compared(expr).is_some() {
        return;
    }
    columns.extend(expr.downcast_ref::<Column>().map(Column::index));
    expr.children().into_iter().for_each(|child| beside_comparisons(child, columns));
}

/// The column that is compared with a constant: an expression that no value makes fail.
fn compared(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    let comparison = expr.downcast_ref::<BinaryExpr>()?;
    let op = comparison.op();
    let plain = [Operator::Eq, Operator::NotEq, Operator::Lt, Operator::LtEq];
    let plain = plain.contains(op) || [Operator::Gt, Operator::GtEq].contains(op);
    let column = |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Column>().map(Column::index);
    let is_text = |expr: &Arc<dyn PhysicalExpr>| {
        let value = expr.downcast_ref::<Literal>().map(Literal::value);
        matches!(value, Some(ScalarValue::Utf8(_)))
    };
    let (left, right) = (comparison.left(), comparison.right());
    match (column(left), column(right)) {
        (Some(column), None) if plain && is_text(right) => Some(column),
        (None, Some(column)) if plain && is_text(left) => Some(column),
        _ => None,
    }
}

/// A filter whose comparisons of `coded` columns look at codes.
fn on_codes(
    filter: Arc<dyn PhysicalExpr>,
    coded: &BTreeSet<usize>,
) -> DfResult<Arc<dyn PhysicalExpr>> {
    let filter = filter.transform_down(|expr| {
        let Some(column) = compared(&expr).filter(|column| coded.contains(column)) else {
            return Ok(Transformed::no(expr));
        };
        // What is compared is a dictionary's values, a batch of one column.
        let test = expr.transform_up(|expr| match expr.downcast_ref::<Column>() {
            Some(column) => {
                let only = Column::new(column.name(), 0);
                Ok(Transformed::yes(Arc::new(only) as Arc<dyn PhysicalExpr>))
            }
            None => Ok(Transformed::no(expr)),
        })?;
        let test = Arc::new(Test { column, test: test.data }) as Arc<dyn PhysicalExpr>;
        Ok(Transformed::new(test, true, datafusion::common::tree_node::TreeNodeRecursion::Jump))
    })?;
    Ok(filter.data)
}

/// The texts of a key, each with an id.
#[derive(Debug, Default)]
struct Texts {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    ids: HashMap<String, i32>,
    texts: Vec<String>,
    /// The ids of dictionaries seen last: a row group's is that of many batches, and each thread
    /// reads a row group of its own.
    recent: Vec<(ArrayRef, Arc<[Option<i32>]>)>,
}

/// Dictionaries that are remembered.
const RECENT: usize = 16;

impl Texts {
    /// The id of each value of a dictionary.
    fn ids(&self, values: &ArrayRef) -> DfResult<Arc<[Option<i32>]>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, ids)) = known.recent.iter().find(|(seen, _)| Arc::ptr_eq(seen, values)) {
            return Ok(ids.clone());
        }
        let ids =
            values.as_string::<i32>().iter().map(|text| text.map(|t| known.id(t)).transpose());
        let ids: Arc<[Option<i32>]> = ids.collect::<DfResult<Vec<_>>>()?.into();
        if known.recent.len() == RECENT {
            known.recent.remove(0);
        }
        known.recent.push((values.clone(), ids.clone()));
        Ok(ids)
    }

    fn texts(&self, ids: &Int32Array) -> StringArray {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let text = |id: i32| usize::try_from(id).ok().and_then(|id| known.texts.get(id));
        ids.iter().map(|id| id.and_then(text).map(String::as_str)).collect()
    }
}

impl Known {
    fn id(&mut self, text: &str) -> DfResult<i32> {
        if let Some(id) = self.ids.get(text) {
            return Ok(*id);
        }
        let id = i32::try_from(self.texts.len());
        let id = id.map_err(|_| exec_datafusion_err!("a key has too many different texts"))?;
        self.ids.insert(text.to_owned(), id);
        self.texts.push(text.to_owned());
        Ok(id)
    }
}

/// A text's id, from its code.
#[derive(Debug, Clone)]
struct Id {
    column: usize,
    texts: Arc<Texts>,
}

/// A text, from its id.
#[derive(Debug, Clone)]
struct Text {
    id: usize,
    field: FieldRef,
    texts: Arc<Texts>,
}

/// A comparison, worked out for each value of a dictionary and looked up for each code.
#[derive(Debug, Clone)]
struct Test {
    column: usize,
    /// Over the values as the only column.
    test: Arc<dyn PhysicalExpr>,
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.column == other.column && Arc::ptr_eq(&self.texts, &other.texts)
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && Arc::ptr_eq(&self.texts, &other.texts)
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.id.hash(state);
    }
}

impl PartialEq for Test {
    fn eq(&self, other: &Self) -> bool {
        self.column == other.column && self.test.as_ref() == other.test.as_ref()
    }
}

impl Eq for Test {}

impl Hash for Test {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
        self.test.hash(state);
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id(@{})", self.column)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text(@{})", self.id)
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "codes(@{}: {})", self.column, self.test)
    }
}

impl PhysicalExpr for Id {
    fn return_field(&self, schema: &Schema) -> DfResult<FieldRef> {
        let field = schema.field(self.column);
        Ok(Arc::new(Field::new(field.name(), DataType::Int32, field.is_nullable())))
    }

    fn evaluate(&self, batch: &RecordBatch) -> DfResult<ColumnarValue> {
        let coded = batch.column(self.column).as_dictionary::<Int32Type>();
        let ids = self.texts.ids(coded.values())?;
        // Where a row is null its code is anything.
        let id = |code: &i32| ids.get(*code as usize).copied().flatten();
        let codes = coded.keys();
        let result = match ids.iter().all(Option::is_some) {
            true => {
                let ids = codes.values().iter().map(|code| id(code).unwrap_or(0)).collect();
                Int32Array::new(ids, codes.nulls().cloned())
            }
            false => codes.iter().map(|code| code.and_then(|code| id(&code))).collect(),
        };
        Ok(ColumnarValue::Array(Arc::new(result)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DfResult<Arc<dyn PhysicalExpr>> {
        Ok(self)
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PhysicalExpr for Text {
    fn return_field(&self, _: &Schema) -> DfResult<FieldRef> {
        Ok(self.field.clone())
    }

    fn evaluate(&self, batch: &RecordBatch) -> DfResult<ColumnarValue> {
        let texts = self.texts.texts(batch.column(self.id).as_primitive::<Int32Type>());
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DfResult<Arc<dyn PhysicalExpr>> {
        Ok(self)
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PhysicalExpr for Test {
    fn return_field(&self, schema: &Schema) -> DfResult<FieldRef> {
        let name = schema.field(self.column).name();
        Ok(Arc::new(Field::new(name, DataType::Boolean, true)))
    }

    fn evaluate(&self, batch: &RecordBatch) -> DfResult<ColumnarValue> {
        let coded = batch.column(self.column).as_dictionary::<Int32Type>();
        let test = |values: ArrayRef| -> DfResult<BooleanArray> {
            let field = Field::new("text", DataType::Utf8, true);
            let schema = Arc::new(Schema::new(vec![field]));
            let rows = values.len();
            let values = RecordBatch::try_new(schema, vec![values])?;
            Ok(self.test.evaluate(&values)?.into_array(rows)?.as_boolean().clone())
        };
        let codes = coded.keys();
        let passes = test(coded.values().clone())?;
        if codes.null_count() == 0 && passes.null_count() == 0 {
            let passes: Vec<bool> = passes.values().iter().collect();
            let codes = codes.values();
            let pass = |row: usize| passes.get(codes[row] as usize).copied().unwrap_or(false);
            let pass = BooleanBuffer::collect_bool(codes.len(), pass);
            return Ok(ColumnarValue::Array(Arc::new(BooleanArray::new(pass, None))));
        }
        let of_null = test(new_null_array(&DataType::Utf8, 1))?;
        let value = |array: &BooleanArray, at: usize| array.is_valid(at).then(|| array.value(at));
        let rows = codes.iter().map(|code| match code {
            Some(code) => value(&passes, code as usize),
            None => value(&of_null, 0),
        });
        Ok(ColumnarValue::Array(Arc::new(rows.collect::<BooleanArray>())))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DfResult<Arc<dyn PhysicalExpr>> {
        Ok(self)
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
