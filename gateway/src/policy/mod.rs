//! What decides. `grant` at the door, `startup` over the settings of a login; later a file a stage for what happens
//! inside a session.

pub mod grant;
pub mod startup;
