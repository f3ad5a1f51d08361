//! A table that fits the terminal: columns give up width, widest first, then go from the right; what is cut ends in `…`.

use std::time::{Duration, SystemTime};

use super::output::{clean, span};

/// What stands between two columns.
const GAP: usize = 2;

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    /// The least that is left of it; below that it goes.
    least: usize,
    right: bool,
}

impl Column {
    /// A column of text, at least `least` wide where its cells are.
    pub const fn text(title: &'static str, least: usize) -> Self {
        Self { title, least, right: false }
    }

    /// A column of numbers, never cut.
    pub const fn number(title: &'static str) -> Self {
        Self { title, least: usize::MAX, right: true }
    }
}

/// The table's lines, none wider than `width`.
pub fn lines(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let rows: Vec<Vec<_>> = rows.iter().map(|row| row.iter().map(|cell| clean(cell)).collect()).collect();
    let natural: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            cells.chain([column.title.chars().count()]).max().unwrap_or_default()
        })
        .collect();
    let widths = fit(columns, natural, width);
    let head = columns.iter().map(|column| column.title);
    let mut lines = vec![line(columns, &widths, head)];
    lines.extend(rows.iter().map(|row| line(columns, &widths, row.iter().map(|cell| &**cell))));
    lines
}

/// The widths of the columns that stay.
fn fit(columns: &[Column], mut widths: Vec<usize>, width: usize) -> Vec<usize> {
    let total = |widths: &[usize]| widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    let least: Vec<usize> = columns.iter().zip(&widths).map(|(column, natural)| column.least.min(*natural)).collect();
    // Columns that could not be shown even at their least go first.
    while widths.len() > 1 && total(&least[..widths.len()]) > width {
        widths.pop();
    }
    while total(&widths) > width {
        let room = |at: &usize| widths[*at] > least[*at];
        let Some(widest) = (0..widths.len()).filter(room).max_by_key(|at| widths[*at]) else { break };
        widths[widest] -= 1;
    }
    widths
}

/// How long ago a moment was.
pub fn age(at: Option<prost_types::Timestamp>, now: SystemTime) -> String {
    // The clocks of two machines may differ a little.
    moment(at).map_or_else(String::new, |at| span(now.duration_since(at).unwrap_or(Duration::ZERO)))
}

/// How long it is to a moment.
pub fn left(at: Option<prost_types::Timestamp>, now: SystemTime) -> String {
    moment(at).map_or_else(String::new, |at| span(at.duration_since(now).unwrap_or(Duration::ZERO)))
}

fn moment(at: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    at.and_then(|at| SystemTime::try_from(at).ok())
}

fn line<'a>(columns: &[Column], widths: &[usize], cells: impl Iterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for ((cell, width), column) in cells.zip(widths).zip(columns) {
        if !line.is_empty() {
            line.push_str(&" ".repeat(GAP));
        }
        let cell = cut(cell, *width);
        let padding = " ".repeat(width - cell.chars().count());
        line.push_str(&if column.right { padding + &cell } else { cell + &padding });
    }
    line.truncate(line.trim_end().len());
    line
}

/// `text`, at most `width` characters of it.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::text("ID", 8), Column::text("USER", 4), Column::number("N"), Column::text("AGENT", 6)];

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
        vec![row(["12345678", "alice@example.org", "7", "a browser of some sort"]), row(["2", "bob", "1000", ""])]
    }

    #[test]
    fn what_fits_stays_as_it_is() {
        let lines = lines(&COLUMNS, &rows(), 100);
        assert_eq!(lines[0], "ID        USER                  N  AGENT");
        assert_eq!(lines[1], "12345678  alice@example.org     7  a browser of some sort");
        assert_eq!(lines[2], "2         bob                1000");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 20..70 {
            for line in lines(&COLUMNS, &rows(), width) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
        assert_eq!(lines(&COLUMNS, &rows(), 40)[1], "12345678  alice@exam…     7  a browser …");
        assert_eq!(lines(&COLUMNS, &rows(), 24)[1], "12345678  alice@e…     7", "the last column went");
    }
}
