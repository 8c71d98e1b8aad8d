//! The program of [`hikyaku_fuzz::smtp_command`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::smtp_command::run(data));
