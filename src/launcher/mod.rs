//! launcher

pub mod confignet;
pub mod tap;
