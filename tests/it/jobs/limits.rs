//! Paused queues, and how many jobs run at a time.

use sea_orm::{ActiveModelTrait, ActiveValue::Set, DatabaseConnection};
use watchpost::{
    entity::job_queue,
    pb::{self, JobStatus},
};

use super::{claim_now, claim_one, complete, create, story, until, wanted};
use crate::support::{TestServer, database::on_both};

async fn settings(db: &DatabaseConnection, change: impl FnOnce(&mut job_queue::ActiveModel)) {
    let mut queue = job_queue::ActiveModel {
        name: Set("default".into()),
        ..Default::default()
    };
    change(&mut queue);
    queue.insert(db).await.unwrap();
}

on_both! {
    async fn no_more_run_at_a_time_than_a_queue_allows(backend) {
        let server = TestServer::start(backend).await;
        let db = server.database.connect().await;
        settings(&db, |queue| queue.max_running = Set(Some(2))).await;
        let requests = vec![wanted("export"); 5];
        let batch = pb::BatchCreateJobsRequest { requests };
        server.jobs().batch_create_jobs(batch).await.unwrap();
        let claimed = claim_now(&server, "w", 5).await;
        assert_eq!(claimed.len(), 2);
        // Another one begins as soon as one has ended.
        let waiting = claim_one(&server, "v");
        let ending = complete(&server, &claimed[0]);
        let (third, ended) = tokio::join!(waiting, ending);
        ended.unwrap();
        complete(&server, &claimed[1]).await.unwrap();
        complete(&server, &third).await.unwrap();
        assert_eq!(claim_now(&server, "w", 5).await.len(), 2);
        story::holds(&db).await;
    }

    async fn no_more_of_a_key_run_at_a_time_than_a_queue_allows(backend) {
        let server = TestServer::start(backend).await;
        let db = server.database.connect().await;
        settings(&db, |queue| queue.max_running_per_key = Set(Some(1))).await;
        let of = |key: &str| pb::CreateJobRequest {
            concurrency_key: key.into(),
            ..wanted("export")
        };
        let requests = vec![of("a"), of("a"), of("b"), of("b"), of("")  , of("")];
        let batch = pb::BatchCreateJobsRequest { requests };
        server.jobs().batch_create_jobs(batch).await.unwrap();
        let mut claimed = claim_now(&server, "w", 10).await;
        claimed.extend(claim_now(&server, "w", 10).await);
        let mut keys: Vec<_> = claimed.into_iter().map(|job| job.job.unwrap().concurrency_key).collect();
        keys.sort();
        assert_eq!(keys, ["", "", "a", "b"]);
    }

    async fn nothing_of_a_paused_queue_is_given(backend) {
        let server = TestServer::start(backend).await;
        let db = server.database.connect().await;
        settings(&db, |queue| queue.paused = Set(true)).await;
        let job = create(&server, wanted("export")).await;
        assert!(claim_now(&server, "w", 5).await.is_empty());
        until(&server, &job.id, JobStatus::Queued).await;
    }
}
