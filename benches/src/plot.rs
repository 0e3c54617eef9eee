//! Plots: bars of medians with their ranges, and curves against size. SVG, several panels in a file.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::figures::{Spread, short};

const WIDTH: u32 = 960;
const BAR: i32 = 22;
const TITLE: i32 = 30;
const LABELS: i32 = 130;
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 10] = [
    RGBColor(0x4c, 0x78, 0xa8),
    RGBColor(0xf5, 0x85, 0x18),
    RGBColor(0x54, 0xa2, 0x4b),
    RGBColor(0xe4, 0x57, 0x56),
    RGBColor(0x72, 0xb7, 0xb2),
    RGBColor(0xb2, 0x79, 0xa2),
    RGBColor(0x9d, 0x75, 0x5d),
    RGBColor(0xee, 0xca, 0x3b),
    RGBColor(0x79, 0x70, 0x6e),
    RGBColor(0xff, 0x9d, 0xa6),
];

/// Bars of one subject, one for each rival.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What was measured, with its unit.
    pub title: String,
    /// By whom, with a number that gives each its colour in all plots.
    pub bars: Vec<(String, usize, Spread)>,
}

/// A curve of one figure.
#[derive(Clone, Debug)]
pub struct Curve {
    /// What was measured, with its unit.
    pub title: String,
    /// Size and figure.
    pub points: Vec<(f64, f64)>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed<E: std::error::Error + Send + Sync>(
    path: &Path,
) -> impl Fn(DrawingAreaErrorKind<E>) -> anyhow::Error {
    let path = path.display().to_string();
    move |e| anyhow!("{path}: {e}")
}

/// Draws bars, two panels side by side.
///
/// # Errors
/// When the file cannot be written.
pub fn bars(path: &Path, panels: &[Bars]) -> Result<()> {
    let rows: Vec<&[Bars]> = panels.chunks(2).collect();
    let height_of = |row: &[Bars]| {
        let most = row.iter().map(|p| p.bars.len()).max().unwrap_or(0);
        TITLE + BAR * i32::try_from(most).unwrap_or(0) + 12
    };
    let height: i32 = rows.iter().map(|row| height_of(row)).sum();
    let root = SVGBackend::new(path, (WIDTH, height.cast_unsigned())).into_drawing_area();
    root.fill(&WHITE).map_err(failed(path))?;
    let mut top = 0;
    for row in rows {
        for (column, panel) in (0..).zip(row) {
            let left = column * WIDTH.cast_signed() / 2;
            let area = root.clone().shrink((left, top), (WIDTH / 2, height_of(row).cast_unsigned()));
            draw_bars(&area, panel).map_err(failed(path))?;
        }
        top += height_of(row);
    }
    root.present().map_err(failed(path))
}

fn draw_bars<'a>(
    area: &Area<'a>,
    panel: &Bars,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    let text = |size: i32| (FONT, size).into_font().color(&BLACK);
    area.draw(&Text::new(panel.title.clone(), (8, 8), text(15)))?;
    let most = panel.bars.iter().map(|(.., s)| s.max).fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH.cast_signed() / 2 - LABELS - 110);
    let x = |value: f64| LABELS + pixels(value / most * room);
    for (n, (name, colour, spread)) in (0..).zip(&panel.bars) {
        let top = TITLE + n * BAR;
        let middle = top + BAR / 2 - 2;
        let colour = COLOURS[colour % COLOURS.len()];
        area.draw(&Text::new(name.clone(), (8, top + 3), text(13)))?;
        let corners = [(LABELS, top), (x(spread.median).max(LABELS + 1), top + BAR - 5)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
        area.draw(&PathElement::new([(x(spread.min), middle), (x(spread.max), middle)], BLACK))?;
        let after = x(spread.max) + 6;
        area.draw(&Text::new(short(spread.median), (after, top + 3), text(13)))?;
    }
    Ok(())
}

#[expect(clippy::cast_possible_truncation, reason = "a share of the plot's width")]
fn pixels(value: f64) -> i32 {
    value.round() as i32
}

/// Draws curves against a size, two panels side by side. The size has a logarithmic axis.
///
/// # Errors
/// When the file cannot be written.
pub fn curves(path: &Path, against: &str, panels: &[Curve]) -> Result<()> {
    const PANEL: u32 = 230;
    let panels: Vec<_> = panels.iter().filter(|p| !p.points.is_empty()).collect();
    let rows = u32::try_from(panels.len().div_ceil(2)).unwrap_or(1).max(1);
    let root = SVGBackend::new(path, (WIDTH, rows * PANEL)).into_drawing_area();
    root.fill(&WHITE).map_err(failed(path))?;
    let areas = root.split_evenly((rows as usize, 2));
    for (n, (area, panel)) in areas.iter().zip(&panels).enumerate() {
        draw_curve(area, against, panel, COLOURS[n % COLOURS.len()]).map_err(failed(path))?;
    }
    root.present().map_err(failed(path))
}

fn draw_curve<'a>(
    area: &Area<'a>,
    against: &str,
    panel: &Curve,
    colour: RGBColor,
) -> Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>> {
    // A size of zero stands where one would: a logarithmic axis has no zero.
    let points: Vec<_> = panel.points.iter().map(|(x, y)| (x.max(1.0), *y)).collect();
    let first = points.iter().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let last = points.iter().map(|p| p.0).fold(first * 1.01, f64::max);
    let top = points.iter().map(|p| p.1).fold(f64::MIN_POSITIVE, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, (FONT, 15))
        .margin(8)
        .margin_right(28)
        .x_label_area_size(34)
        .y_label_area_size(56)
        .build_cartesian_2d((first..last).log_scale(), 0.0..top)?;
    let size = |x: &f64| if *x < 1e4 { format!("{x:.0}") } else { short(*x) };
    let figure = |y: &f64| short(*y);
    chart
        .configure_mesh()
        .x_desc(against)
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&size)
        .y_label_formatter(&figure)
        .light_line_style(WHITE)
        .draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), &colour))?;
    chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, colour.filled())))?;
    Ok(())
}
