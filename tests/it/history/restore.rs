//! PostgreSQL databases that are dumped and restored.

use sea_orm::DatabaseConnection;
use tempfile::TempDir;
use watchpost::pb::{Topic, WatchStart};

use super::{
    alerts_after, alerts_from, assert_refused, assert_tells, cursor_now, ends_replaced, execute, forgets_rule,
    history_id, knows_rule, new_alerts, raise, serve, serve_with_a_rule,
};
use crate::support::{
    always,
    database::{Cluster, TestDatabase},
    topics,
};

/// Uses up transaction ids.
const BURN: &str = "DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$";

async fn connect(cluster: &Cluster, database: &str) -> DatabaseConnection {
    TestDatabase::at(&cluster.url(database)).connect().await
}

async fn burn(cluster: &Cluster) {
    let db = connect(cluster, "postgres").await;
    execute(&db, &[BURN]).await;
    db.close().await.unwrap();
}

/// A place for a dump.
struct Dump(TempDir);

impl Dump {
    fn new() -> Self {
        Self(TempDir::with_prefix("watchpost-dump-").unwrap())
    }

    fn path(&self) -> String {
        self.0.path().join("dump").display().to_string()
    }

    async fn take(&self, cluster: &Cluster, database: &str) {
        let path = self.path();
        cluster.run("pg_dump", &["-Fc", "-f", &path, database]).await;
    }

    async fn restore(&self, cluster: &Cluster, database: &str) {
        cluster.run("createdb", &[database]).await;
        let path = self.path();
        cluster.run("pg_restore", &["-d", database, &path]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_into_a_new_cluster_is_a_history_of_its_own() {
    let (old, new) = tokio::join!(Cluster::start(), Cluster::start());
    burn(&old).await;
    let server = serve_with_a_rule(&old.url("postgres")).await;
    let mut past = raise(&server, 3).await;
    let seen = cursor_now(&server).await;
    let dump = Dump::new();
    dump.take(&old, "postgres").await;
    raise(&server, 2).await;
    let ahead = cursor_now(&server).await;
    server.stop().await;
    dump.restore(&new, "moved").await;

    // Before anybody has come to know of it, two processes start at once.
    let url = new.url("moved");
    let (one, two) = tokio::join!(serve(&url), serve(&url));
    for server in [&one, &two] {
        assert_refused(server, &seen).await;
        assert_refused(server, &ahead).await;
    }
    assert_tells(&one, &two).await;
    assert_tells(&two, &one).await;
    let rule = one.rule(always("made on one")).await;
    knows_rule(&two, &rule.id).await;

    // Nothing is told again when the ids of the new cluster pass those of the old one.
    let mut watch = two.watch(topics(&[Topic::Alerts])).await;
    burn(&new).await;
    burn(&new).await;
    let raised = raise(&one, 1).await;
    let told = new_alerts(&mut watch, raised.len()).await;
    assert_eq!(told, raised);
    let (idle, end) = (cursor_now(&one).await, watch.cursor.clone());
    drop(watch);
    one.stop().await;
    two.stop().await;

    // What was restored comes first, and cursors of the new history outlive a start.
    let server = serve(&url).await;
    let mut all = server.watch(alerts_from(WatchStart::Earliest)).await;
    past.extend(raise(&server, 1).await);
    let mut told = new_alerts(&mut all, 3).await;
    assert_eq!(told, past[..3]);
    while told.last() != past.last() {
        told.extend(new_alerts(&mut all, 1).await);
    }
    for cursor in [&idle, &end] {
        let mut resumed = server.watch(alerts_after(cursor)).await;
        // The rule that was made later fires as well.
        let told = new_alerts(&mut resumed, 2).await;
        assert_eq!(told.last(), past.last());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_into_the_same_cluster_is_noticed() {
    let cluster = Cluster::start().await;
    cluster.run("createdb", &["watchpost"]).await;
    let url = cluster.url("watchpost");
    let server = serve_with_a_rule(&url).await;
    raise(&server, 2).await;
    let before = cursor_now(&server).await;
    let dump = Dump::new();
    dump.take(&cluster, "watchpost").await;
    raise(&server, 2).await;
    let after = cursor_now(&server).await;
    let old_id = history_id(&server).await;
    server.stop().await;
    cluster.run("dropdb", &["watchpost"]).await;
    dump.restore(&cluster, "watchpost").await;

    let server = serve(&url).await;
    assert_ne!(history_id(&server).await, old_id);
    for cursor in [&before, &after] {
        assert_refused(&server, cursor).await;
    }
    raise(&server, 5).await;
    assert_refused(&server, &after).await;
    assert_tells(&server, &server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_restored_under_running_servers_ends_their_watches() {
    let cluster = Cluster::start().await;
    cluster.run("createdb", &["watchpost"]).await;
    let url = cluster.url("watchpost");
    let (one, two) = (serve_with_a_rule(&url).await, serve(&url).await);
    raise(&one, 2).await;
    let dump = Dump::new();
    dump.take(&cluster, "watchpost").await;
    let lost = one.rule(always("made after the dump")).await;
    knows_rule(&two, &lost.id).await;
    let mut watches = [one.watch(topics(&[])).await, two.watch(topics(&[])).await];
    let cursors = watches.each_ref().map(|watch| watch.cursor.clone());
    let path = dump.path();
    let restore = ["-c", "--if-exists", "-1", "-d", "watchpost", &path];
    cluster.run("pg_restore", &restore).await;

    for watch in &mut watches {
        ends_replaced(watch).await;
    }
    for server in [&one, &two] {
        for cursor in &cursors {
            assert_refused(server, cursor).await;
        }
        forgets_rule(server, &lost.id).await;
    }
    assert_tells(&one, &two).await;
    let rule = one.rule(always("made after the restore")).await;
    knows_rule(&two, &rule.id).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_by_the_server_of_the_database_takes_its_place() {
    let cluster = Cluster::start().await;
    cluster.run("createdb", &["watchpost"]).await;
    let url = cluster.url("watchpost");
    let server = serve_with_a_rule(&url).await;
    raise(&server, 1).await;
    let before = cursor_now(&server).await;
    server.stop().await;
    cluster.run("createdb", &["-T", "watchpost", "copy"]).await;
    let server = serve(&url).await;
    raise(&server, 1).await;
    let after = cursor_now(&server).await;
    server.stop().await;
    let db = connect(&cluster, "postgres").await;
    execute(&db, &["DROP DATABASE watchpost", "ALTER DATABASE copy RENAME TO watchpost"]).await;
    db.close().await.unwrap();

    let server = serve(&url).await;
    for cursor in [&before, &after] {
        assert_refused(&server, cursor).await;
    }
    assert_tells(&server, &server).await;
    server.stop().await;
}
