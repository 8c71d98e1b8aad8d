//! A leader over a simulated log, the real directory, and scripted mailbox shards.

mod chaos;
mod deliveries;
mod expansion;
mod reports;
mod site;
mod trouble;
