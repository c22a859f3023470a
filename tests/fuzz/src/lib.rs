//! Entry points of the fuzz targets; ordinary tests replay crashes through the same ones.

pub mod link;
pub mod postgres;
pub mod proxy;
pub mod sql;
