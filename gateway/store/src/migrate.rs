//! Applies `schema.sql`: numbered sections, each once, in one transaction under an advisory lock, its hash recorded.
//!
//! It must not run a statement of its own on any table but `schema_sections`. A section that landed and differs is an
//! error; sections that this binary does not know are a newer gateway's (expand now, contract a release later) and are
//! left alone.

use aws_lc_rs::digest;
use thiserror::Error;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::StoreError;

/// The schema of this binary.
pub const SCHEMA: &str = include_str!("../../../schema.sql");
/// Key of the advisory lock that migrations and first-start steps hold ("hoop" in ASCII, then 1).
pub(crate) const SETUP_LOCK: i64 = 0x686f_6f70_0001;
/// How long another gateway's migration may be waited for.
const SETUP_LOCK_TIMEOUT_MS: u64 = 120_000;
const HEADING: &str = "-- section ";

/// The schema cannot be applied.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SchemaError {
    #[error("schema.sql line {line}: a heading must read \"-- section N: name\"")]
    Heading { line: usize },
    #[error("schema.sql section {number} ({name}) is out of order: numbers rise by one from 1")]
    Order { number: i32, name: String },
    #[error(
        "schema section {number} ({name}) is not what this database holds: recorded {recorded}, this gateway has {own}; \
         run the gateway release that matches the database, or restore the section as it landed"
    )]
    Changed {
        number: i32,
        name: String,
        recorded: String,
        own: String,
    },
}

/// One numbered section.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Section<'a> {
    number: i32,
    name: &'a str,
    body: &'a str,
}

impl Section<'_> {
    fn sha256(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, self.body.as_bytes()))
    }

    /// Whether there is anything but comments and blank lines.
    fn has_statements(&self) -> bool {
        self.body
            .lines()
            .map(str::trim)
            .any(|line| !line.is_empty() && !line.starts_with("--"))
    }
}

/// Cuts the schema at its headings. White space at a section's ends does not count.
pub(crate) fn sections(schema: &str) -> Result<Vec<Section<'_>>, SchemaError> {
    let mut out: Vec<Section<'_>> = Vec::new();
    let mut offset = 0;
    let mut body_start = 0;
    for (index, line) in schema.split_inclusive('\n').enumerate() {
        if let Some(heading) = line.strip_prefix(HEADING) {
            let (number, name) = heading
                .split_once(':')
                .ok_or(SchemaError::Heading { line: index + 1 })?;
            let number = number
                .trim()
                .parse::<i32>()
                .map_err(|_| SchemaError::Heading { line: index + 1 })?;
            let name = name.trim();
            if let Some(last) = out.last_mut() {
                last.body = schema.get(body_start..offset).unwrap_or_default().trim();
            }
            if number != i32::try_from(out.len()).unwrap_or(i32::MAX).saturating_add(1) {
                return Err(SchemaError::Order {
                    number,
                    name: name.to_owned(),
                });
            }
            out.push(Section { number, name, body: "" });
            body_start = offset + line.len();
        }
        offset += line.len();
    }
    if let Some(last) = out.last_mut() {
        last.body = schema.get(body_start..).unwrap_or_default().trim();
    }
    Ok(out)
}

/// Brings the database up to this binary's schema.
///
/// # Errors
/// `StoreError::Schema` for a changed section, `Query` where PostgreSQL refuses one, `Away`.
pub async fn migrate(client: &mut Client) -> Result<(), StoreError> {
    apply(client, SCHEMA).await
}

async fn apply(client: &mut Client, schema: &str) -> Result<(), StoreError> {
    let sections = sections(schema)?;
    for section in &sections {
        apply_section(client, section).await?;
    }
    let known = i32::try_from(sections.len()).unwrap_or(i32::MAX);
    let newer = client
        .query_typed(
            "select number, name from schema_sections where number > $1 order by number",
            &[(&known, Type::INT4)],
        )
        .await
        .map_err(StoreError::query("read schema_sections"))?;
    for row in newer {
        let (number, name): (i32, String) = (row.get(0), row.get(1));
        tracing::info!(number, name, "the database has a schema section of a newer gateway");
    }
    Ok(())
}

