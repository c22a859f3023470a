//! The table on the screen and the list in the file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cases::Case;
use crate::lanes::Lane;

/// One case's figures.
#[derive(Debug)]
pub struct Row {
    case: &'static str,
    unit: &'static str,
    better: &'static str,
    figures: BTreeMap<&'static str, Vec<f64>>,
    /// Anything that a reader of the figures must know.
    pub note: String,
}

impl Row {
    #[must_use]
    pub fn new(case: &Case) -> Self {
        let better = if case.unit.ends_with("/s") { "higher" } else { "lower" };
        Self {
            case: case.name,
            unit: case.unit,
            better,
            figures: BTreeMap::new(),
            note: case.note.to_owned(),
        }
    }

    pub fn add(&mut self, lane: Lane, value: f64) {
        self.figures.entry(lane.name()).or_default().push(value);
    }

    fn median(&self, lane: Lane) -> Option<f64> {
        self.figures.get(lane.name()).and_then(|values| median(values.clone()))
    }

    fn ratio(&self, lane: Lane) -> Option<f64> {
        let (hoop, other) = (self.median(Lane::Hoop)?, self.median(lane)?);
        (other != 0.0).then(|| hoop / other)
    }

    fn json(&self) -> Value {
        json!({
            "case": self.case,
            "unit": self.unit,
            "better": self.better,
            "direct": self.median(Lane::Direct),
            "relay2": self.median(Lane::Relay2),
            "pgbouncer": self.median(Lane::Pgbouncer),
            "hoop": self.median(Lane::Hoop),
            "hoop_over_direct": self.ratio(Lane::Direct),
            "hoop_over_relay2": self.ratio(Lane::Relay2),
            "rounds": self.figures,
            "note": self.note,
        })
    }
}

/// The middle value; of two, their mean.
#[must_use]
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = values.get(middle).copied()?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(values.get(middle - 1).copied()?, upper))
}

/// All rows so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub fn head(&self) {
        println!(
            "{:<28} {:>8} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}",
            "case", "unit", "direct", "relay2", "pgbouncer", "hoop", "/direct", "/relay2"
        );
    }

    pub fn push(&mut self, row: Row) {
        let figure = |value: Option<f64>| match value {
            Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.2}"),
            None => "-".to_owned(),
        };
        println!(
            "{:<28} {:>8} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9} {}",
            row.case,
            row.unit,
            figure(row.median(Lane::Direct)),
            figure(row.median(Lane::Relay2)),
            figure(row.median(Lane::Pgbouncer)),
            figure(row.median(Lane::Hoop)),
            figure(row.ratio(Lane::Direct)),
            figure(row.ratio(Lane::Relay2)),
            row.note,
        );
        self.rows.push(row);
    }

    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let list: Vec<Value> = self.rows.iter().map(Row::json).collect();
        fs::write(path, serde_json::to_string_pretty(&list)? + "\n")?;
        Ok(())
    }
}
