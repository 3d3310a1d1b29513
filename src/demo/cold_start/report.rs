//! What a cold-start study has found: the numbers as tables and as JSON.
//!
//! It computes nothing. Invariant: both show the same numbers.

use serde::Serialize;

use super::evaluation::Figures;
use super::metrics::{CUTOFF, Estimate};

/// One study; `cold-start.json` holds it as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Report {
    pub split: &'static str,
    pub seed: u64,
    pub products: Products,
    pub users: Users,
    /// What is known of the users: products that are not cold.
    pub past: Interactions,
    /// What is to be found: cold products.
    pub held_out: Interactions,
    /// The first one is what the others are compared with.
    pub systems: Vec<System>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Products {
    /// Shown in the past.
    pub warm: usize,
    /// Shown to nobody in the past.
    pub cold: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Users {
    pub all: usize,
    /// Those with at least one click among what is held out.
    pub judged: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Interactions {
    pub shown: usize,
    pub clicked: usize,
}

/// One line of both tables.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct System {
    pub system: &'static str,
    /// Of its embedding, if it has one.
    pub dimensions: Option<usize>,
    pub among_all_cold: Figures,
    pub among_shown: Figures,
}

impl Report {
    /// What was compared, in a few lines.
    pub fn summary(&self) -> String {
        let Self { split, seed, products, users, past, held_out, .. } = self;
        format!(
            "{} products of the {split} split, seed {seed}. In the past, {} of them were shown {} times and clicked {} times; the other \
             {} are cold.\n{} of {} users clicked on a cold product; held out are {} clicks of {} times shown.\n\
             One content-based recommender for all embeddings: a user's profile is the mean of the past products clicked on minus the mean of \
             those passed over.\nMeans over users ± standard error. \"Against the first\" is the difference in NDCG@{CUTOFF}, user by user.",
            products.warm + products.cold,
            products.warm,
            past.shown,
            past.clicked,
            products.cold,
            users.judged,
            users.all,
            held_out.clicked,
            held_out.shown,
        )
    }

    /// Each set of candidates with a query whose answer is its table.
    pub fn tables(&self) -> [(String, String); 2] {
        let cold = self.products.cold;
        [
            (
                format!("Which of all {cold} cold products will a user click on?"),
                self.table(|system| &system.among_all_cold),
            ),
            ("Which of the cold products that a user was shown?".to_owned(), self.table(|system| &system.among_shown)),
        ]
    }

    fn table(&self, figures: impl Fn(&System) -> &Figures) -> String {
        let row = |(number, system): (usize, &System)| {
            let Figures { recall, ndcg, against_first } = figures(system);
            let dimensions = system.dimensions.map_or_else(String::new, |count| count.to_string());
            let against = if number == 0 { String::new() } else { with_sign(against_first) };
            let cells = [system.system.to_owned(), dimensions, plain(recall), plain(ndcg), against];
            format!("({number}, {})", cells.map(|cell| format!("'{}'", cell.replace('\'', "''"))).join(", "))
        };
        let rows: Vec<String> = self.systems.iter().enumerate().map(row).collect();
        format!(
            "SELECT system, dimensions, recall AS \"recall@{CUTOFF}\", ndcg AS \"NDCG@{CUTOFF}\", against AS \"against the first\" \
             FROM (VALUES {}) AS found(number, system, dimensions, recall, ndcg, against) ORDER BY number",
            rows.join(", ")
        )
    }
}

fn plain(Estimate { mean, standard_error }: &Estimate) -> String {
    format!("{mean:.3} ± {standard_error:.3}")
}

fn with_sign(Estimate { mean, standard_error }: &Estimate) -> String {
    format!("{mean:+.3} ± {standard_error:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{QuerySession, objects};

    fn figures(mean: f64) -> Figures {
        let of = |mean| Estimate { mean, standard_error: 0.01 };
        Figures { recall: of(mean), ndcg: of(mean / 2.0), against_first: of(-mean) }
    }

    fn report() -> Report {
        let system = |system, dimensions, mean| System {
            system,
            dimensions,
            among_all_cold: figures(mean),
            among_shown: figures(mean * 2.0),
        };
        Report {
            split: "test",
            seed: 3,
            products: Products { warm: 20, cold: 80 },
            users: Users { all: 12, judged: 11 },
            past: Interactions { shown: 360, clicked: 70 },
            held_out: Interactions { shown: 350, clicked: 60 },
            systems: vec![system("the shop's own", Some(192), 0.25), system("chance", None, 0.125)],
        }
    }

    #[tokio::test]
    async fn tables_show_the_numbers_of_the_json_file() {
        let report = report();
        let session = QuerySession::open(&[], None).await.unwrap();
        let [_, (title, sql)] = report.tables();
        assert!(title.contains("shown"), "{title}");
        let rows = objects(session.run(&sql).await.unwrap()).await.unwrap();
        assert_eq!(rows[0]["system"], "the shop's own");
        assert_eq!((&rows[0]["dimensions"], &rows[0]["against the first"]), (&"192".into(), &"".into()));
        assert_eq!((&rows[1]["recall@10"], &rows[1]["NDCG@10"]), (&"0.250 ± 0.010".into(), &"0.125 ± 0.010".into()));
        assert_eq!((&rows[1]["dimensions"], &rows[1]["against the first"]), (&"".into(), &"-0.250 ± 0.010".into()));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["systems"][1]["among_shown"]["recall@10"]["mean"], 0.25);
        assert_eq!(json["systems"][1]["dimensions"], serde_json::Value::Null);
    }

    #[test]
    fn the_summary_counts_products_users_and_interactions() {
        let told = report().summary();
        for words in [
            "100 products of the test split, seed 3",
            "20 of them",
            "80 are cold",
            "11 of 12 users",
            "60 clicks of 350",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
    }
}
