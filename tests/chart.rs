//! What the chart, the alerts and README say about the program, held against the program itself.
//!
//! The manifests themselves are checked by tests/helm/lint.sh, with the tools for it; nothing here needs them.

use std::collections::{BTreeMap, BTreeSet};

use assay::metrics::{Description, MetricKind, Metrics};
use serde_json::Value;

fn read(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every series that a worker can have, with its labels.
fn series() -> BTreeMap<String, BTreeSet<&'static str>> {
    let metrics = Metrics::new();
    let mut series = BTreeMap::new();
    for Description { name, kind, labels, .. } in metrics.descriptions() {
        let labels: BTreeSet<_> = labels.iter().copied().collect();
        if *kind == MetricKind::Histogram {
            series.insert(format!("{name}_sum"), labels.clone());
            series.insert(format!("{name}_count"), labels.clone());
            series.insert(format!("{name}_bucket"), labels.into_iter().chain(["le"]).collect());
        } else {
            series.insert((*name).to_owned(), labels);
        }
    }
    series
}

/// Labels that scraping adds.
const ADDED: [&str; 4] = ["namespace", "pod", "instance", "job"];

/// Each series that an expression names, with the labels that its selector asks for.
fn selectors(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("assay_") {
        let after_word = rest[..at].ends_with(is_name);
        let name: String = rest[at..].chars().take_while(|c| is_name(*c)).collect();
        rest = &rest[at + name.len()..];
        if after_word {
            continue;
        }
        let matchers =
            rest.strip_prefix('{').and_then(|inside| inside.split_once('}')).map_or("", |(inside, _)| inside);
        let labels = matchers.split(',').filter_map(|matcher| matcher.split(['=', '!']).next());
        found.push((name, labels.map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()));
    }
    found
}

/// The labels that an expression groups or joins by.
fn groupings(expression: &str) -> Vec<String> {
    let lists = ["by (", "on (", "ignoring ("].into_iter().flat_map(|word| expression.split(word).skip(1));
    let labels = lists.filter_map(|rest| rest.split_once(')')).flat_map(|(list, _)| list.split(','));
    labels.map(|label| label.trim().to_owned()).collect()
}

fn complaints(place: &str, expression: &str) -> Vec<String> {
    let series = series();
    let mut wrong = Vec::new();
    let mut carried: BTreeSet<&str> = ADDED.into();
    for (name, labels) in selectors(expression) {
        let Some(known) = series.get(&name) else {
            wrong.push(format!("{place}: there is no series {name}"));
            continue;
        };
        carried.extend(known);
        let has = |label: &String| known.contains(label.as_str()) || ADDED.contains(&label.as_str());
        wrong.extend(labels.iter().filter(|label| !has(label)).map(|label| format!("{place}: {name} has no {label}")));
    }
    let grouped = groupings(expression);
    wrong.extend(
        grouped
            .iter()
            .filter(|label| !carried.contains(label.as_str()))
            .map(|label| format!("{place}: no series of it has the label {label}")),
    );
    wrong
}

fn dashboard() -> Value {
    serde_json::from_str(&read("helm/dashboards/assay.json")).expect("the dashboard is JSON")
}

/// Titles and expressions of all panels.
fn panels(dashboard: &Value) -> Vec<(String, String)> {
    let panels = dashboard["panels"].as_array().expect("a list of panels").iter();
    let targets = panels.flat_map(|panel| {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (title.clone(), target["expr"].as_str().expect("a query").to_owned()))
    });
    targets.collect()
}

/// Names and expressions of all alerts. The file is read as text: an expression is the block behind `expr: |`.
fn alerts() -> Vec<(String, String)> {
    let rules = read("helm/rules/assay.yaml");
    let alerts = rules.split("- alert: ").skip(1);
    let alerts = alerts.map(|rule| {
        let name = rule.lines().next().expect("a name").trim().to_owned();
        let block = rule.split_once("expr: |\n").unwrap_or_else(|| panic!("{name} has no block expr: |")).1;
        let indent = block.len() - block.trim_start().len();
        let lines = block.lines().take_while(|line| line.len() - line.trim_start().len() >= indent);
        (name, lines.collect::<Vec<_>>().join("\n"))
    });
    alerts.collect()
}

