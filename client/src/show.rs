//! What the person reads. Results go to standard output, everything about them to standard error.

use anyhow::{Context as _, Result};
use chrono::{DateTime, Local, Utc};
use serde_json::Value;

use crate::connect;
use crate::server::Server;

/// Of a list's columns: what stands above, and which member it shows.
type Column = (&'static str, fn(&Value) -> String);

/// A reader that has gone (`hoop … | head`) is no error.
fn write(mut to: impl std::io::Write, text: &str) {
    let _ = writeln!(to, "{text}");
}

pub fn line(text: &str) {
    write(std::io::stderr().lock(), text);
}

pub fn error(error: &anyhow::Error) {
    let mut causes = error.chain().map(ToString::to_string);
    let mut text = format!("hoop: {}", causes.next().unwrap_or_default());
    causes.for_each(|cause| text.push_str(&format!("\n  {cause}")));
    line(&text);
}

fn result(text: &str) {
    write(std::io::stdout().lock(), text);
}

/// # Errors
/// As the gateway says.
pub async fn status(server: &Server) -> Result<()> {
    let me: Value = server.get("/api/me").await?;
    let groups = joined(&me, "groups");
    let groups = if groups.is_empty() {
        String::new()
    } else {
        format!(", groups {groups}")
    };
    result(&format!(
        "{} ({}{groups}) at {}",
        text(&me, "username"),
        text(&me, "role"),
        server.address()
    ));
    Ok(())
}

/// # Errors
/// As the gateway says.
pub async fn connections(server: &Server, json: bool) -> Result<()> {
    let columns: [Column; 4] = [
        ("NAME", |row| text(row, "name")),
        ("PROTOCOL", |row| text(row, "protocol")),
        ("TAGS", |row| joined(row, "tags")),
        ("DESCRIPTION", |row| text(row, "description")),
    ];
    list(&server.list("/api/connections").await?, json, &columns)
}

/// # Errors
/// As the gateway says.
pub async fn sessions(server: &Server, json: bool) -> Result<()> {
    let columns: [Column; 6] = [
        ("STARTED", |row| local(row, "started_at")),
        ("ENDED", |row| local(row, "ended_at")),
        ("USER", |row| text(row, "user")),
        ("CONNECTION", |row| text(row, "connection")),
        ("STATEMENTS", |row| {
            row.get("statements").map(ToString::to_string).unwrap_or_default()
        }),
        ("ID", |row| text(row, "id")),
    ];
    list(&server.list("/api/sessions").await?, json, &columns)
}

fn list(rows: &[Value], json: bool, columns: &[Column]) -> Result<()> {
    if json {
        for row in rows {
            result(&serde_json::to_string(row)?);
        }
        return Ok(());
    }
    if rows.is_empty() {
        line("There is nothing.");
        return Ok(());
    }
    result(&table(rows, columns));
    Ok(())
}

fn table(rows: &[Value], columns: &[Column]) -> String {
    let head: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let cells = |row: &Value| columns.iter().map(|(_, cell)| plain(&cell(row))).collect();
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(cells)).collect();
    let width = |at: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(at))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns.len()).map(|at| width(at).unwrap_or_default()).collect();
    let padded = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(padded).collect::<Vec<_>>().join("\n")
}

/// # Errors
/// As the gateway says.
pub async fn credential(server: &Server, name: &str, ttl_s: Option<u64>, json: bool) -> Result<()> {
    let made = connect::make(server, name, ttl_s).await?;
    if json {
        result(&serde_json::to_string(&made)?);
        return Ok(());
    }
    let port = made.get("port").context("the gateway's answer")?;
    for (what, value) in [
        ("host", text(&made, "host")),
        ("port", port.to_string()),
        ("database", text(&made, "database")),
        ("user", text(&made, "user")),
        ("password", text(&made, "password")),
        ("until", local(&made, "expires_at")),
    ] {
        result(&format!("{what:10}{value}"));
    }
    Ok(())
}

fn text(of: &Value, member: &str) -> String {
    of.get(member).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn joined(of: &Value, member: &str) -> String {
    let items = of.get(member).and_then(Value::as_array).into_iter().flatten();
    items.filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

/// In the person's own time.
fn local(of: &Value, member: &str) -> String {
    let at = of
        .get(member)
        .and_then(Value::as_str)
        .and_then(|at| at.parse::<DateTime<Utc>>().ok());
    at.map(|at| at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default()
}

/// Without what a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_is_aligned_and_obeys_no_escape_sequence() {
        let rows = [
            json!({"name": "a", "tags": ["x", "y"]}),
            json!({"name": "longer", "tags": ["\u{1b}[2J"]}),
        ];
        let columns: [Column; 2] = [("NAME", |row| text(row, "name")), ("TAGS", |row| joined(row, "tags"))];
        assert_eq!(table(&rows, &columns), "NAME    TAGS\na       x,y\nlonger   [2J");
    }
}
