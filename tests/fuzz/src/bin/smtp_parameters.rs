//! The program of [`hikyaku_fuzz::smtp_parameters`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::smtp_parameters::run(data));
