//! Tests of the log room from outside: the contract, every crash, trouble with the disk, and the simulated log's faults.
// a program of its own: nothing here has to be drained
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contract;
mod crash;
mod memory_disk;
mod places;
mod sim;
mod torn_files;
mod trouble;
