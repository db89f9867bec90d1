//! Cards as they are: what the driver says of each, by what people have recorded of real ones.

use super::Card;

impl Card {
    /// An RTX 4080 SUPER, a card for a desk: fans, a video encoder, an absolute slowdown
    /// temperature.
    pub fn geforce(uuid: &str) -> Self {
        Self::new(uuid, "NVIDIA GeForce RTX 4080 SUPER")
            .with("utilization", "37 12")
            .with("memory", "1610612736 463470592 17171480576")
            .with("temperature", "51")
            .with("power_usage", "87654")
            .with("power_limit", "320000")
            .with("fans", "2")
            .with("fan_speed_0", "30")
            .with("fan_speed_1", "34")
            .with("sm_clock", "2535")
            .with("sm_clock_max", "3105")
            .with("memory_clock", "11501")
            .with("memory_clock_max", "11502")
            .with("pstate", "2")
            .with("throttle_reasons", "4")
            .with("processes", "3")
            .with("pcie_replay_counter", "0")
            .with("temp_slowdown_threshold", "96")
            .with("pcie_link_gen", "4")
            .with("pcie_link_width", "16")
            .with("pcie_link_gen_max", "4")
            .with("pcie_link_width_max", "16")
            .with("pcie_bytes", "wide 300000000 700000000")
            .with("encoder_utilization", "21")
            .with("decoder_utilization", "64")
            .with("bar1", "16777216 17179869184")
            .with("energy", "123456789012")
            .with("power_instant", "119880")
    }

    /// An RTX 2080 SUPER that idles: one fan, which turns, and a link that has fallen to
    /// generation 1.
    pub fn rtx_2080s(uuid: &str) -> Self {
        Self::geforce(uuid)
            .with("name", "NVIDIA GeForce RTX 2080 SUPER")
            .with("utilization", "0 10")
            .with("memory", "221249536 419430400 8589934592")
            .with("temperature", "34")
            .with("power_usage", "38890")
            .with("power_limit", "250000")
            .with("fans", "1")
            .with("fan_speed_0", "38")
            .with("sm_clock", "300")
            .with("sm_clock_max", "2100")
            .with("memory_clock", "405")
            .with("memory_clock_max", "7751")
            .with("pstate", "8")
            .with("throttle_reasons", "1")
            .with("processes", "0")
            .with("temp_slowdown_threshold", "97")
            .with("pcie_link_gen", "1")
            .with("pcie_link_gen_max", "3")
            .with("encoder_utilization", "0")
            .with("decoder_utilization", "0")
            .with("bar1", "5242880 268435456")
            .with("energy", "98765")
            .with("power_instant", "37210")
    }

    /// An L40S at work: no fan, a slowdown temperature that is only a margin, GDDR6 that does not
    /// tell its temperature, and an average power far from the present one.
    pub fn l40s(uuid: &str) -> Self {
        Self::geforce(uuid)
            .with("name", "NVIDIA L40S")
            .with("memory", "30064771072 599785472 48305799168")
            .with("power_usage", "183280")
            .with("power_instant", "119880")
            .with("power_limit", "350000")
            .with("fans", "!3")
            .with("temp_slowdown_threshold", "4294967294")
            .with("pstate", "0")
            .with("mig_mode", "!3")
            .with("bar1", "2097152 68719476736")
    }

    /// An H200: no fan, a slowdown temperature that is only a margin, memory that tells its
    /// temperature, and a replay counter that does not start at 0.
    pub fn h200(uuid: &str) -> Self {
        Self::geforce(uuid)
            .with("name", "NVIDIA H200")
            .with("fans", "!3")
            .with("fan_speed_0", "!3")
            .with("temp_slowdown_threshold", "4294967294")
            .with("mig_mode", "0")
            .with("pstate", "0")
            .with("throttle_reasons", "1")
            .with("pcie_replay_counter", "4")
            .with("encoder_utilization", "0")
            .with("memory_temperature", "38")
    }

    /// An H100 that is divided: it does not tell how busy it is.
    pub fn h100_divided(uuid: &str) -> Self {
        Self::h200(uuid)
            .with("name", "NVIDIA H100 80GB HBM3")
            .with("mig_mode", "1")
            .with("utilization", "!3")
            .with("encoder_utilization", "!3")
            .with("decoder_utilization", "!3")
    }

    /// A GB10: it shares the memory of the host, and has neither limit nor fan nor BAR1.
    pub fn gb10(uuid: &str) -> Self {
        Self::geforce(uuid)
            .with("name", "NVIDIA GB10")
            .with("utilization", "41 0")
            .with("memory", "!3")
            .with("power_limit", "!3")
            .with("fans", "!3")
            .with("temp_slowdown_threshold", "!3")
            .with("memory_clock", "!3")
            .with("memory_clock_max", "!3")
            .with("pcie_link_gen", "1")
            .with("pcie_link_width", "1")
            .with("pcie_bytes", "!3")
            .with("pcie_sent", "!3")
            .with("pcie_received", "!3")
            .with("bar1", "!3")
            .with("mig_mode", "!3")
            .with("power_instant", "!3")
    }

    /// A part of a divided card: little more than its memory is known.
    pub fn instance(uuid: &str, parent: &str) -> Self {
        Self { parent: Some(parent.into()), ..Self::new(uuid, "NVIDIA H100 80GB HBM3 MIG 1g.10gb") }
            .with("memory", "15728640 0 10200547328")
    }

    /// A server with eight cards.
    pub fn server() -> Vec<Self> {
        let card = |at: u32| {
            let address = format!("00000000:{:02X}:00.0", 0x1a + at);
            Self::h200(&format!("GPU-{at}")).with("pci_bus_id", &address)
        };
        (0..8).map(card).collect()
    }
}
