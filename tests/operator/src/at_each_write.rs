//! The operator dies before and after each of its writes. (Its tests take longest, and run first, by their names.)

mod all;
mod api;
mod kafka;
mod leading;
mod others;
mod pods;
mod roll;
mod strimzi;
mod writes;
