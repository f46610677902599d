//! Columns.

/// How a column is aligned. Numbers go to the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table: its head, then one line a row, every line indented and without trailing blanks. Rows have as many
/// cells as there are columns.
pub(crate) fn table<const N: usize>(indent: usize, head: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| width(&row[column]));
        cells.chain([width(head[column].0)]).max().unwrap_or(0)
    });
    let mut text = String::new();
    let titles = head.map(|(title, _)| title.to_owned());
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = " ".repeat(indent);
        for (column, cell) in row.iter().enumerate() {
            let blanks = " ".repeat(widths[column] - width(cell));
            let gap = if column == 0 { "" } else { "  " };
            match head[column].1 {
                Align::Left => line.extend([gap, cell, &blanks]),
                Align::Right => line.extend([gap, &blanks, cell]),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let head = [("NAME", Align::Left), ("SIZE", Align::Right), ("NOTE", Align::Left)];
        let rows = [["a", "1", ""], ["größer", "22,222", "x"]].map(|row| row.map(str::to_owned));
        let expected = "
  NAME      SIZE  NOTE
  a            1
  größer  22,222  x
";
        assert_eq!(format!("\n{}", table(2, head, &rows)), expected);
    }
}
