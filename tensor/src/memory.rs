//! How much memory was used, as Linux tells it, and keeping what was freed.

/// The most memory this process ever held, in bytes. `None` where it cannot be read.
pub fn peak_rss() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Asks the C library to keep freed memory for the next allocation instead of handing it back at once. Activations of a layer
/// are as large as those of the last one, and getting their pages anew costs a tenth of a prefill; a training step
/// frees a gigabyte and more at its end, which is wanted again in the next one. Does nothing on other C libraries than glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two numbers of the allocator, which may be done at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
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
