//! Every bit of the mask that says what holds clocks down, the highest one included.

use sea_orm::{QueryFilter, QueryOrder};

use super::*;
use crate::gpu::report::Reporter;

/// Bit 63, a bit without a name, and the power limit.
const MASK: u64 = 1 << 63 | 1 << 41 | 0x4;

/// A batch of samples that have this mask.
fn batch(sequence: i64, times: &[i64]) -> pb::RecordGpuStatsRequest {
    let sample = |millis: &i64| pb::GpuStats {
        recorded_at: at(*millis),
        gpu_uuid: Some("GPU-1".into()),
        throttle_reasons: Some(MASK.cast_signed()),
        ..Default::default()
    };
    pb::RecordGpuStatsRequest {
        reporter_id: "shed-1".into(),
        host: "shed".into(),
        sequence,
        gpu_stats: times.iter().map(sample).collect(),
        ..Default::default()
    }
}

#[on_both]
async fn the_highest_bit_and_bits_without_a_name_are_kept_and_counted(backend: Backend) {
    let database = TestDatabase::migrated(backend).await;
    let server = TestServer::start_with(database, |settings| {
        settings.metrics_listen = Some("127.0.0.1:0".into());
    })
    .await;
    let db = server.database.connect().await;
    let start = midnight(2);
    let mut reporter = Reporter::open(&server).await;
    let times = [start, start + 1_000, start + 2_000];
    assert_eq!(reporter.report(batch(1, &times)).await.unwrap(), (1, false));
    let rows = gpu_stats::Entity::find()
        .filter(gpu_stats::COLUMN.gpu_uuid.eq("GPU-1"))
        .order_by_asc(gpu_stats::Column::Id)
        .all(&db)
        .await
        .unwrap();
    let masks: Vec<_> = rows.iter().map(|row| row.throttle_reasons).collect();
    assert_eq!(masks, [Some(MASK.cast_signed()); 3]);
    let listed = server.gpu_stats().list_gpu_stats(pb::ListGpuStatsRequest::default()).await;
    for stats in listed.unwrap().into_inner().gpu_stats {
        assert_eq!(stats.throttle_reasons.map(i64::cast_unsigned), Some(MASK));
    }

    // By the sample, and rolled up.
    let throttle = async || {
        let told = aggregate(&server, request(start, start + MINUTE, MINUTE)).await;
        let told = told[0].buckets[0].throttle.iter();
        told.map(|held| (held.reason(), held.time, held.bits)).collect::<Vec<_>>()
    };
    let held = Some(time::duration_from_millis(3_500));
    let expected = [
        (ThrottleReason::SwPowerCap, held, 0x4),
        (ThrottleReason::Other, held, 1 << 41),
        (ThrottleReason::Unknown, held, 1 << 63),
    ];
    assert_eq!(throttle().await, expected);
    rolled_up(&db).await;
    without_samples(&db).await;
    assert_eq!(throttle().await, expected);

    let now = chrono::Utc::now().timestamp_millis();
    assert_eq!(reporter.report(batch(2, &[now])).await.unwrap(), (2, false));
    let (_, text) = crate::metrics::get(server.metrics_address().unwrap(), "/metrics").await;
    let name = "watchpost_gpu_throttle_reason{gpu=\"\",UUID=\"GPU-1\",reason=";
    for told in ["\"unknown\"} 1", "\"bit_41\"} 1", "\"sw_power_cap\"} 1", "\"gpu_idle\"} 0"] {
        assert!(text.contains(&format!("{name}{told}")), "{told} is not in {text}");
    }
    assert!(text.contains("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{"), "{text}");
    db.close().await.unwrap();
    server.stop().await;
}
