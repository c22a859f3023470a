//! What each scope of a personal token may do: the one table, asked before any route's own code (`Caller`).
//!
//! A route that is not named here needs `read` where it only reads and `admin` where it does not; so a new one cannot be
//! forgotten, only be stricter than it has to be.

use std::collections::BTreeSet;

use actix_web::http::Method;
use hoop_store::personal_tokens::Scope;

use crate::problem::Problem;

/// What a personal token needs for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// One of these.
    Any(&'static [Scope]),
    /// A sign-in: no token will do.
    SignIn,
}

const READ: Need = Need::Any(&[Scope::Read, Scope::Admin]);
const CONNECT: Need = Need::Any(&[Scope::Connect, Scope::Admin]);
const ADMIN: Need = Need::Any(&[Scope::Admin]);
const EVERY: Need = Need::Any(&[Scope::Read, Scope::Connect, Scope::Admin]);

/// Method, path, and what it needs.
const NAMED: &[(Method, &str, Need)] = &[
    (Method::GET, "/api/me", EVERY),
    (Method::GET, "/api/connections", EVERY),
    (Method::GET, "/api/connections/{name}", EVERY),
    (Method::POST, "/api/connections/{name}/credentials", CONNECT),
    (Method::GET, "/api/credentials", EVERY),
    (Method::DELETE, "/api/credentials/{id}", CONNECT),
    (Method::POST, "/api/logout", Need::SignIn),
];

/// What begins so is about signing in, and changes by sign-in alone.
const SIGN_IN: &str = "/api/me/";

/// What a personal token needs for `method` on the route with this path.
pub fn need(method: &Method, path: &str) -> Need {
    let named = NAMED.iter().find(|(of, at, _)| of == method && *at == path);
    match named {
        Some((_, _, need)) => *need,
        None if method.is_safe() => READ,
        None if path.starts_with(SIGN_IN) => Need::SignIn,
        None => ADMIN,
    }
}

/// # Errors
/// 403 that names the scopes.
pub fn check(scopes: &BTreeSet<Scope>, method: &Method, path: &str) -> Result<(), Problem> {
    match need(method, path) {
        Need::Any(any) if any.iter().any(|scope| scopes.contains(scope)) => Ok(()),
        Need::Any(any) => {
            let names: Vec<&str> = any.iter().map(|scope| scope.as_str()).collect();
            Err(Problem::forbidden(format!(
                "The token's scopes do not allow this: it needs {}. Use a token that has it.",
                names.join(" or ")
            )))
        }
        Need::SignIn => Err(Problem::forbidden(
            "This takes a sign-in, not a personal token: sign in with POST /api/login.",
        )),
    }
}
