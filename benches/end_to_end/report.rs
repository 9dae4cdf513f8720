//! Measurements: JSON lines as they come, a table at the end.

use serde_json::{Value, json};

/// What a figure is held against.
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    None,
}

impl Target {
    fn met(&self, value: f64) -> Option<bool> {
        match self {
            Target::AtMost(limit) => Some(value <= *limit),
            Target::AtLeast(limit) => Some(value >= *limit),
            Target::None => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Target::AtMost(limit) => format!("<= {limit}"),
            Target::AtLeast(limit) => format!(">= {limit}"),
            Target::None => String::new(),
        }
    }
}

#[derive(Default)]
pub struct Report {
    lines: Vec<[String; 6]>,
}

impl Report {
    /// Prints one measurement; `details` is an object with what stands behind it.
    pub fn add(&mut self, name: &str, value: f64, unit: &str, target: Target, details: Value) {
        let met = target.met(value);
        let load = load();
        let line = json!({
            "name": name, "value": round(value), "unit": unit, "target": target.text(), "met": met, "load_1min": load,
            "details": details,
        });
        println!("{line}");
        let verdict = match met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let shown = [name.to_owned(), round(value).to_string(), unit.to_owned(), target.text()];
        let [name, value, unit, target] = shown;
        self.lines.push([name, value, unit, target, verdict.to_owned(), load]);
    }

    pub fn table(&self) {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["what", "value", "unit", "target", "", "load"]);
        for line in &self.lines {
            table.add_row(line);
        }
        eprintln!("{table}");
    }
}

/// Three significant digits after the point are more than such figures carry.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The machine's 1-minute load average.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

/// The value below which `share` of the samples lie.
pub fn percentile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

pub fn median(samples: &mut [f64]) -> f64 {
    percentile(samples, 0.5)
}
