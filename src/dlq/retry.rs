//! `assay dlq retry`: sends the raw messages of dead letters again, to the partition they came from.
//!
//! A retried record has the key, payload and headers of its letter; two headers are set anew, the first origin and the attempt.
//! Invariants: nothing is removed from a table; a letter that failed often enough is left alone; what has no message (a removal
//! without a key) is never sent, because a null value sent now would remove what came since.

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};

use super::letters::{ATTEMPT, FIRST_ORIGIN, Selection};
use super::tables;
use crate::config::{Config, SourceKind};
use crate::domain::{Row, Value};
use crate::query::{QueryError, rows};
use crate::source::Submitter;

/// What `assay dlq retry` was asked to do.
#[derive(Debug, Clone)]
pub struct RetryOptions {
    /// Empty: all jobs.
    pub jobs: Vec<String>,
    pub selection: Selection,
    /// Letters that were worked on this often stay.
    pub most_attempts: i64,
    /// Only count.
    pub dry_run: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    sent: u64,
    /// Failed as often as is allowed.
    poison: u64,
    without_message: u64,
}

/// A letter as it goes out again.
#[derive(Debug, PartialEq)]
struct Letter {
    topic: String,
    partition: i32,
    key: Option<String>,
    payload: Vec<u8>,
    headers: Vec<(String, String)>,
}

/// Sends the selected letters again and says how many.
///
/// # Errors
/// A source without a broker, tables that cannot be read, records that were not delivered.
pub async fn retry(config: &Config, options: &RetryOptions) -> Result<()> {
    if config.source.kind != SourceKind::Kafka {
        bail!(
            "source.kind is not \"kafka\": there is no broker to send to; append the messages to the replay files instead"
        );
    }
    let submitter = Submitter::new(&config.source.kafka)?;
    let mut tally = Tally::default();
    for job in tables::jobs(config, &options.jobs)? {
        retry_job(config, &job, options, &submitter, &mut tally).await.with_context(|| format!("job {job}"))?;
    }
    submitter.flush().await.with_context(|| format!("{} messages were sent", tally.sent))?;
    let verb = if options.dry_run { "would be sent" } else { "sent" };
    println!(
        "{} messages {verb} again, {} left that failed {} times, {} left without a message",
        tally.sent, tally.poison, options.most_attempts, tally.without_message
    );
    Ok(())
}

async fn retry_job(
    config: &Config,
    job: &str,
    options: &RetryOptions,
    submitter: &Submitter,
    tally: &mut Tally,
) -> Result<()> {
    let session = tables::open(config, job).await?;
    let sql = options.selection.sql("letter, attempt, topic, partition, key, headers, raw", None);
    let answer = match session.run(&sql).await {
        Err(QueryError::NothingWritten { .. }) => return Ok(()),
        answer => answer?,
    };
    let mut batches = rows(answer).boxed();
    while let Some(batch) = batches.try_next().await? {
        for row in batch {
            let Some(letter) = take(row, options.most_attempts, tally) else { continue };
            tally.sent += 1;
            if !options.dry_run {
                let Letter { topic, partition, key, payload, headers } = letter;
                submitter.send(&topic, Some(partition), key.as_deref(), Some(&payload), &headers).await?;
            }
        }
    }
    Ok(())
}

/// The letter of a row, or none and the reason is counted.
fn take(row: Row, most_attempts: i64, tally: &mut Tally) -> Option<Letter> {
    let Ok([name, attempt, topic, partition, key, headers, raw]) = <[Value; 7]>::try_from(row) else { return None };
    let (Value::Text(name), Value::Integer(attempt), Value::Text(topic), Value::Integer(partition)) =
        (name, attempt, topic, partition)
    else {
        return None;
    };
    if attempt >= most_attempts {
        tally.poison += 1;
        return None;
    }
    let Value::Bytes(payload) = raw else {
        tally.without_message += 1;
        return None;
    };
    let key = match key {
        Value::Text(key) => Some(key),
        _ => None,
    };
    let kept = match headers {
        Value::Map(entries) => entries,
        _ => Vec::new(),
    };
    let kept = kept.into_iter().filter(|(header, _)| header != FIRST_ORIGIN && header != ATTEMPT);
    let mut headers: Vec<_> = kept.map(|(header, value)| (header, value.unwrap_or_default())).collect();
    headers.push((FIRST_ORIGIN.to_owned(), name));
    headers.push((ATTEMPT.to_owned(), (attempt + 1).to_string()));
    Some(Letter { topic, partition: i32::try_from(partition).ok()?, key, payload, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(attempt: i64, raw: Value) -> Row {
        let text = |text: &str| Value::Text(text.to_owned());
        let headers = [("trace", "t"), (FIRST_ORIGIN, "products/2/7"), (ATTEMPT, "2")];
        let headers = headers.map(|(name, value)| (name.to_owned(), Some(value.to_owned())));
        let place = [text("products"), Value::Integer(2), text("k")];
        let [topic, partition, key] = place;
        vec![text("products/2/7"), Value::Integer(attempt), topic, partition, key, Value::Map(headers.into()), raw]
    }

    #[test]
    fn a_retry_keeps_the_first_origin_and_counts_the_attempt() {
        let mut tally = Tally::default();
        let letter = take(row(2, Value::Bytes(b"x".to_vec())), 3, &mut tally).unwrap();
        let expected = [("trace", "t"), (FIRST_ORIGIN, "products/2/7"), (ATTEMPT, "3")];
        assert_eq!(letter.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((letter.topic.as_str(), letter.partition, letter.key.as_deref()), ("products", 2, Some("k")));
        assert_eq!(tally, Tally::default());
    }

    #[test]
    fn poison_and_letters_without_a_message_stay() {
        let mut tally = Tally::default();
        assert_eq!(take(row(3, Value::Bytes(b"x".to_vec())), 3, &mut tally), None);
        assert_eq!(take(row(1, Value::Null), 3, &mut tally), None);
        assert_eq!(tally, Tally { sent: 0, poison: 1, without_message: 1 });
    }
}
