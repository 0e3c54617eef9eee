//! Figures by name, and what many of them come to.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What one measurement gave: values by name. The unit is the name's last part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<String, Option<f64>>);

impl<const N: usize> From<[(&str, f64); N]> for Figures {
    fn from(values: [(&str, f64); N]) -> Self {
        let mut figures = Self::default();
        for (name, value) in values {
            figures.set(name, value);
        }
        figures
    }
}

impl Figures {
    /// Sets a value. One that is not a number is kept as missing: JSON has no other way.
    pub fn set(&mut self, name: &str, value: f64) {
        self.0.insert(name.to_owned(), value.is_finite().then_some(value));
    }

    /// A value; none where it could not be measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied().flatten()
    }

    /// Takes the values of another one along.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many.
    pub count: usize,
}

impl Spread {
    /// Of these values; none of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { median, min, max, count: values.len() })
    }

    /// As text: the median, and the range if there were several.
    pub fn show(&self) -> String {
        let mut text = short(self.median);
        if self.count > 1 {
            let _ = write!(text, " [{}–{}]", short(self.min), short(self.max));
        }
        text
    }
}

/// A number in three digits or so.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1e7 => format!("{:.1}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([3.0, 1.0, 2.0]).expect("values");
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(odd.show(), "2.00 [1.00–3.00]");
        assert_eq!(Spread::of([4.0, 1.0]).expect("values").median, 2.5);
        assert_eq!(Spread::of([123_456.0]).expect("values").show(), "123k");
    }

    #[test]
    fn what_is_no_number_is_missing() {
        let mut figures = Figures::from([("a", 1.0), ("b", f64::NAN)]);
        figures.merge(Figures::from([("c", 3.0)]));
        assert_eq!((figures.get("a"), figures.get("b"), figures.get("c")), (Some(1.0), None, Some(3.0)));
        let text = serde_json::to_string(&figures).expect("JSON");
        assert_eq!(text, r#"{"a":1.0,"b":null,"c":3.0}"#);
        assert_eq!(serde_json::from_str::<Figures>(&text).expect("figures"), figures);
    }
}
