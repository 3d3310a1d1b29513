//! What a dead letter is, in SQL over the tables of one job.
//!
//! A letter is named by its first origin, `topic/partition/offset` of the record that was rejected first. A retry carries that
//! name and its attempt in two headers, so all rejections of one letter are found again. A letter is cured when a row of results
//! carries its name, or when its asset has a row of results that lies behind the letter's last rejection. Invariant: a letter
//! is its last rejection; earlier ones are its history.

/// The header that holds a letter's name.
pub const FIRST_ORIGIN: &str = "assay-first-origin";
/// The header that counts how often the message was worked on, this time included.
pub const ATTEMPT: &str = "assay-attempt";

/// Which letters are meant; all conditions hold at once.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    pub stage: Option<String>,
    pub reason: Option<String>,
    pub asset: Option<String>,
    /// Names of letters; empty means any.
    pub letters: Vec<String>,
    /// RFC 3339; compared with the time of the last rejection.
    pub since: Option<String>,
    pub until: Option<String>,
    /// Also letters that were cured.
    pub cured: bool,
}

impl Selection {
    /// Whether it selects every open letter.
    pub fn is_everything(&self) -> bool {
        let conditions = [&self.stage, &self.reason, &self.asset, &self.since, &self.until];
        conditions.iter().all(|condition| condition.is_none()) && self.letters.is_empty()
    }

    fn conditions(&self) -> Vec<String> {
        let equal = |column: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("letters.{column} = {}", quoted(value)))
        };
        let time = |comparison: &str, value: &Option<String>| {
            value
                .as_ref()
                .map(|value| format!("letters.processed_time {comparison} CAST({} AS TIMESTAMP)", quoted(value)))
        };
        let names = self.letters.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        [
            Some("letters.age = 1".to_owned()),
            (!self.cured).then(|| "NOT letters.cured".to_owned()),
            equal("stage", &self.stage),
            equal("reason", &self.reason),
            equal("asset_id", &self.asset),
            time(">=", &self.since),
            time("<", &self.until),
            (!self.letters.is_empty()).then(|| format!("letters.letter IN ({names})")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The letters that are meant, oldest first, with these columns of `letters`.
    pub(super) fn sql(&self, columns: &str, limit: Option<usize>) -> String {
        let conditions = self.conditions().join(" AND ");
        let limit = limit.map_or(String::new(), |limit| format!(" LIMIT {limit}"));
        format!(
            "{} SELECT {columns} FROM letters WHERE {conditions} \
             ORDER BY letters.processed_time, letters.letter{limit}",
            letters()
        )
    }
}

/// All rejections of one letter, in the order of its attempts.
pub(super) fn history(letter: &str, columns: &str) -> String {
    format!(
        "{} SELECT {columns} FROM letters WHERE letters.letter = {} ORDER BY letters.attempt, age DESC",
        letters(),
        quoted(letter)
    )
}

/// Every rejection with the name of its letter, its attempt, its age within the letter (1 is the last) and whether the letter
/// is cured.
fn letters() -> String {
    format!(
        "WITH named AS (\
           SELECT *, coalesce(headers['{FIRST_ORIGIN}'], \
                              concat(topic, '/', CAST(partition AS VARCHAR), '/', CAST(\"offset\" AS VARCHAR))) AS letter, \
                  coalesce(TRY_CAST(headers['{ATTEMPT}'] AS BIGINT), 1) AS attempt \
           FROM rejections), \
         aged AS (\
           SELECT *, row_number() OVER (PARTITION BY letter ORDER BY attempt DESC, \"offset\" DESC) AS age FROM named), \
         answered AS (\
           SELECT DISTINCT headers['{FIRST_ORIGIN}'] AS letter FROM results WHERE headers['{FIRST_ORIGIN}'] IS NOT NULL), \
         newest AS (\
           SELECT topic, partition, asset_id, max(\"offset\") AS \"offset\" FROM results GROUP BY topic, partition, asset_id), \
         letters AS (\
           SELECT aged.*, answered.letter IS NOT NULL OR coalesce(newest.\"offset\" > aged.\"offset\", false) AS cured \
           FROM aged LEFT JOIN answered ON answered.letter = aged.letter \
           LEFT JOIN newest ON newest.topic = aged.topic AND newest.partition = aged.partition \
                           AND newest.asset_id = aged.asset_id)"
    )
}

/// A text as SQL writes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_condition_stays_inside_of_it() {
        let reason = Some("x' OR 'a' = 'a".to_owned());
        let sql = Selection { reason, ..Selection::default() }.sql("letter", Some(3));
        assert!(sql.contains("letters.reason = 'x'' OR ''a'' = ''a'"), "{sql}");
        assert!(sql.ends_with("LIMIT 3"), "{sql}");
    }

    #[test]
    fn only_a_selection_without_conditions_is_everything() {
        assert!(Selection { cured: true, ..Selection::default() }.is_everything());
        assert!(!Selection { stage: Some("fetch".into()), ..Selection::default() }.is_everything());
        assert!(!Selection { letters: vec!["t/0/1".into()], ..Selection::default() }.is_everything());
    }
}
