//! The program of [`hikyaku_fuzz::pop3`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::pop3::run(data));