async fn apply_section(client: &mut Client, section: &Section<'_>) -> Result<(), StoreError> {
    let failed = StoreError::query("apply the schema");
    let tx = client.transaction().await.map_err(&failed)?;
    tx.batch_execute(&format!(
        "set local statement_timeout = 0; set local lock_timeout = {SETUP_LOCK_TIMEOUT_MS}; \
         set local client_min_messages = warning; \
         select pg_advisory_xact_lock({SETUP_LOCK}); \
         create table if not exists schema_sections (number integer primary key, name text not null, \
         sha256 text not null, applied_at timestamptz not null default now())"
    ))
    .await
    .map_err(&failed)?;
    let recorded = tx
        .query_typed_opt(
            "select name, sha256 from schema_sections where number = $1",
            &[(&section.number, Type::INT4)],
        )
        .await
        .map_err(&failed)?;
    let own = section.sha256();
    if let Some(row) = recorded {
        let (name, recorded): (String, String) = (row.get(0), row.get(1));
        if recorded != own {
            return Err(SchemaError::Changed {
                number: section.number,
                name,
                recorded,
                own,
            }
            .into());
        }
    } else if section.has_statements() {
        tx.batch_execute(section.body).await.map_err(|error| {
            tracing::error!(
                section = section.number,
                error = crate::pool::told(&error),
                "a schema section was refused"
            );
            StoreError::query("apply a section of schema.sql")(error)
        })?;
        tx.execute_typed(
            "insert into schema_sections (number, name, sha256) values ($1, $2, $3)",
            &[
                (&section.number, Type::INT4),
                (&section.name, Type::TEXT),
                (&own, Type::TEXT),
            ],
        )
        .await
        .map_err(&failed)?;
        tracing::info!(
            section = section.number,
            name = section.name,
            "applied a schema section"
        );
    }
    tx.commit().await.map_err(&failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str =
        "-- head\n\n-- section 1: one\ncreate table one (n integer);\n\n-- section 2: two\n-- nothing yet\n";

    #[test]
    fn a_schema_is_cut_at_its_headings() {
        let cut = sections(TWO).unwrap();
        assert_eq!(cut.len(), 2);
        assert_eq!(
            (cut[0].number, cut[0].name, cut[0].body),
            (1, "one", "create table one (n integer);")
        );
        assert!(cut[0].has_statements());
        assert!(!cut[1].has_statements());
        sections(SCHEMA).unwrap();
    }

    #[test]
    fn a_malformed_heading_is_named() {
        assert_eq!(sections("-- section one\n"), Err(SchemaError::Heading { line: 1 }));
        assert_eq!(
            sections("\n-- section 2: b\n"),
            Err(SchemaError::Order {
                number: 2,
                name: "b".into()
            })
        );
    }

    #[tokio::test]
    async fn a_section_is_applied_once_and_a_changed_one_is_refused() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let mut client = crate::pool::Connector::new(&url).unwrap().client().await.unwrap();
        apply(&mut client, TWO).await.unwrap();
        apply(&mut client, TWO).await.unwrap();
        assert_eq!(applied(&client).await, [1]);

        // An empty section is applied when it has statements; a newer gateway's section is left alone.
        let three = TWO.replace("-- nothing yet", "create table two (n integer);") + "-- section 3: three\nselect 1;\n";
        apply(&mut client, &three).await.unwrap();
        apply(&mut client, &three.replace("-- section 3: three\nselect 1;\n", ""))
            .await
            .unwrap();
        assert_eq!(applied(&client).await, [1, 2, 3]);

        let changed = three.replace("one (n integer)", "one (n bigint)");
        let told = apply(&mut client, &changed).await.unwrap_err().to_string();
        assert!(told.contains("section 1 (one)"), "{told}");
        let hashes = [&three, &changed].map(|schema| sections(schema).unwrap()[0].sha256());
        assert!(hashes.iter().all(|hash| told.contains(hash)), "{told}");
    }

    #[tokio::test]
    async fn a_section_that_fails_leaves_nothing_behind() {
        let Some(url) = crate::testing::fresh_database().await else {
            return;
        };
        let mut client = crate::pool::Connector::new(&url).unwrap().client().await.unwrap();
        let broken = "-- section 1: one\ncreate table one (n integer);\nselect nonsense;\n";
        apply(&mut client, broken).await.unwrap_err();
        let fixed = broken.replace("select nonsense;", "");
        apply(&mut client, &fixed).await.unwrap();
    }

    async fn applied(client: &Client) -> Vec<i32> {
        let rows = client
            .query("select number from schema_sections order by number", &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }
}
