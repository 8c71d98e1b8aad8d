//! The program of [`hikyaku_fuzz::machines`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::machines::run(data));
