//! What is said of a few repeated measurements.

/// Of the values `values`, in their unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    pub median: f64,
    /// The largest less the smallest, as a share of the median.
    pub spread: f64,
}

/// `None` of no values, or of values that are no measurements: not finite, or not positive.
pub fn summarize(values: &[f64]) -> Option<Summary> {
    if values.is_empty() || values.iter().any(|value| !value.is_finite() || *value <= 0.0) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
    Some(Summary { median, spread: (sorted[sorted.len() - 1] - sorted[0]) / median })
}

#[cfg(test)]
mod tests {
    use super::{Summary, summarize};

    #[test]
    fn the_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(summarize(&[3.0, 1.0, 2.0]), Some(Summary { median: 2.0, spread: 1.0 }));
        assert_eq!(summarize(&[4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
    }

    #[test]
    fn one_value_has_no_spread() {
        assert_eq!(summarize(&[7.0]), Some(Summary { median: 7.0, spread: 0.0 }));
    }

    #[test]
    fn nothing_is_no_measurement() {
        assert_eq!(summarize(&[]), None);
        assert_eq!(summarize(&[1.0, 0.0]), None);
        assert_eq!(summarize(&[1.0, f64::NAN]), None);
    }
}
