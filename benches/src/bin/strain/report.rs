//! Tables for people and for programs: Markdown and JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use benches::figures::{Figures, Spread, short};
use benches::machine::Machine;
use serde::Serialize;

/// A figure and its title.
pub(crate) type Column = (&'static str, &'static str);

/// What a trial gave.
#[derive(Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: &'static str,
    /// What is done and seen.
    pub(crate) about: &'static str,
    /// What should hold.
    pub(crate) bar: &'static str,
    #[serde(skip)]
    pub(crate) columns: &'static [Column],
    pub(crate) rows: Vec<Row>,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<String>,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    what: String,
    rounds: Vec<Figures>,
    /// Whether the bar holds for the medians; none where there is no bar.
    holds: Option<bool>,
}

impl Table {
    /// One without rows.
    pub(crate) const fn new(
        title: &'static str,
        about: &'static str,
        bar: &'static str,
        columns: &'static [Column],
    ) -> Self {
        Self { title, about, bar, columns, rows: Vec::new(), failed: None }
    }

    /// Takes a round of something; `bar` tells of medians whether they hold, if there is a bar for it.
    pub(crate) fn add(&mut self, what: &str, figures: Figures, bar: Option<fn(&Figures) -> bool>) {
        let at = self.rows.iter().position(|row| row.what == what).unwrap_or_else(|| {
            self.rows.push(Row { what: what.to_owned(), rounds: Vec::new(), holds: None });
            self.rows.len() - 1
        });
        let row = &mut self.rows[at];
        row.rounds.push(figures);
        let mut medians = Figures::default();
        for (figure, _) in self.columns {
            if let Some(spread) = row.spread(figure) {
                medians.set(figure, spread.median);
            }
        }
        row.holds = bar.map(|bar| bar(&medians));
        let shown: Vec<_> =
            self.columns.iter().filter_map(|(f, t)| Some((t, row.spread(f)?.show()))).collect();
        eprintln!("  {what}: {shown:?}");
    }
}

impl Row {
    fn spread(&self, figure: &str) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(|f| f.get(figure)))
    }
}

/// All that was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) machine: Machine,
    pub(crate) seconds: f64,
    pub(crate) rounds: u32,
    pub(crate) tables: Vec<Table>,
}

/// Writes `strain.md` and `strain.json` into a folder; gives the text.
pub(crate) fn write(folder: &Path, run: &Run) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    save("strain.json", &format!("{}\n", serde_json::to_string_pretty(run)?))?;
    let mut text = format!(
        "# swd under strain\n\n\
         Written by `make bench-strain`; not edited by hand. {}. Loads last {} s; cells are medians of {} rounds [least–greatest], rates \
         are measured once. Both ends, the floods and swd share the CPUs.\n",
        run.machine.sentence(),
        short(run.seconds),
        run.rounds,
    );
    for table in &run.tables {
        let titles: Vec<_> = table.columns.iter().map(|(_, title)| *title).collect();
        let _ = write!(
            text,
            "\n## {}\n\n{} **Bar:** {}.\n\n| | {} | holds |\n|---|{}---|\n",
            table.title,
            table.about,
            table.bar,
            titles.join(" | "),
            "---|".repeat(titles.len()),
        );
        for row in &table.rows {
            let _ = write!(text, "| {} |", row.what);
            for (figure, _) in table.columns {
                let _ =
                    write!(text, " {} |", row.spread(figure).map_or_else(|| "–".to_owned(), |s| s.show()));
            }
            let holds = match row.holds {
                None => "",
                Some(true) => "yes",
                Some(false) => "**no**",
            };
            let _ = writeln!(text, " {holds} |");
        }
        if let Some(failed) = table.failed.as_ref().and_then(|e| e.lines().next()) {
            let _ = write!(text, "\n**Ended early:** {failed}\n");
        }
    }
    save("strain.md", &text)?;
    Ok(text)
}
