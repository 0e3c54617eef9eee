//! What came out, for people and for programs: Markdown, JSON, plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use benches::figures::{Spread, short};
use benches::plot::{self, Bars};

use crate::rivals::REFERENCE;
use crate::subjects::{Better, Column, Road, Subject};
use crate::{Run, Sample};

/// swd's own names.
const SWD: [&str; 3] = ["swd-veth", "swd-user", "swd-tap"];
/// Rivals that do in a process what swd does: the ones to be ahead of.
const USERSPACE: [&str; 4] = ["ovs", "vde", "slirp4netns", "pasta"];

/// Writes `compare.md`, `compare.json` and a plot for each road into a folder; gives the text.
pub(crate) fn write(folder: &Path, run: &Run, subjects: &[Subject]) -> Result<String> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let save = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    save("compare.json", &format!("{}\n", serde_json::to_string_pretty(run)?))?;
    let mut text = head(run);
    text.push_str(&summary(run, subjects));
    for road in Road::ALL {
        let here: Vec<_> = subjects.iter().filter(|s| s.road == road).collect();
        let panels: Vec<_> = here.iter().filter_map(|s| bars(run, s)).collect();
        if panels.is_empty() {
            continue;
        }
        let plot = format!("compare-{}.svg", road.key());
        plot::bars(&folder.join(&plot), &panels)?;
        let _ = write!(text, "\n## {}\n\n![{}]({plot})\n", road.title(), road.title());
        for subject in here {
            text.push_str(&table(run, subject));
        }
    }
    text.push_str(&memory(run));
    text.push_str(&failures(run));
    save("compare.md", &text)?;
    Ok(text)
}

fn head(run: &Run) -> String {
    let mut text = format!(
        "# swd beside its rivals\n\n\
         Written by `make bench`; not edited by hand. {}.\n\
         {} rounds, each once through all rivals; a load lasts {} s (round trips half of it). Cells: median [least–greatest], \
         and × the kernel bridge's median in the same run. Figures compare within a run only.\n\n\
         | rival | version | what |\n|---|---|---|\n",
        run.machine.sentence(),
        run.rounds,
        short(run.seconds),
    );
    for rival in &run.rivals {
        let version = if rival.missing.is_empty() {
            rival.version.clone()
        } else {
            format!("**NOT MEASURED: package {} is missing**", rival.missing.join(", "))
        };
        let _ = writeln!(text, "| {} | {version} | {} |", rival.name, rival.about);
    }
    text
}

/// What a rival's rounds came to.
fn spread(run: &Run, rival: &str, subject: &Subject, figure: &str) -> Option<Spread> {
    let of_subject = |s: &&Sample| s.rival == rival && s.road == subject.road.key() && s.load == subject.key;
    Spread::of(run.samples.iter().filter(of_subject).filter_map(|s| s.figures.get(figure)))
}

fn headline(subject: &Subject) -> Option<&'static Column> {
    subject.columns().first()
}

/// swd's standing, a row for each subject.
fn summary(run: &Run, subjects: &[Subject]) -> String {
    let mut text = "\n## In short\n\n\
         × the kernel bridge, and × the best of the rivals in userspace (ovs, vde, slirp4netns, pasta). Above 1 is better where \
         more is better (↑), below 1 where less is (↓).\n\n\
         | road | load | |"
        .to_owned();
    for name in SWD {
        let _ = write!(text, " {name} | × bridge | × best rival |");
    }
    let _ = writeln!(text, "\n|---|---|---|{}", "---|".repeat(3 * SWD.len()));
    for subject in subjects {
        let Some(column) = headline(subject) else { continue };
        let median = |rival: &str| spread(run, rival, subject, column.figure).map(|s| s.median);
        if SWD.into_iter().all(|name| median(name).is_none()) {
            continue;
        }
        let arrow = arrow(column.better);
        let _ = write!(text, "| {} | {} | {} {arrow} |", subject.road.key(), subject.title, column.title);
        let rivals = USERSPACE.into_iter().filter_map(|name| Some((name, median(name)?)));
        let best = match column.better {
            Better::More => rivals.max_by(|a, b| a.1.total_cmp(&b.1)),
            Better::Less => rivals.min_by(|a, b| a.1.total_cmp(&b.1)),
        };
        for name in SWD {
            let own = median(name);
            let value = own.map_or_else(String::new, short);
            let kernel = ratio(own, median(REFERENCE));
            let best = best.map_or_else(String::new, |(rival, value)| {
                let ratio = ratio(own, Some(value));
                if ratio.is_empty() { ratio } else { format!("{ratio} ({rival})") }
            });
            let _ = write!(text, " {value} | {kernel} | {best} |");
        }
        text.push('\n');
    }
    text
}

