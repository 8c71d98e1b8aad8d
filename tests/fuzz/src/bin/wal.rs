//! The program of [`hikyaku_fuzz::wal`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hikyaku_fuzz::wal::run(data));
