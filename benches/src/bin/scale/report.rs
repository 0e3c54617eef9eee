//! Curves for people and for programs: Markdown, JSON, plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use benches::figures::{Figures, short};
use benches::machine::Machine;
use benches::plot;
use serde::Serialize;

use crate::curves::Growing;
use crate::world::ROUNDS;

/// Every figure that a curve may have, with its title.
const FIGURES: [(&str, &str); 22] = [
    ("gbit_s", "TCP, one stream, Gbit/s"),
    ("gbit_s_4", "TCP, four streams, Gbit/s"),
    ("rx_per_s", "64 B UDP, received/s"),
    ("p50_us", "UDP round trip, p50 µs"),
    ("per_s", "connections/s"),
    ("out_per_s", "connections/s to the outside"),
    ("rss_mb", "swd's memory, MB"),
    ("gbit_s_to_few", "TCP, × two ports"),
    ("rx_per_s_to_few", "UDP, × two ports"),
    ("p50_us_to_few", "round trip, × two ports"),
    ("per_s_to_few", "connections/s, × two ports"),
    ("add_ms", "adding one, ms"),
    ("start_s", "starting, s"),
    ("open_per_s", "flows opened/s"),
    ("hit_ns", "known connection, ns/packet"),
    ("new_ns", "new connection, ns"),
    ("expire_ns", "expiry, ns/connection"),
    ("expire_step_p99_us", "step of expiry, p99 µs"),
    ("expire_step_us", "longest step of expiry, µs"),
    ("bytes_each", "bytes/connection"),
    ("empty_bytes_each", "of them before the first connection"),
    ("lost", "lost"),
];

/// A curve as far as it was drawn.
#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    name: &'static str,
    against: &'static str,
    about: &'static str,
    /// Sizes with their figures.
    pub(crate) points: Vec<(u32, Figures)>,
    /// Why it ended before the last size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end: Option<String>,
}

impl Curve {
    /// One without points.
    pub(crate) const fn of(growing: &Growing) -> Self {
        let Growing { name, against, about, .. } = *growing;
        Self { name, against, about, points: Vec::new(), end: None }
    }
}

/// All that was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) curves: Vec<Curve>,
}

/// Writes `scale.md`, `scale.json` and a plot for each curve into a folder; gives the text.
pub(crate) fn write(folder: &Path, run: &Run) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    save("scale.json", &format!("{}\n", serde_json::to_string_pretty(run)?))?;
    let mut text = format!(
        "# swd as it grows\n\n\
         Written by `make bench`; not edited by hand. {}. Loads last {} s; a point is the median of {ROUNDS}. \
         Between containers with `fast_path = false`, but for `ports-as-shipped`. What the curves say is in [scaling.md](../scaling.md).\n",
        run.machine.sentence(),
        short(run.seconds),
    );
    for curve in &run.curves {
        let columns: Vec<_> = FIGURES
            .iter()
            .filter(|(figure, _)| curve.points.iter().any(|(_, f)| f.get(figure).is_some()))
            .collect();
        let _ = write!(text, "\n## {}\n\n{}\n", curve.name, curve.about);
        if !columns.is_empty() {
            let plot = format!("scale-{}.svg", curve.name);
            let panels: Vec<_> = columns.iter().map(|(figure, title)| panel(curve, figure, title)).collect();
            plot::curves(&folder.join(&plot), curve.against, &panels)?;
            let _ = write!(text, "\n![{}]({plot})\n\n| {} |", curve.name, curve.against);
            for (_, title) in &columns {
                let _ = write!(text, " {title} |");
            }
            let _ = write!(text, "\n|---|{}\n", "---|".repeat(columns.len()));
        }
        for (size, figures) in &curve.points {
            let _ = write!(text, "| {size} |");
            for (figure, _) in &columns {
                let _ = write!(text, " {} |", figures.get(figure).map_or_else(|| "–".to_owned(), short));
            }
            text.push('\n');
        }
        if let Some(end) = curve.end.as_ref().and_then(|e| e.lines().next()) {
            let _ = write!(text, "\n**Ended early:** {end}\n");
        }
    }
    save("scale.md", &text)?;
    Ok(text)
}

fn panel(curve: &Curve, figure: &str, title: &str) -> plot::Curve {
    let points = curve.points.iter().filter_map(|(size, f)| Some((f64::from(*size), f.get(figure)?)));
    plot::Curve { title: title.to_owned(), points: points.collect() }
}
