//! The query of a list: `limit`, `cursor`, `sort` and the filters that the list has. An unknown one is refused with the
//! names of those that there are.

use actix_web::{HttpRequest, web};
use hoop_store::list::{FILTER_MAX_BYTES, Listed, Listing, Window};
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

use crate::cursor::{self, CURSOR_MAX_BYTES};
use crate::page::{LIMIT_DEFAULT, LIMIT_MAX, Page, bad_cursor};
use crate::problem::Problem;

/// Longest name of a parameter that an error repeats.
const NAME_MAX_CHARS: usize = 64;
/// Most parameters of a query.
const PARAMETERS_MAX: usize = 64;

/// What a list can be filtered by: a struct of options, one a parameter.
pub trait Filters: DeserializeOwned + IntoParams {
    const LISTING: &'static Listing;
}

/// A list as it was asked for. `params(ListQuery<F>)` describes it.
pub struct ListQuery<F> {
    pub filters: F,
    pub window: Window,
}

impl<F: Filters> ListQuery<F> {
    /// # Errors
    /// 422 that names the parameter and what is allowed.
    pub fn of(request: &HttpRequest) -> Result<Self, Problem> {
        Self::parse(request.query_string())
    }

    fn parse(query: &str) -> Result<Self, Problem> {
        let raw: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
        if raw.len() > PARAMETERS_MAX {
            return Err(Problem::field("query", format!("At most {PARAMETERS_MAX} parameters.")));
        }
        let mut given: Vec<(String, String)> = Vec::new();
        let mut filters = Vec::new();
        for pair in raw {
            let (name, value) = decoded(pair)?;
            if given.iter().any(|(other, _)| *other == name) {
                return Err(Problem::field(
                    name.clone(),
                    format!("The parameter {name} is there twice."),
                ));
            }
            if !matches!(name.as_str(), "limit" | "cursor" | "sort") {
                check_filter::<F>(&name, &value, pair)?;
                filters.push(pair);
            }
            given.push((name, value));
        }
        let value = |wanted: &str| {
            given
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        };
        let filters = web::Query::<F>::from_query(&filters.join("&"))
            .map_err(|_| Problem::field("query", "The filters cannot be read."))?
            .into_inner();
        Ok(Self {
            filters,
            window: window(F::LISTING, value("limit"), value("sort"), value("cursor"))?,
        })
    }

    pub fn page<R, T>(&self, listed: Listed<R>, view: impl FnMut(R) -> T) -> Page<T> {
        let cursor = |position| cursor::encode(F::LISTING, &self.window.sort, &position);
        Page {
            items: listed.rows.into_iter().map(view).collect(),
            next: listed.next.map(cursor),
        }
    }
}

fn window(
    listing: &'static Listing,
    limit: Option<&str>,
    sort: Option<&str>,
    cursor: Option<&str>,
) -> Result<Window, Problem> {
    let limit = match limit {
        None => LIMIT_DEFAULT,
        Some(text) => (text.parse().ok())
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .ok_or_else(|| Problem::field("limit", format!("limit must be 1 to {LIMIT_MAX}.")))?,
    };
    let mut window = listing.first(limit.into());
    if let Some(text) = sort {
        let unknown = || {
            let allowed = sort_names(listing).join(", ");
            Problem::field("sort", format!("sort must be one of {allowed}."))
        };
        window.sort = listing.sort(text).ok_or_else(unknown)?;
    }
    if let Some(text) = cursor {
        let (of, position) = cursor::decode(listing, text).ok_or_else(bad_cursor)?;
        if sort.is_some() && of.text() != window.sort.text() {
            return Err(Problem::field(
                "cursor",
                format!(
                    "The cursor is one of sort={}: keep the sort from page to page.",
                    of.text()
                ),
            ));
        }
        window.sort = of;
        window.after = Some(position);
    }
    Ok(window)
}

fn sort_names(listing: &Listing) -> Vec<String> {
    let both = |name: &str| [name.to_owned(), format!("-{name}")];
    listing.sorts.iter().flat_map(|key| both(key.name)).collect()
}

/// Name and value of one `name=value`.
fn decoded(pair: &str) -> Result<(String, String), Problem> {
    web::Query::<Vec<(String, String)>>::from_query(pair)
        .ok()
        .and_then(|pairs| pairs.into_inner().pop())
        .map(|(name, value)| (name.chars().take(NAME_MAX_CHARS).collect(), value))
        .ok_or_else(|| Problem::field("query", "The query cannot be read."))
}

