//! What is told of GPUs.

use super::*;

/// What DCGM calls the values of a sample.
fn expected(stats: &pb::GpuStats) -> Vec<(&'static str, Option<f64>)> {
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let whole = |value: Option<i64>| value.map(|value| value as f64);
    let int = |value: Option<i32>| value.map(f64::from);
    let free = stats.memory_total.zip(stats.memory_used);
    vec![
        ("DCGM_FI_DEV_GPU_UTIL", stats.gpu_utilization),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", stats.memory_bandwidth_utilization),
        ("DCGM_FI_DEV_ENC_UTIL", int(stats.encoder_utilization)),
        ("DCGM_FI_DEV_DEC_UTIL", int(stats.decoder_utilization)),
        ("DCGM_FI_DEV_FB_USED", whole(stats.memory_used)),
        ("DCGM_FI_DEV_FB_TOTAL", whole(stats.memory_total)),
        ("DCGM_FI_DEV_FB_FREE", whole(free.map(|(total, used)| total - used))),
        ("DCGM_FI_DEV_GPU_TEMP", stats.temperature),
        ("DCGM_FI_DEV_SLOWDOWN_TEMP", stats.temp_slowdown_threshold),
        ("DCGM_FI_DEV_MEMORY_TEMP", stats.memory_temperature),
        ("DCGM_FI_DEV_POWER_USAGE", stats.power_usage),
        ("DCGM_FI_DEV_POWER_USAGE_INSTANT", stats.power_usage_instant),
        ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", whole(stats.energy_consumption)),
        ("DCGM_FI_DEV_ENFORCED_POWER_LIMIT", stats.power_limit),
        ("DCGM_FI_DEV_FAN_SPEED", int(stats.fan_speed)),
        ("DCGM_FI_DEV_SM_CLOCK", int(stats.sm_clock)),
        ("DCGM_FI_DEV_MAX_SM_CLOCK", int(stats.sm_clock_max)),
        ("DCGM_FI_DEV_MEM_CLOCK", int(stats.memory_clock)),
        ("DCGM_FI_DEV_MAX_MEM_CLOCK", int(stats.memory_clock_max)),
        ("DCGM_FI_DEV_PSTATE", int(stats.pstate)),
        ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", whole(stats.throttle_reasons)),
        ("DCGM_FI_DEV_BAR1_USED", whole(stats.bar1_used)),
        ("DCGM_FI_DEV_PCIE_LINK_GEN", int(stats.pcie_link_gen)),
        ("DCGM_FI_DEV_PCIE_LINK_WIDTH", int(stats.pcie_link_width)),
        ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", whole(stats.pcie_replay_counter)),
        ("watchpost_gpu_compute_processes", int(stats.compute_processes_count)),
        ("watchpost_gpu_inferences_per_second", stats.inference_fps),
    ]
}

#[on_both]
async fn every_value_of_a_gpu_is_that_of_the_api_or_unavailable_with_its_reason(backend: Backend) {
    let instance = Card::instance("MIG-2-0", "GPU-2");
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1"), Card::h100_divided("GPU-2"), instance]);
    let server = TestServer::start_with(TestDatabase::migrated(backend).await, with_gpus(&fake)).await;
    let address = server.metrics_address().unwrap();
    let up = |all: &Exposition| {
        all.all("watchpost_gpu_up", &[]).iter().filter(|up| up.value == 1.0).count() == 4
        // Rates are there from the second sample on.
        && all.all("watchpost_gpu_samples_total", &[]).iter().all(|gpu| gpu.value >= 3.0)
    };
    let told = scrape_until(address, up).await;
    let latest = server.gpu_stats().get_latest_gpu_stats(pb::GetLatestGpuStatsRequest::default()).await;
    let latest = latest.unwrap().into_inner().gpu_stats;
    assert_eq!(latest.len(), 4);
    for stats in &latest {
        let uuid = stats.gpu_uuid.as_deref().unwrap();
        let index = stats.gpu_index.unwrap().to_string();
        for (name, value) in expected(stats) {
            let series = told.all(name, &[("UUID", uuid)]);
            assert_eq!(series.first().map(|sample| sample.value), value, "{name} of {uuid}");
            for sample in series {
                assert_eq!(sample.label("gpu"), index);
                assert_eq!(sample.label("device"), format!("nvidia{index}"));
                assert_eq!(sample.label("Hostname"), "camera \"box\"\\");
                assert_eq!(sample.label("pci_bus_id"), "00000000:01:00.0");
                assert_eq!(sample.label("DCGM_FI_DRIVER_VERSION"), "580.95.05");
                let mig = uuid.starts_with("MIG");
                assert_eq!(sample.label("GPU_I_PROFILE"), if mig { "1g.10gb" } else { "" });
                let name = stats.gpu_name.as_deref().unwrap();
                assert_eq!(sample.label("modelName"), name.split(" MIG ").next().unwrap());
            }
        }
        let unavailable = told.all("watchpost_gpu_value_unavailable", &[("UUID", uuid)]);
        let unavailable: BTreeSet<_> = unavailable
            .iter()
            .map(|sample| (sample.label("field").to_string(), sample.label("reason").to_string()))
            .collect();
        let reason = |reason: i32| {
            let name = pb::AbsentReason::try_from(reason).unwrap().as_str_name();
            name.trim_start_matches("ABSENT_REASON_").to_lowercase()
        };
        let absent = stats.absent_reasons.iter().map(|(field, why)| (field.clone(), reason(*why))).collect();
        assert_eq!(unavailable, absent, "{uuid}");
    }
    for (rate, bytes) in [("sent", 300_000_000.0), ("received", 700_000_000.0)] {
        let name = format!("watchpost_gpu_pcie_{rate}_bytes_per_second");
        let value = told.value(&name, &[("UUID", "GPU-0")]);
        assert!((value - bytes).abs() < bytes / 2.0, "{name}: {value}");
    }
    assert_eq!(told.types["DCGM_FI_DEV_PCIE_REPLAY_COUNTER"], "counter");
    assert_eq!(told.types["DCGM_FI_DEV_GPU_UTIL"], "gauge");
    server.stop().await;
}