#[test]
fn the_dashboard_asks_only_for_metrics_and_labels_that_exist() {
    let dashboard = dashboard();
    let queries = panels(&dashboard);
    assert!(queries.len() > 30, "only {} queries were found", queries.len());
    let wrong: Vec<_> = queries.iter().flat_map(|(title, query)| complaints(title, query)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let query = variable["definition"].as_str().unwrap_or_default();
        assert_eq!(complaints("variable", query), Vec::<String>::new());
    }
}

#[test]
fn every_metric_is_on_the_dashboard() {
    let queries: String = panels(&dashboard()).into_iter().map(|(_, query)| query + "\n").collect();
    let missing: Vec<_> =
        Metrics::new().descriptions().iter().map(|metric| metric.name).filter(|name| !queries.contains(name)).collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn alerts_ask_only_for_metrics_and_labels_that_exist() {
    let alerts = alerts();
    assert!(alerts.len() >= 8, "only {} alerts were found", alerts.len());
    let wrong: Vec<_> = alerts.iter().flat_map(|(name, query)| complaints(name, query)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_alert_has_a_test_and_a_line_in_the_runbook() {
    let (tests, readme) = (read("helm/rules/assay_test.yaml"), read("README.md"));
    for (name, _) in alerts() {
        assert!(tests.contains(&format!("alertname: {name}\n")), "{name} is not tested to fire");
        assert!(readme.lines().any(|line| line.starts_with(&format!("| `{name}` |"))), "{name} has no line in README");
    }
}

#[test]
fn the_list_of_metrics_in_the_readme_is_that_of_the_code() {
    let listing = Metrics::new().listing();
    assert!(read("README.md").contains(&listing), "README's list of metrics should be:\n\n{listing}");
}

#[test]
fn a_query_for_what_does_not_exist_is_found() {
    assert_eq!(complaints("x", "rate(assay_nothing_total[5m])"), ["x: there is no series assay_nothing_total"]);
    assert_eq!(complaints("x", "assay_commit_seconds"), ["x: there is no series assay_commit_seconds"]);
    assert_eq!(complaints("x", "assay_lag_records{color=\"red\"}"), ["x: assay_lag_records has no color"]);
    assert_eq!(complaints("x", "sum by (model) (assay_lag_records)"), ["x: no series of it has the label model"]);
    assert_eq!(complaints("x", "sum by (le, pod) (assay_commit_seconds_bucket{job=\"a\"})"), Vec::<String>::new());
}

/// Keys that the chart sets itself.
const OF_THE_CHART: [&str; 2] = ["jobs", "server.address"];

#[test]
fn the_schema_of_values_knows_the_keys_of_the_configuration_and_no_others() {
    let defaults: toml::Table = toml::from_str(&read("config/default.toml")).expect("the defaults are TOML");
    let schema: Value = serde_json::from_str(&read("helm/values.schema.json")).expect("the schema is JSON");
    let (mut in_code, mut in_chart) = (BTreeSet::new(), BTreeSet::new());
    keys_of_table("", &defaults, &mut in_code);
    keys_of_schema("", &schema["properties"]["config"], &schema, &mut in_chart);
    in_code.retain(|key| !OF_THE_CHART.contains(&key.as_str()));
    let missing: Vec<_> = in_code.difference(&in_chart).collect();
    let unknown: Vec<_> = in_chart.difference(&in_code).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "not in the chart: {missing:?}; not in the code: {unknown:?}");
}

/// An empty table is a map of the user's; its name alone counts.
fn keys_of_table(prefix: &str, table: &toml::Table, keys: &mut BTreeSet<String>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => keys_of_table(&key, inner, keys),
            _ => drop(keys.insert(key)),
        }
    }
}

fn keys_of_schema(prefix: &str, node: &Value, root: &Value, keys: &mut BTreeSet<String>) {
    let node = match node["$ref"].as_str() {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).expect("a definition"),
        None => node,
    };
    match node["properties"].as_object() {
        Some(properties) => {
            for (name, inner) in properties {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                keys_of_schema(&key, inner, root, keys);
            }
        }
        None => drop(keys.insert(prefix.to_owned())),
    }
}
