//! SQL functions over embeddings.
//!
//! DataFusion brings `cosine_distance` (1 - similarity), `array_distance` (Euclidean) and `inner_product`;
//! `cosine_similarity` is added because it is the usual word, and because it reads 32-bit columns as they are instead
//! of widening each vector to 64 bits first. It does not know where the vectors come from.
//! Invariant: no allocation per row, and a constant vector is never repeated for each row.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Float64Array, Float64Builder};
use datafusion::arrow::datatypes::{DataType, Field, Float32Type, Float64Type};
use datafusion::common::{ScalarValue, exec_err, plan_err};
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

/// `cosine_similarity(a, b)`: dot(a, b) / (|a| |b|) of two lists of numbers of equal length, in -1..1.
///
/// Null when a list is null, is empty, holds a null or has no length (all zeros); an error when the lists differ in
/// their number of values.
pub fn cosine_similarity() -> ScalarUDF {
    ScalarUDF::new_from_impl(CosineSimilarity { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CosineSimilarity {
    signature: Signature,
}

impl ScalarUDFImpl for CosineSimilarity {
    fn name(&self) -> &str {
        "cosine_similarity"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        if arguments.len() != 2 {
            return plan_err!("cosine_similarity takes two lists of numbers, not {} arguments", arguments.len());
        }
        arguments.iter().map(list_of_floats).collect()
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let [left, right] = arguments.args.as_slice() else {
            return exec_err!("cosine_similarity takes two lists of numbers");
        };
        let constant = matches!((left, right), (ColumnarValue::Scalar(_), ColumnarValue::Scalar(_)));
        let rows = if constant { 1 } else { arguments.number_rows };
        let (left, right) = (Operand::new(left)?, Operand::new(right)?);
        let similarities = match (left.is_wide(), right.is_wide()) {
            (false, false) => similarities::<Float32Type, Float32Type>(&left, &right, rows)?,
            (false, true) => similarities::<Float32Type, Float64Type>(&left, &right, rows)?,
            (true, false) => similarities::<Float64Type, Float32Type>(&left, &right, rows)?,
            (true, true) => similarities::<Float64Type, Float64Type>(&left, &right, rows)?,
        };
        if constant {
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&similarities, 0)?));
        }
        Ok(ColumnarValue::Array(Arc::new(similarities)))
    }
}

fn list_of_floats(argument: &DataType) -> Result<DataType> {
    let wide = match argument {
        DataType::Null => true,
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
            if item.data_type().is_numeric() || item.data_type().is_null() =>
        {
            item.data_type() != &DataType::Float32
        }
        other => return plan_err!("cosine_similarity takes lists of numbers, not {other}"),
    };
    let item = if wide { DataType::Float64 } else { DataType::Float32 };
    Ok(DataType::List(Arc::new(Field::new_list_field(item, true))))
}

/// One side: a list per row, or one list for all rows.
struct Operand {
    lists: ArrayRef,
    constant: bool,
}

impl Operand {
    fn new(value: &ColumnarValue) -> Result<Self> {
        Ok(match value {
            ColumnarValue::Array(lists) => Self { lists: Arc::clone(lists), constant: false },
            ColumnarValue::Scalar(list) => Self { lists: list.to_array_of_size(1)?, constant: true },
        })
    }

    fn is_wide(&self) -> bool {
        matches!(self.lists.data_type(), DataType::List(item) if item.data_type() == &DataType::Float64)
    }

    fn vectors<'a, T: ArrowPrimitiveType>(&'a self) -> impl Fn(usize) -> Option<&'a [T::Native]> {
        let lists = self.lists.as_list::<i32>();
        let numbers = lists.values().as_primitive::<T>();
        let offsets = lists.value_offsets();
        let constant = self.constant;
        move |row| {
            let row = if constant { 0 } else { row };
            if lists.is_null(row) {
                return None;
            }
            let (from, to) = (offsets[row] as usize, offsets[row + 1] as usize);
            let holed = numbers.nulls().is_some_and(|nulls| nulls.slice(from, to - from).null_count() > 0);
            (!holed).then(|| &numbers.values()[from..to])
        }
    }
}

fn similarities<A, B>(left: &Operand, right: &Operand, rows: usize) -> Result<Float64Array>
where
    A: ArrowPrimitiveType<Native: Into<f64>>,
    B: ArrowPrimitiveType<Native: Into<f64>>,
{
    let (left, right) = (left.vectors::<A>(), right.vectors::<B>());
    let mut output = Float64Builder::with_capacity(rows);
    for row in 0..rows {
        let (Some(a), Some(b)) = (left(row), right(row)) else {
            output.append_null();
            continue;
        };
        if a.len() != b.len() {
            return exec_err!(
                "cosine_similarity compares lists of equal length, but one has {} values and the other {}",
                a.len(),
                b.len()
            );
        }
        output.append_option(cosine(a, b));
    }
    Ok(output.finish())
}

