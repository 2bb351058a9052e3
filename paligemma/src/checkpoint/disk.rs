//! Room on a disk: what is free, and whether what is to be written fits.

use crate::{Error, Kind, Result};
use std::path::Path;

/// Bytes that are free on the disk of `path`, or of the folder above it that exists; `None` where nobody tells.
pub fn free_space(path: &Path) -> Option<u64> {
    let here = |folder: &'_ Path| folder.as_os_str().is_empty();
    let folders = path.ancestors().map(|folder| if here(folder) { Path::new(".") } else { folder });
    fs4::available_space(folders.into_iter().find(|folder| folder.is_dir())?).ok()
}

/// Refuses what needs more bytes than the disk of `path` has free; `what` is to be written there.
///
/// # Errors
/// `Kind::Resource` with both numbers. A disk that does not tell is not a reason to stop; writing will.
pub(crate) fn check_space(path: &Path, needed: u64, what: &str) -> Result<()> {
    match free_space(path) {
        Some(free) if needed > free => Err(Error::new(
            Kind::Resource,
            format!("{what} needs {}, the disk has {} free", size(needed), size(free)),
        )
        .at(path.display().to_string())),
        _ => Ok(()),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{bytes} bytes"),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_path_that_is_not_there_yet() {
        for path in ["absent", "absent/too", "./absent", "/absent/too", ".", ""] {
            let path = Path::new(path);
            assert!(free_space(path).is_some_and(|free| free > 0), "{path:?}");
            check_space(path, 1, "a byte").unwrap();
            let e = check_space(path, u64::MAX, "everything").unwrap_err();
            assert_eq!(e.kind(), Kind::Resource);
            assert!(e.what().starts_with("everything needs 17179869184.0 GiB, the disk has "), "{e}");
        }
    }
}
