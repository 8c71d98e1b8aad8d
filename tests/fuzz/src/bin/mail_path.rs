//! The program of [`hikyaku_fuzz::mail_path`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::mail_path::run(data));
