//! What the database says has happened.

use sea_orm::{ConnectOptions, ConnectionTrait, Database, Statement};

use super::{Map, history::What};

/// What is stored of an alert.
#[derive(Debug, Clone)]
pub struct Alert {
    pub camera: String,
    pub severity: String,
    /// The version that it has come to; each version was a change.
    pub version: i64,
}

/// What is stored.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// The camera of every event.
    pub events: Map<i64, String>,
    pub alerts: Map<String, Alert>,
}

impl Truth {
    /// Everything that has changed.
    pub fn all(&self) -> impl Iterator<Item = What> {
        let events = self.events.keys().map(|id| What::Event(*id));
        let alerts = self
            .alerts
            .iter()
            .flat_map(|(id, alert)| (1..=alert.version).map(|version| What::Alert(id.clone(), version)));
        events.chain(alerts)
    }

    pub fn changes(&self) -> usize {
        self.all().count()
    }
}

/// Reads what is stored.
pub async fn read(url: &str) -> Truth {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    let db = Box::pin(Database::connect(options)).await.unwrap();
    let rows = async |sql: &str| {
        let statement = Statement::from_string(db.get_database_backend(), sql);
        db.query_all_raw(statement).await.unwrap()
    };
    let mut truth = Truth::default();
    for row in rows("SELECT id, camera_id FROM events").await {
        let id = row.try_get("", "id").unwrap();
        truth.events.insert(id, row.try_get("", "camera_id").unwrap());
    }
    let alerts = "SELECT id, camera_id, CAST(severity AS text) AS severity, version_id FROM alerts";
    for row in rows(alerts).await {
        let id: uuid::Uuid = row.try_get("", "id").unwrap();
        let version: i32 = row.try_get("", "version_id").unwrap();
        let alert = Alert {
            camera: row.try_get("", "camera_id").unwrap(),
            severity: row.try_get("", "severity").unwrap(),
            version: version.into(),
        };
        truth.alerts.insert(id.to_string(), alert);
    }
    db.close().await.unwrap();
    truth
}
