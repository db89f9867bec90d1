//! Seeds of randomised tests.

/// Environment variable that replaces the seeds of all randomised tests.
const SEED_VARIABLE: &str = "WATCHPOST_TEST_SEED";

/// Seed of a randomised test: the decimal number in [`SEED_VARIABLE`], or `default`. The printed line tells how a
/// failure can be repeated.
#[expect(clippy::print_stderr, reason = "the harness shows the output of a test that fails")]
pub fn seed(default: u64) -> u64 {
    let seed = std::env::var_os(SEED_VARIABLE).map_or(default, |value| {
        let number = value.to_str().and_then(|text| text.parse().ok());
        number.unwrap_or_else(|| {
            panic!("{SEED_VARIABLE} must be a decimal number in [0, {}], got {}", u64::MAX, value.display())
        })
    });
    eprintln!("seed {seed} ({SEED_VARIABLE}={seed} repeats this)");
    seed
}
