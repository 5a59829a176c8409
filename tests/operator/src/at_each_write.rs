//! The operator dies before and after each of its writes. (Its tests take longest, and run first, by their names.)

mod api;
mod kafka;
mod roll;
