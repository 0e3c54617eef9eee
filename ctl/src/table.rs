//! Tables for people: aligned columns, upper-case headers, no borders.

use std::fmt;

/// What stands in a cell that has no value.
pub(crate) const NONE: &str = "-";

/// Where the text of a column stands.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    /// Text: at the left.
    Left(&'static str),
    /// Numbers: at the right.
    Right(&'static str),
}

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table of these columns, without rows.
    pub(crate) fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header: Vec<String> = self.columns.iter().map(|column| column.title().to_owned()).collect();
        let mut widths = vec![0; self.columns.len()];
        for row in std::iter::once(&header).chain(&self.rows) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, &width), column) in row.iter().zip(&widths).zip(self.columns) {
                match column {
                    Column::Left(_) => line.push_str(&format!("{cell:<width$}  ")),
                    Column::Right(_) => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Left(title) | Self::Right(title) => title,
        }
    }
}

/// One thing's properties: a line each, values aligned.
pub(crate) fn fields<const N: usize>(fields: [(&str, String); N]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    fields.into_iter().map(|(name, value)| format!("{name:<width$}  {}\n", printable(&value))).collect()
}

/// Several values in one cell.
pub(crate) fn list(values: &[impl ToString]) -> String {
    if values.is_empty() {
        return NONE.to_owned();
    }
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A value that may be missing.
pub(crate) fn optional(value: Option<&str>) -> String {
    value.unwrap_or(NONE).to_owned()
}

/// A number of bytes in the unit that leaves one to four digits before the point.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10 / 1024;
    while tenths >= 10_240 {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A number of seconds in its two largest units.
pub(crate) fn seconds(count: u64) -> String {
    let (minutes, hours, days) = (count / 60, count / 3600, count / 86_400);
    match count {
        0..60 => format!("{count}s"),
        60..3600 => format!("{minutes}m {}s", count % 60),
        3600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// In one line, and without what could move a terminal's cursor: an interface's name may hold any byte but `/` and
/// blanks.
pub(crate) fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        c if c.is_whitespace() => ' ',
        c if c.is_control() => '?',
        c => c,
    };
    text.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_without_blanks() {
        let mut table = Table::new(&[Column::Left("NAME"), Column::Right("MTU"), Column::Left("NETNS")]);
        table.row(["web".into(), "1500".into(), "web".into()]);
        table.row(["déjà-vu".into(), "65535".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME       MTU  NETNS\n\
             web       1500  web\n\
             déjà-vu  65535\n"
        );
    }

    #[test]
    fn a_table_without_rows_is_its_header() {
        assert_eq!(Table::new(&[Column::Left("MAC"), Column::Right("AGE")]).to_string(), "MAC  AGE\n");
    }

    #[test]
    fn fields_are_aligned() {
        let text = fields([("Name", "web".into()), ("Network", "default".into())]);
        assert_eq!(text, "Name     web\nNetwork  default\n");
    }

    #[test]
    fn cells_keep_to_their_line() {
        let mut table = Table::new(&[Column::Left("NAME")]);
        table.row(["a\x1b[2J\nb".into()]);
        assert_eq!(table.to_string(), "NAME\na?[2J b\n");
    }

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn durations() {
        for (count, text) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (3600, "1h 0m"),
            (90_000, "1d 1h"),
            (86_400 * 400, "400d 0h"),
        ] {
            assert_eq!(seconds(count), text);
        }
    }

    #[test]
    fn lists() {
        assert_eq!(list(&[] as &[String]), "-");
        assert_eq!(list(&["a", "b"]), "a, b");
        assert_eq!(optional(None), "-");
    }
}
