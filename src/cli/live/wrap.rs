//! Texts in lines of the terminal's width, so that nothing is cut off at its edge.

use ratatui::text::{Line, Span};

/// What the lines after the first begin with.
const INDENT: usize = 4;
/// Lines of one text at most; a longer one ends in `…`.
const LINES: usize = 6;

/// `head` and `text` in lines of at most `width` characters; words stay whole where they fit.
pub fn wrapped(head: Span<'static>, text: &str, width: usize) -> Vec<Line<'static>> {
    let width = width.max(INDENT + 1);
    let all = format!("{}{text}", head.content);
    let mut rows = rows(&all, width);
    if rows.len() > LINES {
        rows.truncate(LINES);
        if let Some(last) = rows.last_mut() {
            *last = last.chars().take(width - 1).chain(['…']).collect();
        }
    }
    let styled = head.content.chars().count();
    let first = rows.first().is_some_and(|row| row.chars().count() >= styled);
    (rows.into_iter().enumerate())
        .map(|(index, row)| match index {
            0 if first => {
                let text = row.chars().skip(styled).collect::<String>();
                Line::from(vec![head.clone(), text.into()])
            }
            0 => Line::styled(row, head.style),
            _ => Line::from(row),
        })
        .collect()
}

/// The rows of a text; those after the first are indented.
fn rows(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    let (mut row, mut length) = (String::new(), 0);
    for word in text.split_inclusive(' ') {
        let mut word: Vec<char> = word.chars().collect();
        // The space after a row's last word does not count.
        let visible = |word: &[char]| word.len() - usize::from(word.last() == Some(&' '));
        let start = if rows.is_empty() { 0 } else { INDENT };
        if length > start && length + visible(&word) > width {
            rows.push(std::mem::take(&mut row));
            row = " ".repeat(INDENT);
            length = INDENT;
        }
        while length + visible(&word) > width {
            let rest = word.split_off(width - length);
            row.extend(word);
            rows.push(std::mem::take(&mut row));
            row = " ".repeat(INDENT);
            length = INDENT;
            word = rest;
        }
        length += word.len();
        row.extend(word);
    }
    rows.push(row);
    rows.iter_mut().for_each(|row| row.truncate(row.trim_end().len()));
    rows
}

/// As many of `items` as have room in `budget` lines, and the first in any case.
pub fn fitting(items: Vec<Vec<Line<'static>>>, budget: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for item in items {
        if !lines.is_empty() && lines.len() + item.len() > budget {
            break;
        }
        lines.extend(item);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_whole_and_nothing_is_lost() {
        assert_eq!(rows("one two three four", 9), ["one two", "    three", "    four"]);
        assert_eq!(rows("", 9), [""]);
        assert_eq!(rows("abcdefghijklmnop", 8), ["abcdefgh", "    ijkl", "    mnop"]);
        for width in 5..30 {
            let text = "customer_b/half_day_visits until 2019-10-31 00:00:00 EET";
            let rows = rows(text, width);
            assert!(rows.iter().all(|row| row.chars().count() <= width), "{width}: {rows:?}");
            let letters = |text: &str| text.replace(' ', "");
            assert_eq!(letters(&rows.concat()), letters(text), "{width}");
        }
    }

    #[test]
    fn the_head_keeps_its_style_and_an_endless_text_ends() {
        let lines = wrapped(Span::from("name "), &"x".repeat(1000), 20);
        assert_eq!(lines.len(), LINES);
        assert!(lines[LINES - 1].to_string().ends_with('…'));
        let lines = wrapped(Span::from("name "), "and text", 20);
        assert_eq!((lines.len(), lines[0].spans[0].content.as_ref()), (1, "name "));
        let lines = wrapped(Span::from("a_long_name "), "x", 6);
        assert_eq!(
            lines.iter().map(Line::to_string).collect::<Vec<_>>().concat(),
            "a_long    _n    am    e    x"
        );
    }
}
