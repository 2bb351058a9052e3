//! How much memory there is and how much was used, as Linux tells it.

/// Bytes that can be had without swapping: what the machine says is available, or what is left of a control group's limit.
/// `None` where neither can be read.
pub fn available_memory() -> Option<u64> {
    let available = field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let limit = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    let group = match (limit("memory.max"), limit("memory.current")) {
        (Some(max), Some(current)) => Some(max.saturating_sub(current)),
        _ => None,
    };
    Some(group.map_or(available, |g| g.min(available)))
}

/// The most memory this process ever held, in bytes. `None` where it cannot be read.
pub fn peak_rss() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The number of kB behind `name`, in bytes.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_says() {
        assert_eq!(field("A: 1 kB\nVmHWM:\t  12 kB\n", "VmHWM:"), Some(12 * 1024));
        assert_eq!(field("nothing", "VmHWM:"), None);
    }
}
