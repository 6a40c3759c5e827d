//! Isolates the rows that an expression fails for. When a batch fails, bisection finds these rows,
//! and the other rows are processed.

use arrow::array::RecordBatch;
use datafusion::error::DataFusionError;

use crate::error::{Error, Kind, Result};

/// The result of a batch in which rows may fail.
#[derive(Debug)]
pub struct Isolated<T> {
    /// The results over the other rows, one per piece of the batch, in the order of the rows.
    pub done: Vec<T>,
    /// The rows that fail, ascending, each with the error message.
    pub failed: Vec<(usize, String)>,
}

/// Runs `run` over all rows of `batch` that it does not fail for. A piece that fails is halved,
/// down to single rows, so the pieces are a function of the rows.
///
/// # Errors
/// An error that no row causes (memory, disks) is returned unchanged.
pub async fn isolate<T, F, Fut>(batch: &RecordBatch, run: F) -> Result<Isolated<T>>
where
    F: Fn(RecordBatch) -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut isolated = Isolated { done: Vec::new(), failed: Vec::new() };
    // A stack: the last element is the next piece.
    let mut pieces = vec![(0, batch.num_rows())];
    while let Some((start, length)) = pieces.pop() {
        let whole = length == batch.num_rows();
        let piece = if whole { batch.clone() } else { batch.slice(start, length) };
        match run(piece).await {
            Ok(done) => isolated.done.push(done),
            Err(error) if !is_fault_of_data(&error) => return Err(error),
            Err(error) if length <= 1 => isolated.failed.push((start, reason(&error))),
            Err(_) => {
                let half = length / 2;
                pieces.push((start + half, length - half));
                pieces.push((start, half));
            }
        }
    }
    Ok(isolated)
}

/// Whether the error is caused by the data. Errors of memory, disks and brokers are not.
pub(crate) fn is_fault_of_data(error: &Error) -> bool {
    if !matches!(error.kind, Kind::Data | Kind::Internal | Kind::Sql) {
        return false;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(failed) = inner.downcast_ref::<DataFusionError>() {
            return !matches!(
                failed.find_root(),
                DataFusionError::ResourcesExhausted(_)
                    | DataFusionError::IoError(_)
                    | DataFusionError::ObjectStore(_)
            );
        }
        cause = inner.source();
    }
    true
}

/// Describes an error in one line: its message and the innermost cause.
pub(crate) fn reason(error: &Error) -> String {
    let mut innermost = std::error::Error::source(error);
    while let Some(deeper) = innermost.and_then(|cause| cause.source()) {
        innermost = Some(deeper);
    }
    match innermost {
        Some(cause) => format!("{}: {cause}", error.message),
        None => error.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn batch(values: Vec<i64>) -> RecordBatch {
        RecordBatch::try_from_iter([("v", Arc::new(Int64Array::from(values)) as _)]).unwrap()
    }

    async fn inverse(rows: RecordBatch) -> Result<Vec<i64>> {
        let values = rows.column(0).as_primitive::<Int64Type>().values();
        if values.contains(&-1) {
            let error = DataFusionError::ResourcesExhausted("full".into());
            return Err(Error::internal("a plan failed").because(error));
        }
        let divided: Option<Vec<_>> = values.iter().map(|v| 100i64.checked_div(*v)).collect();
        divided.ok_or_else(|| Error::internal("division by zero"))
    }

    #[tokio::test]
    async fn rows_that_do_not_fail_are_processed_in_order() {
        let found = isolate(&batch(vec![1, 2, 0, 4, 5, 0, 0, 10]), inverse).await.unwrap();
        assert_eq!(found.done.concat(), [100, 50, 25, 20, 10]);
        let failed: Vec<_> = found.failed.iter().map(|(row, _)| *row).collect();
        assert_eq!(failed, [2, 5, 6]);
        assert_eq!(found.failed[0].1, "division by zero");
        let all = isolate(&batch(vec![0]), inverse).await.unwrap();
        assert_eq!((all.done.len(), all.failed.len()), (0, 1));
        assert!(isolate(&batch(vec![1, 0, -1]), inverse).await.is_err());
    }
}
