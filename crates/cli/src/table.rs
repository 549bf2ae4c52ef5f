//! Tables without borders, as `docker ps` draws them.

use comfy_table::{Cell, CellAlignment, Color, Table, presets};

use crate::term::{Paint, safe};

/// Space between columns.
const GAP: u16 = 3;

/// A table that grows row by row.
pub(crate) struct Grid {
    table: Table,
    paint: Paint,
}

impl Grid {
    /// A table with these headings.
    pub(crate) fn new(headings: &[&str], paint: Paint) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        match paint {
            Paint::Colour => table.enforce_styling(),
            Paint::Plain => table.force_no_tty(),
        };
        table.set_header(headings.iter().map(Cell::new));
        Self { table, paint }
    }

    /// Adds a row of plain texts.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.cells(cells.into_iter().map(text));
    }

    /// Adds a row of cells.
    pub(crate) fn cells(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.table.add_row(cells);
    }

    /// Aligns these columns to the right: numbers.
    pub(crate) fn right(mut self, columns: &[usize]) -> Self {
        for column in columns {
            if let Some(column) = self.table.column_mut(*column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    /// The table as text, each line with its end.
    pub(crate) fn render(mut self) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        let text: Vec<String> = match self.paint {
            Paint::Plain => self
                .table
                .lines()
                .map(|line| line.trim_end().to_owned())
                .collect(),
            Paint::Colour => self.table.lines().collect(),
        };
        text.join("\n") + "\n"
    }
}

/// A cell of text that may come from outside.
pub(crate) fn text(content: impl AsRef<str>) -> Cell {
    Cell::new(safe(content.as_ref()))
}

/// What a cell's content means to the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    Waiting,
    Bad,
    Neutral,
}

/// A cell coloured by its meaning.
pub(crate) fn state(content: impl AsRef<str>, mood: Mood) -> Cell {
    let cell = text(content);
    match mood {
        Mood::Good => cell.fg(Color::Green),
        Mood::Waiting => cell.fg(Color::Yellow),
        Mood::Bad => cell.fg(Color::Red),
        Mood::Neutral => cell,
    }
}

/// A cell for something that may be absent.
pub(crate) fn optional(content: Option<String>) -> String {
    content.unwrap_or_else(|| "-".to_owned())
}

/// Lines of `name: value`, the values under each other.
pub(crate) fn fields(rows: &[(&str, String)], paint: Paint) -> String {
    let width = rows
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        + 1;
    rows.iter()
        .map(|(name, value)| {
            let name = format!("{:width$}", format!("{name}:"));
            format!("{}  {}\n", paint.bold(&name), safe(value))
        })
        .collect()
}
