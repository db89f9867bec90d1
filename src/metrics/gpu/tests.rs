//! Tests of the metrics of GPUs, sample by sample.

use prometheus::TextEncoder;

use super::*;
use crate::{pb, rpc::time::to_proto};

fn text(gpus: &LiveGpus, now: DateTime<Utc>) -> String {
    let mut families = Families::default();
    collect(&mut families, gpus, Duration::from_secs(1), now);
    TextEncoder::new().encode_to_string(&families.into_inner()).unwrap()
}

#[test]
fn labels_are_escaped_and_an_instance_is_told_from_its_gpu() {
    let now = Utc::now();
    let gpus = LiveGpus::default();
    gpus.publish(GpuStats {
        gpu_uuid: Some("MIG-1".into()),
        gpu_index: Some(3),
        gpu_name: Some("a \"H100\"\\ MIG 1g.10gb".into()),
        mig_parent_uuid: Some("GPU-1".into()),
        host: Some("a\nb".into()),
        recorded_at: Some(to_proto(now)),
        temperature: Some(41.5),
        absent_reasons: [("fan_speed".to_string(), AbsentReason::Mig.into())].into(),
        ..Default::default()
    });
    gpus.register(&Arc::new(pb::Gpu {
        uuid: "MIG-1".into(),
        driver_version: Some("580.1".into()),
        ..Default::default()
    }));
    let text = text(&gpus, now);
    let expected = r#"DCGM_FI_DEV_GPU_TEMP{gpu="3",UUID="MIG-1",device="nvidia3",modelName="a \"H100\"\\",GPU_I_PROFILE="1g.10gb",Hostname="a\nb",DCGM_FI_DRIVER_VERSION="580.1"} 41.5"#;
    assert!(text.lines().any(|line| line == expected), "{text}");
    let expected = r#"watchpost_gpu_value_unavailable{gpu="3",UUID="MIG-1",field="fan_speed",reason="mig"} 1"#;
    assert!(text.lines().any(|line| line == expected), "{text}");
    assert!(!text.contains("FAN_SPEED"), "{text}");
}

#[test]
fn every_bit_that_holds_clocks_down_is_told() {
    let now = Utc::now();
    let gpus = LiveGpus::default();
    let mask: u64 = 1 << 63 | 1 << 41 | 0x4;
    gpus.publish(GpuStats {
        gpu_uuid: Some("GPU-1".into()),
        recorded_at: Some(to_proto(now)),
        throttle_reasons: Some(mask.cast_signed()),
        ..Default::default()
    });
    let text = text(&gpus, now);
    let reasons: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("watchpost_gpu_throttle_reason{"))
        .filter_map(|line| line.split_once("reason=\"")?.1.strip_suffix("\"} 1"))
        .collect();
    assert_eq!(reasons, ["sw_power_cap", "unknown", "bit_41"], "{text}");
    assert!(text.contains("reason=\"gpu_idle\"} 0"), "{text}");
    // A double cannot hold the lowest bits of the mask.
    let line = "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{";
    let line = text.lines().find(|shown| shown.starts_with(line)).unwrap();
    let value: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert_eq!(value.to_bits(), count(mask).to_bits());
}

#[test]
fn an_old_value_is_not_told() {
    let taken = Utc::now();
    let gpus = LiveGpus::default();
    gpus.publish(GpuStats {
        gpu_uuid: Some("GPU-1".into()),
        recorded_at: Some(to_proto(taken)),
        gpu_utilization: Some(99.0),
        ..Default::default()
    });
    let up = |text: &str| text.contains("watchpost_gpu_up{gpu=\"\",UUID=\"GPU-1\"} 1");
    let fresh = text(&gpus, taken + TimeDelta::seconds(9));
    assert!(up(&fresh) && fresh.contains("DCGM_FI_DEV_GPU_UTIL"), "{fresh}");
    let old = text(&gpus, taken + TimeDelta::seconds(11));
    assert!(!up(&old) && old.contains("watchpost_gpu_up"), "{old}");
    assert!(!old.contains("DCGM"), "{old}");
}
