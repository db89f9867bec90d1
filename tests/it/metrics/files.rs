//! The dashboard and the documentation name what is told.

use std::collections::BTreeSet;

use crate::support::{
    TestServer, always,
    database::{Backend, TestDatabase},
    fake_nvml::{Card, FakeNvml},
};

use super::{scrape_until, with_gpus};

/// The names of metrics in an expression of `PromQL`.
fn names(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let (mut word, mut braces, mut quoted) = (String::new(), 0, false);
    for letter in expression.chars().chain([' ']) {
        match letter {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' | '[' => braces += 1,
            '}' | ']' => braces -= 1,
            _ if braces > 0 => {}
            letter if letter.is_ascii_alphanumeric() || letter == '_' => {
                word.push(letter);
                continue;
            }
            _ => {}
        }
        if word.starts_with("DCGM_")
            || word.contains('_') && !["label_values", "histogram_quantile"].contains(&word.as_str())
        {
            names.insert(word.clone());
        }
        if letter != ' ' || !word.is_empty() {
            word.clear();
        }
    }
    // Labels that are grouped by.
    names.retain(|name| !name.starts_with("grpc_") || name.starts_with("grpc_server"));
    names
}

/// The metrics that the documentation has a row for.
fn documented() -> BTreeSet<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let text = std::fs::read_to_string(path).unwrap();
    let names = text.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        (!name.starts_with('/')).then(|| name.to_string())
    });
    names.collect()
}

#[tokio::test]
async fn every_metric_of_the_dashboard_and_the_documentation_is_told() {
    let dashboard = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboards/watchpost.json");
    let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(dashboard).unwrap()).unwrap();
    let mut expressions = Vec::new();
    let mut queue = vec![&dashboard];
    while let Some(next) = queue.pop() {
        match next {
            serde_json::Value::Object(fields) => {
                let texts = ["expr", "definition"].into_iter().filter_map(|key| fields.get(key)?.as_str());
                expressions.extend(texts);
                queue.extend(fields.values());
            }
            serde_json::Value::Array(values) => queue.extend(values),
            _ => {}
        }
    }
    assert!(expressions.len() > 30, "{}", expressions.len());

    let fake = FakeNvml::new(&[Card::geforce("GPU-0").with("memory_temperature", "38")]);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, with_gpus(&fake)).await;
    let address = server.metrics_address().unwrap();
    server.camera("door").await;
    server.rule(always("all")).await;
    server.ingest("door", vec![]).await;
    let told = scrape_until(address, |all| !all.all("watchpost_gpu_pcie_sent_bytes_per_second", &[]).is_empty()).await;
    let documented = documented();
    // Nobody has reported any.
    let unmeasured = [
        "watchpost_gpu_inferences_per_second",
        // On SQLite there is one clock.
        "watchpost_clock_skew_seconds",
        // Nothing holds the feed back.
        "watchpost_feed_holder_age_seconds",
    ];
    let unmeasured = unmeasured.map(ToString::to_string);
    let families: BTreeSet<_> = told.types.into_keys().chain(unmeasured).collect();
    assert_eq!(documented, families, "docs/metrics.md names what is told");
    let told: BTreeSet<_> = told.samples.into_iter().map(|sample| sample.name).collect();
    for expression in expressions {
        let names = names(expression);
        assert!(!names.is_empty(), "{expression}");
        for name in names {
            assert!(told.contains(&name), "{name} of {expression} is not told");
        }
    }
    server.stop().await;
}

#[test]
fn names_are_found_in_expressions() {
    let found = names("sum by (grpc_method) (rate(grpc_server_x_total{a_b=\"c_d\"}[5m])) / DCGM_X");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["DCGM_X", "grpc_server_x_total"]);
}
