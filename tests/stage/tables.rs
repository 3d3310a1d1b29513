//! Reads back what a run left in its tables, through the SQL that users have.

use std::collections::BTreeMap;

use assay::query::{JobTables, QuerySession};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::arrow::util::display::array_value_to_string;
use futures::TryStreamExt;

/// Topic, partition and offset of a row.
pub type Place = (String, i32, i64);

/// Tables on any store.
#[derive(Debug, Clone)]
pub struct Warehouse {
    pub url: String,
    pub options: BTreeMap<String, String>,
}

impl Warehouse {
    /// The result of a query as text cells.
    pub async fn ask(&self, job: &str, sql: &str) -> Vec<Vec<String>> {
        self.collect(job, sql).await.iter().flat_map(rows).collect()
    }

    /// Where every row of both tables came from, sorted; a doubled row stands there twice.
    pub async fn places(&self, job: &str) -> Vec<Place> {
        let mut places = Vec::new();
        for table in ["results", "rejections"] {
            let sql = format!("SELECT topic, partition, \"offset\" FROM {table}");
            for row in self.ask(job, &sql).await {
                places.push((row[0].clone(), row[1].parse().unwrap(), row[2].parse().unwrap()));
            }
        }
        places.sort();
        places
    }

    async fn collect(&self, job: &str, sql: &str) -> Vec<RecordBatch> {
        assay::sink::register_stores();
        let url = format!("{}/{job}", self.url);
        let tables = [JobTables { job: job.to_owned(), url, options: self.options.clone() }];
        let session = QuerySession::open(&tables, Some(job)).await.expect("tables open");
        let answer = session.run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        answer.try_collect().await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

fn local(base: &str) -> Warehouse {
    Warehouse { url: base.to_owned(), options: BTreeMap::new() }
}

/// The result of a query as text cells.
pub async fn ask(base: &str, job: &str, sql: &str) -> Vec<Vec<String>> {
    local(base).ask(job, sql).await
}

fn rows(batch: &RecordBatch) -> Vec<Vec<String>> {
    let cell = |column: &ArrayRef, row| {
        if column.is_null(row) { "NULL".to_owned() } else { array_value_to_string(column, row).expect("displays") }
    };
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| cell(column, row)).collect()).collect()
}

/// The single number that a query answers with.
pub async fn count(base: &str, job: &str, sql: &str) -> i64 {
    local(base).collect(job, sql).await[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// Where every row of both tables came from, sorted; a doubled row stands there twice.
pub async fn places(base: &str, job: &str) -> Vec<Place> {
    local(base).places(job).await
}
