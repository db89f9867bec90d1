//! Full text that the database keeps by itself.

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};

use super::rows;
use crate::support::database::{Backend, TestDatabase, on_both};

async fn numbers(db: &DatabaseConnection, query: &str) -> Vec<i64> {
    let query = Statement::from_string(db.get_database_backend(), query);
    let rows = db.query_all_raw(query).await.unwrap();
    rows.iter().map(|row| row.try_get("", "id").unwrap()).collect()
}

/// The ids of the rows that hold a word, best first.
async fn find(backend: Backend, db: &DatabaseConnection, word: &str) -> Vec<i64> {
    let query = match backend {
        Backend::Sqlite => format!(
            "SELECT rowid AS id FROM logs_fts WHERE logs_fts MATCH '{word}'
             ORDER BY bm25(logs_fts, 10.0, 4.0, 2.0)"
        ),
        Backend::Postgres => format!(
            "SELECT id FROM logs, plainto_tsquery('english', '{word}') AS query
             WHERE search_vector @@ query ORDER BY ts_rank(search_vector, query) DESC"
        ),
    };
    numbers(db, &query).await
}

#[on_both]
async fn logs_are_found_by_their_words(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    db.execute_unprepared(
        "INSERT INTO logs (level, component, message) VALUES
             ('INFO', 'camera', 'three files were uploaded'),
             ('ERROR', 'storage', 'the camera stopped uploading'),
             ('WARNING', 'detector', 'the queue is long')",
    )
    .await
    .unwrap();
    // A message weighs more than a component, and a word is found in its other forms.
    assert_eq!(find(backend, &db, "camera").await, [2, 1]);
    assert_eq!(find(backend, &db, "upload").await.len(), 2);
    assert_eq!(find(backend, &db, "warning").await, [3]);

    let update = "UPDATE logs SET message = 'the disk is full' WHERE id = 2";
    db.execute_unprepared(update).await.unwrap();
    assert_eq!(find(backend, &db, "camera").await, [1]);
    assert_eq!(find(backend, &db, "disk").await, [2]);
    db.execute_unprepared("DELETE FROM logs WHERE id = 2").await.unwrap();
    assert_eq!(find(backend, &db, "disk").await, Vec::<i64>::new());
}

#[on_both]
async fn a_text_of_any_length_is_kept(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let db = database.connect().await;
    // More different words than a text vector of PostgreSQL can hold.
    let words: Vec<String> = (0..400_000).map(|word| format!("{word:x}")).collect();
    let long = words.join(" ");
    let insert = "INSERT INTO logs (level, component, message)";
    let insert = format!("{insert} VALUES ('INFO', 'x', '{long}')");
    db.execute_unprepared(&insert).await.unwrap();
    rows::insert_everywhere(backend, &db).await;
    let update = format!("UPDATE events SET summary = '{long}', reasoning = '{long}'");
    db.execute_unprepared(&update).await.unwrap();
}

#[tokio::test]
async fn events_and_detections_are_found_by_their_words_on_postgres() {
    let database = TestDatabase::migrated(Backend::Postgres).await;
    let db = database.connect().await;
    rows::insert_everywhere(Backend::Postgres, &db).await;
    db.execute_unprepared(
        "UPDATE events SET summary = 'a parcel was left', reasoning = 'nobody rang',
            object_types = 'person,dog'",
    )
    .await
    .unwrap();
    db.execute_unprepared(
        r#"UPDATE detections SET object_type = 'car', enrichment_data = '{
            "vehicle": {"make": "Volvo", "model": "Amazon", "color": "teal"},
            "pet": {"breed": "beagle", "species": "canine"}}'"#,
    )
    .await
    .unwrap();
    let searches = [
        ("events", &["parcels", "ringing", "dog", "porch"][..]),
        ("detections", &["cars", "porch", "volvo", "amazon", "teal", "beagle", "canine"]),
    ];
    for (table, words) in searches {
        for word in words {
            let query = format!("SELECT id FROM {table} WHERE search_vector @@ plainto_tsquery('english', '{word}')");
            let expected: &[i64] = if *word == "ringing" { &[] } else { &[1] };
            assert_eq!(numbers(&db, &query).await, expected, "{word} in {table}");
        }
    }
    db.execute_unprepared("UPDATE detections SET enrichment_data = NULL").await.unwrap();
    let query = "SELECT id FROM detections WHERE search_vector @@ to_tsquery('english', 'volvo')";
    assert_eq!(numbers(&db, query).await, Vec::<i64>::new());
}
