//! Lists come in pages: `limit` items and the cursor of the next page.

use actix_web::{HttpRequest, web};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::problem::Problem;

/// Items of a page where nothing is said.
pub const LIMIT_DEFAULT: u16 = 50;
/// Items of a page at most.
pub const LIMIT_MAX: u16 = 200;

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Cursor of the next page; null on the last.
    #[schema(required)]
    pub next: Option<String>,
}

pub fn limit(asked: Option<u16>) -> Result<u16, Problem> {
    let limit = asked.unwrap_or(LIMIT_DEFAULT);
    if (1..=LIMIT_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::field("limit", format!("limit must be 1 to {LIMIT_MAX}.")))
    }
}

pub fn bad_cursor() -> Problem {
    Problem::field(
        "cursor",
        "The cursor is not one of this list. Take `next` of the page before, or leave it out.",
    )
}

impl<T> Page<T> {
    /// `rows` has one more than `limit` where there is a next page.
    pub fn cut<R>(mut rows: Vec<R>, limit: u16, cursor: impl Fn(&R) -> String, view: impl FnMut(R) -> T) -> Self {
        let limit = usize::from(limit);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(cursor) } else { None };
        Self {
            items: rows.into_iter().map(view).collect(),
            next,
        }
    }
}

/// The query string as `T`, whose unknown parameters are refused where `T` says so.
pub fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    let refused = |e: actix_web::error::QueryPayloadError| {
        let text = e.to_string();
        match text
            .split_once("unknown field `")
            .and_then(|(_, rest)| rest.split_once('`'))
        {
            Some((name, _)) => {
                let name: String = name.chars().take(64).collect();
                Problem::field(
                    name.clone(),
                    format!("The parameter {name} is not known here. Remove it."),
                )
            }
            None => Problem::field("query", "A parameter has a value that is not acceptable."),
        }
    };
    let raw = web::Query::<Vec<(String, String)>>::from_query(request.query_string());
    let zero = |(name, value): &(String, String)| name.contains('\0') || value.contains('\0');
    if raw.is_ok_and(|pairs| pairs.iter().any(zero)) {
        return Err(Problem::field("query", "A parameter has a zero byte in it. Remove it."));
    }
    web::Query::<T>::from_query(request.query_string())
        .map(web::Query::into_inner)
        .map_err(refused)
}