fn check_filter<F: Filters>(name: &str, value: &str, pair: &str) -> Result<(), Problem> {
    let known = F::into_params(|| Some(ParameterIn::Query));
    if !known.iter().any(|parameter| parameter.name == name) {
        let mut allowed: Vec<&str> = known.iter().map(|parameter| parameter.name.as_str()).collect();
        allowed.extend(["sort", "limit", "cursor"]);
        return Err(Problem::field(
            name,
            format!("This list has no parameter {name}. It has {}.", allowed.join(", ")),
        ));
    }
    if value.len() > FILTER_MAX_BYTES || value.contains('\0') {
        return Err(Problem::field(
            name,
            format!("{name} must be at most {FILTER_MAX_BYTES} bytes without a zero byte."),
        ));
    }
    let Err(error) = web::Query::<F>::from_query(pair) else {
        return Ok(());
    };
    let text = error.to_string();
    // what follows comes from our types, never from the query
    let allowed = text
        .rsplit_once(", expected ")
        .map(|(_, expected)| expected.replace('`', ""));
    let detail = match allowed {
        Some(allowed) => format!("{name} must be {allowed}."),
        None => format!("{name} has a value that is not acceptable. GET /api/openapi.json says what is."),
    };
    Err(Problem::field(name, detail))
}

impl<F: Filters> IntoParams for ListQuery<F> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let string = || ObjectBuilder::new().schema_type(SchemaType::new(Type::String));
        let limit = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .minimum(Some(1))
            .maximum(Some(LIMIT_MAX))
            .default(Some(LIMIT_DEFAULT.into()));
        let sort = string()
            .enum_values(Some(sort_names(F::LISTING)))
            .default(Some(F::LISTING.default_sort.into()));
        let cursor = string().max_length(Some(CURSOR_MAX_BYTES));
        let parameter = |name: &str, text: &str, schema: ObjectBuilder| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .description(Some(text))
                .schema(Some(schema))
                .build()
        };
        let mut all = F::into_params(|| Some(ParameterIn::Query));
        all.push(parameter("sort", "The order; `-` before a name is descending.", sort));
        all.push(parameter("limit", "Items of a page.", limit));
        all.push(parameter(
            "cursor",
            "`next` of the page before, with the same filters and sort.",
            cursor,
        ));
        all
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, IntoParams)]
    #[allow(dead_code)]
    struct ByTeam {
        team: Option<String>,
        active: Option<bool>,
        role: Option<crate::users::Role>,
    }

    impl Filters for ByTeam {
        const LISTING: &'static Listing = &hoop_store::users::USERS;
    }

    fn refused(query: &str) -> (String, String) {
        let problem = ListQuery::<ByTeam>::parse(query).err().unwrap();
        (problem.field.unwrap_or_default(), problem.detail)
    }

    #[test]
    fn filters_sort_and_limit_are_read() {
        let asked = ListQuery::<ByTeam>::parse("team=a%26b&active=true&role=auditor&sort=-created_at&limit=7").unwrap();
        assert_eq!(asked.filters.team.as_deref(), Some("a&b"));
        assert_eq!(asked.filters.active, Some(true));
        assert_eq!(
            (asked.window.sort.text().as_str(), asked.window.limit),
            ("-created_at", 7)
        );
        let nothing = ListQuery::<ByTeam>::parse("").unwrap();
        assert_eq!(nothing.window.sort.text(), "username");
        assert_eq!(nothing.window.limit, i64::from(LIMIT_DEFAULT));
    }

    #[test]
    fn a_refusal_names_the_parameter_and_what_is_allowed() {
        let (field, detail) = refused("colour=red");
        assert_eq!(field, "colour");
        assert!(detail.contains("team, active, role, sort, limit, cursor"), "{detail}");
        let (field, detail) = refused("sort=colour");
        assert_eq!(field, "sort");
        assert!(detail.contains("username, -username, email"), "{detail}");
        let (field, detail) = refused("role=boss");
        assert_eq!(field, "role");
        assert!(detail.contains("admin, auditor, member"), "{detail}");
        assert_eq!(refused("active=perhaps").0, "active");
        assert_eq!(refused("team=a&team=b").0, "team");
        assert_eq!(refused("team=%00").0, "team");
        assert_eq!(refused(&format!("team={}", "x".repeat(257))).0, "team");
        for limit in ["0", "201", "-1", "x", "", "1e2"] {
            assert_eq!(refused(&format!("limit={limit}")).0, "limit");
        }
        assert_eq!(refused("cursor=nonsense").0, "cursor");
        assert_eq!(refused(&"&a=1".repeat(PARAMETERS_MAX + 1)).0, "query");
    }

    #[test]
    fn a_cursor_keeps_its_sort() {
        let mut asked = ListQuery::<ByTeam>::parse("sort=-username").unwrap();
        let position = hoop_store::list::Position {
            key: hoop_store::list::Key::Text("ada".into()),
            id: hoop_store::list::Key::Uuid(uuid::Uuid::nil()),
        };
        let listed = Listed {
            rows: vec![()],
            next: Some(position.clone()),
        };
        let next = asked.page(listed, |()| ()).next.unwrap();
        asked = ListQuery::parse(&format!("cursor={next}")).unwrap();
        assert_eq!(asked.window.sort.text(), "-username");
        assert_eq!(asked.window.after, Some(position));
        assert_eq!(refused(&format!("sort=username&cursor={next}")).0, "cursor");
    }
}
