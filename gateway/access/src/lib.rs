//! Who may reach what, when, from where and how. Deny by default: a [`RuleSet`] allows only what one of its rules allows
//! whole. Pure: the clock, the person and the connection are arguments, so that the API, the listeners and `explain` get
//! the same answer from the same code.

mod decide;
mod reach;
mod rule;
mod schedule;

pub use decide::{
    Circumstances, Decision, EXPLAINED_RULES_MAX, Explanation, Object, Obstacle, RuleSet, Subject, Tried,
};
pub use reach::Reach;
pub use rule::{Fault, MODES, Mode, Role, Rule, RuleSpec};
pub use schedule::{Day, Schedule};
