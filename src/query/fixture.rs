//! Tables for the tests of this room, written with deltalake itself.
//!
//! They have the columns of the results and rejections tables that the tests need, not what the sink does to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, ListArray, MapBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::Float32Type;
use deltalake::DeltaTable;
use url::Url;

use super::job_tables::JobTables;

/// A row of the results table: asset, offset, event time in microseconds, and whether it removes the asset.
pub(super) type Result = (&'static str, i64, Option<i64>, bool);

/// Values of each row's embedding.
pub(super) const DIMENSIONS: usize = 64;

pub(super) fn job(base: &Path, name: &str) -> JobTables {
    let url = format!("{}/{name}", Url::from_directory_path(base).unwrap().as_str().trim_end_matches('/'));
    JobTables { job: name.to_owned(), url, options: BTreeMap::from([("secret_key".to_owned(), "hidden".to_owned())]) }
}

/// Appends rows to the job's results in one commit. The embedding of a row is its offset plus 1, then its index.
pub(super) async fn append_results(base: &Path, name: &str, rows: &[Result]) {
    let offsets: Vec<i64> = rows.iter().map(|row| row.1).collect();
    let embeddings = rows.iter().map(|row| {
        let vector = (0..DIMENSIONS).map(|index| Some(if index == 0 { row.1 as f32 + 1.0 } else { index as f32 }));
        Some(vector.collect::<Vec<_>>())
    });
    let mut headers = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for _ in rows {
        headers.keys().append_value("trace");
        headers.values().append_value("a\"b");
        headers.append(true).unwrap();
    }
    let times = TimestampMicrosecondArray::from_iter(rows.iter().map(|row| row.2)).with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("asset_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.0))), false),
        ("topic", Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "products"))), false),
        ("partition", Arc::new(Int32Array::from_iter_values(rows.iter().map(|_| 0))), false),
        ("offset", Arc::new(Int64Array::from(offsets)), false),
        ("event_time", Arc::new(times), true),
        ("headers", Arc::new(headers.finish()), true),
        ("deleted", Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.3)))), false),
        ("image_embedding", Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(embeddings)), true),
    ];
    append(base, name, "results", columns).await;
}

/// Appends one rejection.
pub(super) async fn append_rejection(base: &Path, name: &str, asset: &str, reason: &str) {
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("asset_id", Arc::new(StringArray::from(vec![asset])), true),
        ("offset", Arc::new(Int64Array::from(vec![0])), false),
        ("reason", Arc::new(StringArray::from(vec![reason])), false),
    ];
    append(base, name, "rejections", columns).await;
}

async fn append(base: &Path, name: &str, table: &str, columns: Vec<(&str, ArrayRef, bool)>) {
    let folder = base.join(name).join(table);
    std::fs::create_dir_all(&folder).unwrap();
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let table = DeltaTable::try_from_url(Url::from_directory_path(&folder).unwrap()).await.unwrap();
    table.write([batch]).await.unwrap();
}
