//! The program of [`hikyaku_fuzz::convert`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::convert::run(data));
