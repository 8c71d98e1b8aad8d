//! The program of [`hikyaku_fuzz::ldif`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::ldif::run(data));
