//! Draws what `swctl top` shows. Everything has its place at 80 columns and 24 lines; wider terminals get longer
//! histories, higher ones more ports.

use std::collections::VecDeque;

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row as TableRow, Sparkline, Table};

use super::state::{Row, State};
use crate::table;

/// Lines of reasons for drops.
const DROPS: u16 = 4;
/// Bars of a port's history at 80 columns.
const BARS: u16 = 8;
/// Columns of everything but names and histories.
const NUMBERS: u16 = 8 + 8 + 7 + 7 + 6 + 6;

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let [head, rates, spark, ports, drops, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Min(3),
        Constraint::Length(DROPS + 1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(heading(state), head);
    frame.render_widget(totals(state), rates);
    let data: Vec<u64> = last(&state.frames, usize::from(spark.width));
    frame.render_widget(Sparkline::default().data(data).style(Style::new().fg(Color::Cyan)), spark);
    draw_ports(frame, ports, state);
    draw_drops(frame, drops, state);
    let dim = Style::new().add_modifier(Modifier::DIM);
    let help = "q quit  sort: n name b bits f frames d drops c conns  r reverse  arrows scroll";
    frame.render_widget(Paragraph::new(help).style(dim), keys);
}

fn heading(state: &State) -> Paragraph<'static> {
    let Some(status) = state.status() else { return Paragraph::new("no answer yet") };
    let up = Timestamp::now().duration_since(status.started).as_secs().try_into().unwrap_or(0);
    let uplink = status.uplink.as_deref().unwrap_or(table::NONE);
    let text = format!(
        "{} {}  up {}  uplink {uplink}  {} ports  {} connections  {} MACs",
        status.name,
        status.version,
        table::seconds(up),
        status.ports,
        status.connections,
        status.fdb_entries
    );
    Paragraph::new(table::printable(&text)).style(Style::new().add_modifier(Modifier::BOLD))
}

fn totals(state: &State) -> Paragraph<'static> {
    let ends = state.ends;
    let plain = |what: &str, n| Span::raw(format!("{what} {}/s  ", short(n)));
    let dropped = Span::styled(
        format!("dropped {}/s", short(ends.dropped)),
        if ends.dropped > 0 { Style::new().fg(Color::Red) } else { Style::new() },
    );
    Paragraph::new(Line::from(vec![
        plain("frames: received", ends.received),
        plain("forwarded", ends.forwarded),
        plain("answered", ends.answered),
        dropped,
    ]))
}

fn draw_ports(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let (rows, all) = state.window(usize::from(area.height.saturating_sub(1)));
    // What the numbers leave is shared by names and histories.
    let spare = area.width.saturating_sub(NUMBERS + 8);
    let bars = (spare / 3).max(BARS);
    let name = spare.saturating_sub(bars + 10).clamp(8, 32);
    let widths = [name, 10, 8, 8, 7, 7, 6, 6, bars].map(Constraint::Length);
    let sorted = |title: &str| {
        let arrow = if state.is_reversed() { "^" } else { "v" };
        let is = match state.sort() {
            super::Sort::Name => title == "PORT",
            super::Sort::Rate => title.ends_with("BIT/S"),
            super::Sort::Frames => title.ends_with("F/S"),
            super::Sort::Drops => title == "DROP",
            super::Sort::Connections => title == "CONN",
        };
        if is { format!("{title}{arrow}") } else { title.to_owned() }
    };
    let titles = ["PORT", "NETWORK", "IBIT/S", "OBIT/S", "IF/S", "OF/S", "DROP", "CONN", "HISTORY"];
    let header = titles.iter().enumerate().map(|(i, title)| cell(i, sorted(title)));
    let header = TableRow::new(header).style(Style::new().add_modifier(Modifier::REVERSED));
    let shown = rows.iter().map(|row| port(row, usize::from(bars)));
    frame.render_widget(Table::new(shown, widths).header(header).column_spacing(1), area);
    if all > rows.len() && area.height > 1 {
        let note = format!(" {} of {all} ports ", rows.len());
        let width = u16::try_from(note.len()).unwrap_or(area.width).min(area.width);
        let place = Rect { x: area.right() - width, y: area.bottom() - 1, width, height: 1 };
        frame.render_widget(Paragraph::new(note).style(Style::new().add_modifier(Modifier::DIM)), place);
    }
}

