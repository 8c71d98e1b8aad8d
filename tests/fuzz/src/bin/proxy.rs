//! The program of [`hikyaku_fuzz::proxy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::proxy::run(data));
