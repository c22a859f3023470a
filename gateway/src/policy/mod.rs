//! What decides. `grant` at the door; later a file a stage for what happens inside a session.

pub mod grant;