/// Independent sums, because the compiler may not reorder one sum of floats into a vector register.
const LANES: usize = 8;

fn cosine<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> Option<f64> {
    let mut sums = [[0.0_f64; LANES]; 3];
    let mut add = |lane: usize, x: f64, y: f64| {
        sums[0][lane] += x * y;
        sums[1][lane] += x * x;
        sums[2][lane] += y * y;
    };
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (x, y) in whole_a.iter().zip(whole_b) {
        for lane in 0..LANES {
            add(lane, x[lane].into(), y[lane].into());
        }
    }
    for (lane, (x, y)) in rest_a.iter().zip(rest_b).enumerate() {
        add(lane, (*x).into(), (*y).into());
    }
    let [dot, square_a, square_b] = sums.map(|lanes| lanes.iter().sum::<f64>());
    let length = square_a.sqrt() * square_b.sqrt();
    (length != 0.0).then(|| (dot / length).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{FixedSizeListArray, ListArray, RecordBatch};
    use datafusion::prelude::SessionContext;

    use super::*;

    async fn evaluate(sql: &str) -> Result<Vec<Option<f64>>> {
        let context = SessionContext::new();
        context.register_udf(cosine_similarity());
        let vectors = [Some([1.0, 0.0]), Some([0.0, 2.0]), None, Some([0.0, 0.0]), Some([3.0, 4.0])]
            .map(|vector: Option<[f32; 2]>| vector.map(|vector| vector.map(Some)));
        let lists = ListArray::from_iter_primitive::<Float32Type, _, _>(vectors);
        let fixed = FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(vectors, 2);
        let batch =
            RecordBatch::try_from_iter([("v", Arc::new(lists) as ArrayRef), ("f", Arc::new(fixed) as ArrayRef)])?;
        context.register_batch("t", batch)?;
        let batches = context.sql(sql).await?.collect().await?;
        Ok(batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Float64Type>().iter()).collect())
    }

    #[tokio::test]
    async fn a_column_is_compared_with_a_literal_row_by_row() {
        let expected = vec![Some(1.0), Some(0.0), None, None, Some(0.6)];
        assert_eq!(evaluate("SELECT cosine_similarity(v, [2.0, 0.0]) FROM t").await.unwrap(), expected);
        assert_eq!(evaluate("SELECT cosine_similarity([2, 0], f) FROM t").await.unwrap(), expected);
    }

    #[tokio::test]
    async fn two_columns_are_compared_and_null_rows_stay_null() {
        let similar = evaluate("SELECT cosine_similarity(v, f) FROM t").await.unwrap();
        assert_eq!(similar, [Some(1.0), Some(1.0), None, None, Some(1.0)]);
    }

    #[tokio::test]
    async fn constants_give_a_constant_and_opposites_give_minus_one() {
        assert_eq!(evaluate("SELECT cosine_similarity([3.0, 4.0], [-6.0, -8.0])").await.unwrap(), [Some(-1.0)]);
        assert_eq!(evaluate("SELECT cosine_similarity(NULL, [1.0])").await.unwrap(), [None]);
        assert_eq!(evaluate("SELECT cosine_similarity([1.0, NULL], [1.0, 2.0])").await.unwrap(), [None]);
    }

    #[tokio::test]
    async fn lists_of_different_lengths_and_other_types_are_errors() {
        let error = evaluate("SELECT cosine_similarity(v, [1.0, 2.0, 3.0]) FROM t").await.unwrap_err().to_string();
        assert!(error.contains("one has 2 values and the other 3"), "{error}");
        let error = evaluate("SELECT cosine_similarity('a', [1.0])").await.unwrap_err().to_string();
        assert!(error.contains("takes lists of numbers"), "{error}");
    }

    #[test]
    fn long_vectors_agree_with_the_plain_sum_whatever_their_length() {
        for length in [1_usize, 7, 8, 9, 64, 67] {
            let a: Vec<f32> = (0..length).map(|index| (index as f32 * 0.7).sin() + 0.1).collect();
            let b: Vec<f64> = (0..length).map(|index| (index as f64 * 0.3).cos()).collect();
            let dot: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * y).sum();
            let squares = |values: Vec<f64>| values.iter().map(|value| value * value).sum::<f64>();
            let wide = a.iter().map(|value| f64::from(*value)).collect();
            let expected = dot / (squares(wide) * squares(b.clone())).sqrt();
            assert!((cosine(&a, &b).unwrap() - expected).abs() < 1e-12, "length {length}");
        }
    }
}
