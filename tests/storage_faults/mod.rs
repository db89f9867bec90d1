//! Storage that fails under a server: the disk is full, or an operation gives an I/O error, at random moments. Whatever was
//! acknowledged must be visible to another reader at once, and still be there after the server was killed.

pub mod checker;
pub mod faults;
pub mod writers;

pub use checker::{Plan, Subject, run};
pub use faults::{Fault, Faults};
