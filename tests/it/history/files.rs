//! SQLite files that are copied and put back.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use watchpost::pb::WatchStart;

use super::{
    alerts_after, alerts_from, assert_refused, assert_tells, cursor_now, history_id, new_alerts, raise, serve,
    serve_with_a_rule,
};
/// A folder with a database.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::with_prefix("watchpost-history-").unwrap())
    }

    fn url(&self) -> String {
        format!("sqlite://{}", self.file("").display())
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.0.path().join(format!("watchpost.db{suffix}"))
    }

    /// Copies the files with these suffixes, as far as they are there.
    fn copy_to(&self, other: &Path, suffixes: &[&str]) {
        for suffix in suffixes {
            let from = self.file(suffix);
            if from.exists() {
                fs::copy(&from, other.join(from.file_name().unwrap())).unwrap();
            }
        }
    }

    fn remove_all(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(self.file(suffix));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_put_back_is_noticed() {
    let (folder, copy) = (Folder::new(), Folder::new());
    let server = serve_with_a_rule(&folder.url()).await;
    raise(&server, 2).await;
    let before = cursor_now(&server).await;
    server.stop().await;
    folder.copy_to(copy.0.path(), &["", "-wal"]);

    let server = serve(&folder.url()).await;
    let lost = raise(&server, 3).await;
    let mut watch = server.watch(alerts_after(&before)).await;
    assert_eq!(new_alerts(&mut watch, 3).await, lost);
    let after = watch.cursor.clone();
    let lost_id = history_id(&server).await;
    drop(watch);
    server.stop().await;
    folder.remove_all();
    copy.copy_to(folder.0.path(), &["", "-wal"]);

    let server = serve(&folder.url()).await;
    assert_refused(&server, &after).await;
    assert_ne!(history_id(&server).await, lost_id);
    // Up to the copy the history is the same.
    let raised = raise(&server, 4).await;
    let mut watch = server.watch(alerts_after(&before)).await;
    assert_eq!(new_alerts(&mut watch, 4).await, raised);
    // Now the feed is further than it was.
    assert_refused(&server, &after).await;
    server.stop().await;
    let server = serve(&folder.url()).await;
    assert_refused(&server, &after).await;
    assert_tells(&server, &server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_files_in_use_is_noticed_with_its_log_and_without_it() {
    for suffixes in [&["", "-wal"][..], &[""]] {
        let (folder, copy) = (Folder::new(), Folder::new());
        let server = serve_with_a_rule(&folder.url()).await;
        server.stop().await;
        let server = serve(&folder.url()).await;
        raise(&server, 2).await;
        folder.copy_to(copy.0.path(), suffixes);
        // Named by the start that the copy knows too, but ahead of it.
        raise(&server, 1).await;
        let after = cursor_now(&server).await;
        server.stop().await;
        folder.remove_all();
        copy.copy_to(folder.0.path(), suffixes);

        let server = serve(&folder.url()).await;
        assert_refused(&server, &after).await;
        raise(&server, 9).await;
        assert_refused(&server, &after).await;
        assert_tells(&server, &server).await;
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_that_go_on_separately_are_two_histories() {
    let (folder, copy) = (Folder::new(), Folder::new());
    let server = serve_with_a_rule(&folder.url()).await;
    let raised = raise(&server, 1).await;
    let shared = cursor_now(&server).await;
    server.stop().await;
    folder.copy_to(copy.0.path(), &["", "-wal"]);

    let (one, two) = (serve(&folder.url()).await, serve(&copy.url()).await);
    let of_one = raise(&one, 2).await;
    let of_two = raise(&two, 2).await;
    for (server, other, own) in [(&one, &two, &of_one), (&two, &one, &of_two)] {
        let mut watch = server.watch(alerts_after(&shared)).await;
        assert_eq!(&new_alerts(&mut watch, 2).await, own);
        assert_refused(other, &watch.cursor).await;
        let mut all = server.watch(alerts_from(WatchStart::Earliest)).await;
        let expected: Vec<_> = raised.iter().chain(own).cloned().collect();
        assert_eq!(new_alerts(&mut all, 3).await, expected);
    }
    one.stop().await;
    two.stop().await;
}
