//! Transactions of others that hold the change feed back.

use std::time::Duration;

use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use tokio::time::{sleep, timeout};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::support::{database::Cluster, process::Process};

/// Time within which health has to follow a transaction that reaches an age of one minute.
const NOTICED_WITHIN: Duration = Duration::from_secs(75);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_transaction_is_named_in_the_log_and_in_health() {
    let cluster = Cluster::start().await;
    let admin = Database::connect(cluster.url("postgres")).await.unwrap();
    admin.execute_unprepared("CREATE DATABASE other").await.unwrap();
    let mut process = Process::start(&cluster.url("postgres"), "127.0.0.1:0").await;
    let channel = process.serving().await;
    let says = async |status: ServingStatus| {
        let service = "watchpost.v1.MonitorService".to_string();
        let waiting = async {
            loop {
                let request = HealthCheckRequest { service: service.clone() };
                let health = HealthClient::new(channel.clone()).check(request).await;
                if health.unwrap().into_inner().status() == status {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(NOTICED_WITHIN, waiting).await.unwrap_or_else(|_| panic!("health does not say {status:?}"));
    };
    says(ServingStatus::Serving).await;

    let url = format!("{}?application_name=nightly-report", cluster.url("other"));
    let other = Database::connect(url).await.unwrap();
    let open = other.begin().await.unwrap();
    open.execute_unprepared("CREATE TABLE report (id integer)").await.unwrap();
    let line = process.says("blocks the change feed").await;
    for part in ["pid ", "database `other`", "application `nightly-report`"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    says(ServingStatus::NotServing).await;
    open.rollback().await.unwrap();
    says(ServingStatus::Serving).await;
    process.says("no longer blocked").await;
    process.kill().await;
}