/// Numbers stand at the right.
fn cell(column: usize, text: String) -> Cell<'static> {
    match column {
        0 | 1 | 8 => Cell::from(text),
        _ => Cell::from(Line::from(text).right_aligned()),
    }
}

fn port(row: &Row, bars: usize) -> TableRow<'static> {
    let texts = [
        table::printable(&row.name),
        table::printable(&row.network),
        short(row.rx_bits),
        short(row.tx_bits),
        short(row.rx_frames),
        short(row.tx_frames),
        short(row.drops),
        short(row.connections),
        history(row, bars),
    ];
    let style = match (row.up, row.drops) {
        (false, _) => Style::new().add_modifier(Modifier::DIM),
        (true, 0) => Style::new(),
        (true, _) => Style::new().fg(Color::Yellow),
    };
    TableRow::new(texts.into_iter().enumerate().map(|(i, text)| cell(i, text))).style(style)
}

fn draw_drops(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut lines = vec![
        Line::from(format!("{:>8} {:>8}  DROPPED FOR ('swctl drops' says what to do)", "PER S", "IN ALL"))
            .style(Style::new().add_modifier(Modifier::REVERSED)),
    ];
    let room = usize::from(DROPS);
    lines.extend(
        state.drops.iter().take(room).map(|(reason, rate, all)| {
            Line::from(format!("{:>8} {:>8}  {reason}", short(*rate), short(*all)))
        }),
    );
    if state.drops.is_empty() {
        lines.push(Line::from("nothing was dropped"));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// The last `count` of them.
fn last(history: &VecDeque<u64>, count: usize) -> Vec<u64> {
    history.iter().skip(history.len().saturating_sub(count)).copied().collect()
}

/// A port's history, and its limits behind it: what they leave of the room is the history's.
fn history(row: &Row, room: usize) -> String {
    if row.limits.is_empty() {
        return bar_line(&row.history, room);
    }
    let bars = room.saturating_sub(row.limits.len() + 1);
    format!("{:<bars$} {}", bar_line(&row.history, bars), row.limits).trim_start().to_owned()
}

/// A history as a line of bars.
fn bar_line(history: &VecDeque<u64>, count: usize) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = last(history, count);
    let most = shown.iter().copied().max().unwrap_or(0).max(1);
    // Something is never nothing.
    shown
        .iter()
        .map(|v| BARS[usize::try_from(v.saturating_mul(8).div_ceil(most)).unwrap_or(8).min(8)])
        .collect()
}

/// A number in at most six characters.
fn short(count: u64) -> String {
    const UNITS: [&str; 6] = ["k", "M", "G", "T", "P", "E"];
    if count < 1000 {
        return count.to_string();
    }
    let mut unit = 0;
    let mut tenths = u128::from(count) / 100;
    while tenths >= 10_000 {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{}{}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ctl::api::{DropCount, Port, Status};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::state::{Sample, Sort};
    use super::*;

    fn sample(ports: u64, turn: u64) -> Sample {
        let status: Status = serde_json::from_value(serde_json::json!({
            "ready": true, "version": "0.1.0", "name": "swd", "pid": 1, "started": "2026-11-21T20:00:00Z",
            "uplink": "eth0", "workers": 1, "fast_path": true, "fast_flows": 0, "networks": 1, "ports": ports, "connections": 12, "drops": 30 * turn,
            "received": 1000 * turn, "forwarded": 900 * turn, "answered": 70 * turn, "not_received": 0, "fdb_entries": 7,
            "max_connections": 262_144
        }))
        .unwrap();
        let port = |n: u64| -> Port {
            serde_json::from_value(serde_json::json!({
                "name": format!("port{n:03}"), "ifname": "x", "network": "default", "kind": "packet", "state": "up",
                "mac": "02:00:00:00:00:01", "mtu": 1500, "netns": null, "container_ifname": null, "addresses": [],
                "since": "2026-11-21T20:00:00Z", "rx_packets": 10 * n * turn, "tx_packets": n * turn,
                "rx_bytes": 1_250_000 * n * turn, "tx_bytes": 0, "rx_dropped": turn * (100 - n), "tx_dropped": 0,
                "connections": n
            }))
            .unwrap()
        };
        let drops = [("no-route", 20 * turn), ("same-port", 10 * turn), ("malformed", 0)];
        let drops =
            drops.map(|(reason, count)| DropCount { reason: reason.into(), count, help: String::new() });
        Sample { status, ports: (1..=ports).map(port).collect(), drops: drops.to_vec() }
    }

    fn screen(width: u16, height: u16, state: &State) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    fn state(ports: u64) -> State {
        let mut state = State::new(Sort::Rate);
        let start = Instant::now();
        for turn in 1..4 {
            state.take(sample(ports, turn), start + Duration::from_secs(turn));
        }
        state
    }

    #[test]
    fn everything_has_its_place_at_80_by_24() {
        let lines = screen(80, 24, &state(3));
        assert!(lines[0].starts_with("swd 0.1.0  up "), "{lines:#?}");
        assert!(lines[0].ends_with("uplink eth0  3 ports  12 connections  7 MACs"), "{lines:#?}");
        assert_eq!(lines[1], "frames: received 1.0k/s  forwarded 900/s  answered 70/s  dropped 30/s");
        assert!(lines[2..4].iter().any(|l| l.contains('█')), "the history: {lines:#?}");
        let words: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(
            words,
            ["PORT", "NETWORK", "IBIT/Sv", "OBIT/Sv", "IF/S", "OF/S", "DROP", "CONN", "HISTORY"]
        );
        let rows: Vec<Vec<&str>> = lines[5..8].iter().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["port003", "default", "30.0M", "0", "30", "3", "97", "3", "██"], "{lines:#?}");
        assert_eq!((rows[1][0], rows[2][0]), ("port002", "port001"));
        let at = lines.iter().position(|l| l.contains("DROPPED FOR")).unwrap();
        assert_eq!(lines[at + 1].split_whitespace().collect::<Vec<_>>(), ["20", "60", "no-route"]);
        assert_eq!(lines[at + 2].split_whitespace().collect::<Vec<_>>(), ["10", "30", "same-port"]);
        assert!(lines[23].starts_with("q quit") && lines[23].ends_with("scroll"), "{lines:#?}");
        let mut limited = sample(1, 1);
        let rate = ctl::api::Rate { per_second: 50_000_000, unit: ctl::api::Unit::Bits, burst: None };
        limited.ports[0].limits.rate_in = Some(rate);
        let mut state = State::new(Sort::Rate);
        state.take(limited, Instant::now());
        assert!(screen(80, 24, &state)[5].ends_with(" 50mbit/-"), "the limit is shown");
    }

    #[test]
    fn sorts_reverses_and_scrolls() {
        let mut state = state(50);
        let first = |state: &State| screen(80, 24, state)[5].split_whitespace().next().unwrap().to_owned();
        assert_eq!(first(&state), "port050");
        state.sort_by(Sort::Drops);
        assert_eq!(first(&state), "port001");
        state.reverse();
        assert_eq!(first(&state), "port050");
        state.reverse();
        state.sort_by(Sort::Name);
        assert_eq!(first(&state), "port001");
        state.scroll(3);
        assert_eq!(first(&state), "port004");
        state.scroll(1000);
        let lines = screen(80, 24, &state);
        assert!(lines.iter().any(|l| l.starts_with("port050")), "the end: {lines:#?}");
        assert!(lines.iter().any(|l| l.ends_with("of 50 ports")), "{lines:#?}");
        state.scroll(i64::MIN);
        assert_eq!(first(&state), "port001");
    }

    #[test]
    fn a_restart_and_a_port_made_anew_show_no_nonsense() {
        let mut state = state(2);
        let mut anew = sample(2, 0);
        anew.status.started = "2026-11-21T21:00:00Z".parse().unwrap();
        state.take(anew, Instant::now() + Duration::from_secs(60));
        assert_eq!(state.ends.received, 0);
        assert!(state.window(10).0.iter().all(|row| row.rx_bits == 0));
    }

    #[test]
    fn any_terminal_will_do() {
        for (width, height) in [(1, 1), (20, 5), (80, 10), (300, 100)] {
            screen(width, height, &state(30));
        }
    }

    #[test]
    fn numbers_are_short() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (999_949, "999.9k"),
            (1_000_000, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(short(count), text);
        }
    }
}
