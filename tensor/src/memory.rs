//! How much memory was used, as Linux tells it, keeping what was freed, and what happens when there is no more.

use std::alloc::{GlobalAlloc, Layout, System};

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

/// The system's allocator, for a program that has nothing to do without memory: where the system gives no more, the program
/// says so on stderr and ends with `code`. Rust would end it by a signal.
#[derive(Debug)]
pub struct OrExit {
    /// The exit code.
    pub code: i32,
}

// SAFETY: every call is passed on to the system's allocator as it came, and what that returns is returned as it is; where that is
// null, nothing is returned.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that are asked for.
        self.given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        self.given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        self.given(unsafe { System.realloc(at, layout, size) }, size)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

impl OrExit {
    fn given(&self, at: *mut u8, size: usize) -> *mut u8 {
        if at.is_null() {
            self.exit(size);
        }
        at
    }

    /// Takes no memory on its way.
    #[cold]
    fn exit(&self, size: usize) {
        #[cfg(unix)]
        {
            use std::io::Write;
            let mut text = [0u8; 160];
            let mut rest = &mut text[..];
            // The text has room for the longest number.
            let _ = write!(
                rest,
                "error: the system gives no more memory: {size} bytes were asked for\n\nhint: free memory, or raise the limit \
                 (ulimit -v)\n"
            );
            let len = 160 - rest.len();
            // SAFETY: the first `len` bytes of `text` are there to be read; `_exit` runs nothing of this program.
            unsafe {
                libc::write(2, text.as_ptr().cast(), len);
                libc::_exit(self.code);
            }
        }
        #[cfg(not(unix))]
        let _ = size;
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
