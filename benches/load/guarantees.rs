//! The check of what watches are promised (`tests/checker`), for as long as one likes.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Database};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    checker::{Plan, run},
    cluster::Cluster,
};

/// How often a server is killed in one run, each of which has a database of its own.
const KILLS: u32 = 10;

/// Kills servers `cycles` times, and prints what each run found. Returns whether all promises were kept.
pub async fn check(cluster: Option<&Cluster>, cycles: u32, seed: u64) -> bool {
    let (mut kept, mut done, mut at) = (true, 0, 0);
    while done < cycles {
        let kills = KILLS.min(cycles - done);
        let folder = TempDir::new().unwrap();
        let database_url = match cluster {
            Some(cluster) => database(cluster, &format!("guarantees_{at}")).await,
            None => format!("sqlite://{}/watchpost.db", folder.path().display()),
        };
        let plan = Plan {
            database_url,
            servers: if cluster.is_some() { 2 } else { 1 },
            kills,
            seed: seed + at,
            prune: at % 2 == 1,
            patience: Duration::from_mins(2),
        };
        let report = run(plan.clone()).await;
        let line = json!({
            "figure": "guarantees",
            "database": if cluster.is_some() { "postgres" } else { "sqlite" },
            "goal": "no violations",
            "seed": plan.seed,
            "kills": report.kills,
            "pruned": plan.prune,
            "subscribers": report.subscribers,
            "changes": report.changes,
            "delivered": report.delivered,
            "reconnects": report.reconnects,
            "fallen_out": report.fallen_out,
            "violations": report.violations,
        });
        println!("{line}");
        kept &= report.violations.is_empty();
        done += kills;
        at += 1;
    }
    kept
}

/// A new database of this name.
pub async fn database(cluster: &Cluster, name: &str) -> String {
    let db = Box::pin(Database::connect(cluster.url("postgres")));
    let db = db.await.unwrap();
    let create = format!("CREATE DATABASE {name}");
    db.execute_unprepared(&create).await.unwrap();
    db.close().await.unwrap();
    cluster.url(name)
}
