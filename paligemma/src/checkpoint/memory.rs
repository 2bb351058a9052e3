//! How much memory a model needs, and whether this machine has it.

use super::names;
use crate::{Error, Kind, Result, config::Config};
use paligemma_tensor::DType;
use std::fs;

/// Bytes that answering needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The weights, mapped or read.
    pub weights: u64,
    /// Keys and values of all tokens, in f32.
    pub cache: u64,
    /// Activations at the widest place, in f32.
    pub activations: u64,
}

impl Need {
    /// All together.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.activations)
    }

    /// Refuses what this machine cannot hold; lets everything pass where it does not say what it has.
    ///
    /// # Errors
    /// `Kind::Resource` with both numbers and the largest published models that would fit.
    pub fn check_available(&self) -> Result<()> {
        available_memory().map_or(Ok(()), |available| self.check_against(available))
    }

    /// Refuses what does not fit in `available` bytes; see [`Need::check_available`].
    ///
    /// # Errors
    /// `Kind::Resource`.
    pub fn check_against(&self, available: u64) -> Result<()> {
        if self.total() <= available {
            return Ok(());
        }
        let error = Error::new(
            Kind::Resource,
            format!("the model needs {} of memory and {} are available", gb(self.total()), gb(available)),
        );
        let fits = what_fits(available);
        Err(if fits.is_empty() {
            error.hint("no published model fits; free memory or use a larger machine")
        } else {
            error.hint(format!("these would fit: {}", fits.join(", ")))
        })
    }
}

/// `5.8 GB`, decimal.
fn gb(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// For each published size the largest resolution and the widest of f32 and bf16 that fit, largest size first.
fn what_fits(available: u64) -> Vec<String> {
    let fits = |name: &str, dtype: DType| {
        Config::published(name).is_some_and(|config| {
            let weights = config.num_parameters() * dtype.size() as u64;
            config.memory_needed(weights, config.vision.num_tokens(), 128, 1).total() <= available
        })
    };
    let mut all = Vec::new();
    for size in ["2-28b", "2-10b", "2-3b", "3b"] {
        let best = [DType::F32, DType::BF16].into_iter().find_map(|dtype| {
            let name = ["896", "448", "224"]
                .map(|side| format!("{size}-{side}"))
                .into_iter()
                .find(|n| fits(n, dtype))?;
            Some(format!("{name} in {dtype}"))
        });
        all.extend(best);
    }
    all
}

impl Config {
    /// Number of parameters; the tied head counts once.
    pub fn num_parameters(&self) -> u64 {
        names::tensors(self, false).iter().map(|t| t.len() as u64).sum()
    }

    /// What answering `batch` prompts of `image_tokens` (of all their pictures) and `text_tokens` (prompt and
    /// answer) needs, if the weights take `weight_bytes`. An estimate from above of what the operations hold.
    pub fn memory_needed(
        &self,
        weight_bytes: u64,
        image_tokens: usize,
        text_tokens: usize,
        batch: usize,
    ) -> Need {
        let (v, t) = (&self.vision, &self.text);
        let n = |x: usize| x as u64;
        let tokens = n(image_tokens).saturating_add(n(text_tokens)).saturating_mul(n(batch));
        let heads = n(t.head_dim) * n(t.num_attention_heads + t.num_key_value_heads);
        // Residual, its norm, and queries, keys, values and their result, or gate and up of the MLP.
        let text_width = 4 * n(t.hidden_size) + (2 * heads).max(2 * n(t.intermediate_size));
        let vision_width = 4 * n(v.hidden_size) + (4 * n(v.hidden_size)).max(n(v.intermediate_size));
        let text = tokens.saturating_mul(text_width);
        let vision = n(image_tokens).saturating_mul(n(batch)).saturating_mul(vision_width);
        let logits = n(t.vocab_size).saturating_mul(n(batch));
        let key_width = 2 * n(t.num_key_value_heads) * n(t.head_dim) * n(t.num_hidden_layers);
        Need {
            weights: weight_bytes,
            cache: tokens.saturating_mul(key_width).saturating_mul(4),
            activations: text.max(vision).saturating_add(logits).saturating_mul(4),
        }
    }
}

/// Bytes that a process may still take: the system's estimate, or less where a control group or `ulimit -v` sets a limit.
/// `None` where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024);
    Some([group_memory(), address_space()].into_iter().flatten().fold(available, u64::min))
}

/// What is left of the address space that this process may have (`ulimit -v`), if that is limited, beside the stacks of threads
/// and what the C library sets aside for them. Maps of files take it up like all else.
fn address_space() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let taken = status.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    let taken = taken.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024);
    Some(limit.saturating_sub(taken).saturating_sub(32 << 20))
}

/// What is left below the limit of this process's control group (version 2). Pages of files count as free:
/// the system drops them when it needs to.
fn group_memory() -> Option<u64> {
    let group = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    let folder = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
    let number = |name: &str| fs::read_to_string(format!("{folder}/{name}")).ok()?.trim().parse::<u64>().ok();
    let stat = fs::read_to_string(format!("{folder}/memory.stat")).unwrap_or_default();
    let files: u64 = stat.lines().find_map(|l| l.strip_prefix("file ")?.trim().parse().ok()).unwrap_or(0);
    Some(number("memory.max")?.saturating_sub(number("memory.current")?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_need_of_the_published_models() {
        let need = |name: &str, dtype: DType| {
            let c = Config::published(name).unwrap();
            c.memory_needed(c.num_parameters() * dtype.size() as u64, c.vision.num_tokens(), 128, 1)
        };
        let small = need("3b-224", DType::BF16);
        assert_eq!(small.weights, 2 * (2_923_335_408 + 64 * 2048));
        // 18 layers, one key head of 256, keys and values, 384 tokens, four bytes.
        assert_eq!(small.cache, 18 * 256 * 2 * 384 * 4);
        assert!(small.total() < 6_000_000_000, "{small:?}");
        assert!(need("3b-896", DType::BF16).activations > small.activations);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let c = Config::published("2-28b-224").unwrap();
        let need = c.memory_needed(c.num_parameters() * 2, 256, 128, 1);
        assert!(need.check_against(64_000_000_000).is_ok());
        let e = need.check_against(24_000_000_000).unwrap_err();
        assert_eq!(e.kind(), Kind::Resource);
        let text = e.to_string();
        assert!(
            text.contains("55.") && text.contains("24.0 GB") && text.contains("2-10b-896 in bf16"),
            "{text}"
        );
        assert!(text.contains("3b-896 in f32"), "{text}");
        assert!(need.check_against(1_000_000).unwrap_err().to_string().contains("no published model"));
    }
}
