//! The few pages that the gateway itself shows to a person who signs in. No script, no style, nothing from elsewhere.

use std::fmt::Write;

use actix_web::http::StatusCode;
use actix_web::http::header::REFERRER_POLICY;
use actix_web::{HttpResponse, ResponseError};

use crate::problem::Problem;

/// Text for an element or an attribute in double quotes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// `body` is HTML.
pub fn page(status: StatusCode, title: &str, body: &str) -> HttpResponse {
    let title = escaped(title);
    HttpResponse::build(status)
        // without one, a browser says `Origin: null` of our own forms
        .insert_header((REFERRER_POLICY, "same-origin"))
        .content_type("text/html; charset=utf-8")
        .body(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title} – Hoop</title>\
             <meta name=\"viewport\" content=\"width=device-width\"></head>\n<body>\n<main>\n<h1>{title}</h1>\n\
             {body}\n</main>\n</body>\n</html>\n"
        ))
}

/// Says what happened and what to do, with a way back.
pub fn refusal(status: StatusCode, text: &str) -> HttpResponse {
    let body = format!(
        "<p>{}</p>\n<p><a href=\"/api/sign-in\">To the sign-in page</a></p>",
        escaped(text)
    );
    page(status, "You are not signed in", &body)
}

/// A problem, for a person.
pub fn problem(problem: &Problem) -> HttpResponse {
    refusal(problem.status_code(), &problem.detail)
}

/// A form that posts to `action` with these hidden fields and buttons named `answer`.
pub fn form(action: &str, hidden: &[(&str, &str)], answers: &[(&str, &str)]) -> String {
    let mut out = format!("<form method=\"post\" action=\"{}\">", escaped(action));
    for (name, value) in hidden {
        // Writing to a text cannot fail.
        let _ = write!(
            out,
            "<input type=\"hidden\" name=\"{name}\" value=\"{}\">",
            escaped(value)
        );
    }
    for (value, label) in answers {
        let _ = write!(
            out,
            "<button type=\"submit\" name=\"answer\" value=\"{value}\">{}</button> ",
            escaped(label)
        );
    }
    out.push_str("</form>");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_text() {
        assert_eq!(escaped("<a href=\"x\">'&"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
        assert!(form("/x", &[("a", "\"><b>")], &[]).contains("value=\"&quot;&gt;&lt;b&gt;\""));
    }
}
