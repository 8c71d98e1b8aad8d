//! The program of [`hikyaku_fuzz::smtp_session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::smtp_session::run(data));
