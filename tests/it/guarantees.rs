//! What watches are promised, while servers are killed: see `tests/checker`.

use std::time::Duration;

use sea_orm::ConnectionTrait;

use crate::{
    checker::{Plan, Report, run},
    support::{
        database::{Backend, TestDatabase, on_both},
        seed,
    },
};

/// Commits take a while, and end in another order than they began.
const SLOW_COMMITS: &str = "
    CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_sleep(random() * 0.02);
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON events
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_commit()";

/// With one number for all transactions, the order of the feed is that of `seq` alone.
const PLAIN_SEQ: &str = "ALTER TABLE changes ALTER COLUMN xid SET DEFAULT '1'::xid8";

/// A database, and how many servers it is for.
async fn database(backend: Backend) -> (TestDatabase, usize) {
    let database = TestDatabase::migrated(backend).await;
    if backend == Backend::Sqlite {
        return (database, 1);
    }
    let db = database.connect().await;
    db.execute_unprepared(SLOW_COMMITS).await.unwrap();
    db.close().await.unwrap();
    (database, 2)
}

fn plan(database: &TestDatabase, servers: usize, kills: u32, prune: bool) -> Plan {
    Plan {
        database_url: database.url().to_string(),
        servers,
        kills,
        seed: seed(u64::from(std::process::id())),
        prune,
        patience: Duration::from_mins(3),
    }
}

async fn check(database: &TestDatabase, servers: usize, kills: u32, prune: bool) -> Report {
    let plan = plan(database, servers, kills, prune);
    let report = run(plan.clone()).await;
    // The seed is worth knowing.
    assert_eq!(report.violations, Vec::<String>::new(), "{plan:?}");
    report
}

#[on_both]
async fn nothing_is_lost_repeated_mixed_up_or_invented(backend: Backend) {
    let (database, servers) = database(backend).await;
    let report = check(&database, servers, 4, false).await;
    assert!(report.changes > 100 && report.delivered > report.changes * report.subscribers / 4);
    assert!(report.reconnects > report.kills as usize && report.fallen_out == 0);
}

#[on_both]
async fn whoever_falls_out_of_a_pruned_feed_is_told_so_and_nothing_else_is_lost(backend: Backend) {
    // On a slow machine nobody may be late enough.
    for _ in 0..4 {
        let (database, servers) = database(backend).await;
        if check(&database, servers, 4, true).await.fallen_out > 0 {
            return;
        }
    }
    panic!("nobody has fallen out");
}

/// The check can fail: a feed in the order of `seq` loses what commits late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_of_plain_seq_is_found_to_lose_changes() {
    // How much is lost is a matter of luck.
    for _ in 0..4 {
        let (database, servers) = database(Backend::Postgres).await;
        let db = database.connect().await;
        db.execute_unprepared(PLAIN_SEQ).await.unwrap();
        db.close().await.unwrap();
        let plan = Plan {
            // Who has lost the last event waits for it in vain.
            patience: Duration::from_secs(5),
            ..plan(&database, servers, 1, false)
        };
        let found = run(plan).await.violations;
        if found.iter().any(|violation| violation.contains("never came")) {
            return;
        }
    }
    panic!("no loss was found");
}
