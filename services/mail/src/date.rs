//! Dates as headers carry them (RFC 5322 section 3.3), always in UTC: `Tue, 24 Nov 2026 05:33:10 +0000`.

/// The RFC 5322 date-time of `time_ms` (Unix milliseconds).
pub fn rfc5322(time_ms: u64) -> String {
    let seconds = i64::try_from(time_ms / 1000).unwrap_or(0);
    let time = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_zoned(jiff::tz::TimeZone::UTC)
        .strftime("%a, %d %b %Y %H:%M:%S +0000")
        .to_string()
}

#[cfg(test)]
mod tests {
    #[test]
    fn is_the_date_a_reader_expects() {
        assert_eq!(
            super::rfc5322(1_795_498_390_123),
            "Tue, 24 Nov 2026 05:33:10 +0000"
        );
        assert_eq!(super::rfc5322(0), "Thu, 01 Jan 1970 00:00:00 +0000");
    }
}
