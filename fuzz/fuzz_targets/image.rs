//! Any bytes as a picture: pixels or an error, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = paligemma::image::decode(data);
});
