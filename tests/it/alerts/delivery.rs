//! What delivering notifications will do to alerts: many are moved at once.

use uuid::Uuid;
use watchpost::{
    alerts::lifecycle::change,
    db::{Db, Settings, Synchronous},
    pb::{self, AlertChangeKind, Topic},
};

use super::{Acknowledged, Delivered, Dismissed, Pending, advance, alert, get, ready, transitions};
use crate::support::{
    TestServer,
    database::{Backend, on_both},
    topics,
};

/// The database of a server, beside it.
pub async fn beside(server: &TestServer) -> Db {
    let settings =
        Settings { url: server.database.url().into(), connections: 4, sqlite_synchronous: Synchronous::Normal };
    Db::connect(&settings).await.unwrap()
}

pub async fn deliver(db: &Db, ids: &[Uuid]) -> Vec<pb::Alert> {
    db.write(async |tx| change::deliver(tx, ids, "mail").await).await.unwrap()
}

#[on_both]
async fn those_of_many_alerts_that_are_pending_are_delivered(backend: Backend) {
    let server = ready(backend).await;
    let db = beside(&server).await;
    let mut alerts = Vec::new();
    for status in [Pending, Acknowledged, Pending, Dismissed, Pending] {
        alerts.push(alert(&server, status).await);
    }
    let mut watch = server.watch(topics(&[Topic::Alerts])).await;
    let mut ids: Vec<Uuid> = alerts.iter().rev().map(|alert| alert.id.parse().unwrap()).collect();
    // Twice, and one that there is not.
    ids.extend([ids[0], Uuid::now_v7()]);
    let delivered = deliver(&db, &ids).await;
    assert_eq!(delivered.len(), 3);
    for (before, after) in [&alerts[0], &alerts[2], &alerts[4]].into_iter().zip(&delivered) {
        assert!(after.delivered_at.is_some());
        let expected = pb::Alert {
            status: Delivered.into(),
            delivered_at: after.delivered_at,
            updated_at: after.delivered_at,
            version_id: 2,
            ..before.clone()
        };
        assert_eq!(after, &expected);
        assert_eq!(&get(&server, &before.id).await.unwrap().into_inner(), after);
        assert_eq!(watch.alert().await, (AlertChangeKind::Delivered, after.clone()));
        let kept = transitions::of(&server, &before.id).await;
        let told = (kept[1].from_status(), kept[1].to_status(), kept[1].version_id, kept[1].actor.as_str());
        assert_eq!((kept.len(), told), (2, (Pending, Delivered, 2, "mail")));
    }
    for at in [1, 3] {
        assert_eq!(get(&server, &alerts[at].id).await.unwrap().into_inner(), alerts[at]);
    }
    assert_eq!(deliver(&db, &ids).await, []);
    assert_eq!(deliver(&db, &[]).await, []);
    let acknowledged = advance(&server, &alerts[0].id, Acknowledged, Some(2)).await.unwrap().into_inner();
    assert_eq!(watch.alert().await, (AlertChangeKind::Acknowledged, acknowledged));
    db.close().await;
    server.stop().await;
}