const fn arrow(better: Better) -> char {
    match better {
        Better::More => '↑',
        Better::Less => '↓',
    }
}

fn ratio(own: Option<f64>, other: Option<f64>) -> String {
    match (own, other) {
        (Some(own), Some(other)) if other > 0.0 => format!("{:.2}", own / other),
        _ => String::new(),
    }
}

/// All figures of a subject, a row for each rival that knows the road.
fn table(run: &Run, subject: &Subject) -> String {
    let mut text = format!("\n### {}\n\n| rival |", subject.title);
    for column in subject.columns() {
        let _ = write!(text, " {} {} |", column.title, arrow(column.better));
    }
    text.push_str("\n|---|");
    text.push_str(&"---|".repeat(subject.columns().len()));
    text.push('\n');
    for rival in &run.rivals {
        let tried = run
            .samples
            .iter()
            .filter(|s| s.rival == rival.name && s.road == subject.road.key() && s.load == subject.key);
        let (mut tries, mut errors) = (0, 0);
        for sample in tried {
            tries += 1;
            errors += u32::from(sample.error.is_some());
        }
        if tries == 0 {
            continue;
        }
        let _ = write!(text, "| {} |", rival.name);
        for (n, column) in subject.columns().iter().enumerate() {
            let own = spread(run, rival.name, subject, column.figure);
            let mut cell = own.map_or_else(|| "–".to_owned(), |s| s.show());
            if n == 0 {
                let kernel = spread(run, REFERENCE, subject, column.figure);
                let ratio = ratio(own.map(|s| s.median), kernel.map(|s| s.median));
                if !ratio.is_empty() && rival.name != REFERENCE {
                    let _ = write!(cell, " ×{ratio}");
                }
                if errors > 0 {
                    let _ = write!(cell, " **{errors} of {tries} failed**");
                }
            }
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

fn bars(run: &Run, subject: &Subject) -> Option<Bars> {
    let column = headline(subject)?;
    let bars: Vec<_> = run
        .rivals
        .iter()
        .enumerate()
        .filter_map(|(n, r)| Some((r.name.to_owned(), n, spread(run, r.name, subject, column.figure)?)))
        .collect();
    let title = format!("{}: {} {}", subject.title, column.title, arrow(column.better));
    (!bars.is_empty()).then_some(Bars { title, bars })
}

fn memory(run: &Run) -> String {
    let mut text = "\n## Memory of the daemons, MB\n\nAll processes of a rival together; what they share counts for each.\n\n\
                    | rival | idle ↓ | after the loads ↓ |\n|---|---|---|\n"
        .to_owned();
    for rival in &run.rivals {
        let of = |load: &str| {
            let samples = run.samples.iter().filter(|s| s.rival == rival.name && s.load == load);
            let values: Vec<_> =
                samples.filter_map(|s| s.figures.get("rss_bytes")).filter(|v| *v > 0.0).collect();
            Spread::of(values.into_iter().map(|v| v / 1e6)).map_or_else(|| "–".to_owned(), |s| s.show())
        };
        let _ = writeln!(text, "| {} | {} | {} |", rival.name, of("idle"), of("loaded"));
    }
    text
}

fn failures(run: &Run) -> String {
    let mut text = String::new();
    for sample in &run.samples {
        let Some(error) = &sample.error else { continue };
        let line = error.lines().next().unwrap_or_default();
        let Sample { rival, round, road, load, .. } = sample;
        let _ = writeln!(text, "- {rival}, {road} {load}, round {round}: {line}");
    }
    if text.is_empty() { text } else { format!("\n## Failures\n\n{text}") }
}