#[tokio::test]
async fn a_gpu_that_is_lost_has_no_values_and_one_that_hangs_none_for_long() {
    let fake = FakeNvml::new(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, with_gpus(&fake)).await;
    let address = server.metrics_address().unwrap();
    let gpu = |index: usize| if index == 0 { "GPU-0" } else { "GPU-1" };
    let up = |all: &Exposition, index: usize, up: f64| {
        let told = all.all("watchpost_gpu_up", &[("UUID", gpu(index))]);
        told.first().is_some_and(|told| told.value == up)
    };
    let values = |all: &Exposition, index: usize| {
        let of = |sample: &&Sample| sample.name.starts_with("DCGM") && sample.label("UUID") == gpu(index);
        all.samples.iter().filter(of).count()
    };
    scrape_until(address, |all| up(all, 0, 1.0) && up(all, 1, 1.0)).await;

    let hanging = Card::h200("GPU-1").with("all", "hang");
    fake.set(&[Card::geforce("GPU-0").with("all", "!15"), hanging]);
    let told = scrape_until(address, |all| up(all, 0, 0.0)).await;
    assert_eq!(values(&told, 0), 0);
    let lost = [("UUID", "GPU-0"), ("reason", "gpu_lost")];
    assert!(told.all("watchpost_gpu_value_unavailable", &lost).len() > 24);
    let told = scrape_until(address, |all| up(all, 1, 0.0)).await;
    assert_eq!(values(&told, 1), 0, "a value that is frozen is not told");

    fake.set(&[Card::geforce("GPU-0"), Card::h200("GPU-1")]);
    let told = scrape_until(address, |all| up(all, 0, 1.0) && up(all, 1, 1.0)).await;
    assert!(values(&told, 0) > 20 && values(&told, 1) > 18);

    // What has happened is counted from 0 on.
    let events = |all: &Exposition, index, kind| {
        let labels = [("UUID", gpu(index)), ("kind", kind)];
        all.value("watchpost_gpu_events_total", &labels)
    };
    let all = [(0, "lost"), (0, "back"), (1, "unresponsive"), (1, "responsive")];
    let told = |told: &Exposition| all.iter().all(|(gpu, kind)| events(told, *gpu, kind) == 1.0);
    let told = scrape_until(address, told).await;
    assert_eq!([events(&told, 0, "xid"), events(&told, 1, "lost")], [0.0; 2]);
    server.stop().await;
}

#[tokio::test]
async fn what_is_asked_for_less_often_is_told_as_it_was_then() {
    // Too dear to be asked in every sample.
    let fake = FakeNvml::new(&[Card::geforce("GPU-0").with("processes.us", "30000")]);
    let database = TestDatabase::migrated(Backend::Sqlite).await;
    let server = TestServer::start_with(database, with_gpus(&fake)).await;
    let address = server.metrics_address().unwrap();
    let labels = [("UUID", "GPU-0"), ("call", "processes")];
    let calls = |all: &Exposition| all.value("watchpost_nvml_calls_total", &labels);
    let samples = |all: &Exposition| all.value("watchpost_gpu_samples_total", &[("UUID", "GPU-0")]);
    let absent = async || {
        let request = pb::GetLatestGpuStatsRequest::default();
        let latest = server.gpu_stats().get_latest_gpu_stats(request).await;
        let latest = latest.unwrap().into_inner().gpu_stats;
        latest.first().is_some_and(|stats| stats.compute_processes_count.is_none())
    };
    // It is stretched after ten seconds.
    eventually("the count is asked for less often", absent).await;
    let before = scrape_until(address, |_| true).await;
    let more = |all: &Exposition| samples(all) >= samples(&before) + 3.0;
    let told = scrape_until(address, more).await;
    assert!(calls(&told) - calls(&before) < samples(&told) - samples(&before));
    assert_eq!(told.value("watchpost_gpu_compute_processes", &[("UUID", "GPU-0")]), 3.0);
    server.stop().await;
}
