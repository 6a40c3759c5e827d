//! The live view: what the pipelines of this process do, drawn in the terminal; where output is no
//! terminal, plain lines once a second.
//!
//! It reads the status board and touches nothing else. The terminal is as it was before when the
//! view ends, however it ends.

mod draw;
mod plain;
mod streams;
pub mod view;
mod wrap;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::watch;

use crate::cli::live::view::{View, ViewOptions};
use crate::telemetry::StatusBoard;
use crate::{Error, Kind, Result};

/// How often the view is drawn anew, and how soon a key is seen.
const FRAME: Duration = Duration::from_millis(250);

/// Shows the board until `stop` turns true, or until `q` or Ctrl-C in the view. With `draw` it takes
/// the whole terminal (logs must not be printed meanwhile). Without, or without a keyboard, it prints plain lines.
///
/// # Errors
/// A terminal that cannot be drawn on.
pub async fn run(
    board: StatusBoard,
    options: ViewOptions,
    stop: watch::Receiver<bool>,
    draw: bool,
) -> Result<()> {
    if !draw || !std::io::stdin().is_terminal() {
        plain::run(&board, options.hidden_query, stop).await;
        return Ok(());
    }
    let drawing = tokio::task::spawn_blocking(move || draw_until(&board, options, &stop));
    drawing.await.map_err(|error| Error::internal("the live view panicked").because(error))?
}

/// Gives the terminal back when the view ends; a panic's hook has done so already.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn draw_until(
    board: &StatusBoard,
    options: ViewOptions,
    stop: &watch::Receiver<bool>,
) -> Result<()> {
    let _restore = Restore;
    let failed = |error| {
        Error::new(Kind::Config, "the terminal cannot be drawn on")
            .because(error)
            .hint("pipe the output, as in `millstream demo | cat`, for plain lines")
    };
    let mut terminal = ratatui::try_init().map_err(failed)?;
    let mut view = View::new(options);
    // Nobody left who could say stop is a stop too.
    while !*stop.borrow() && stop.has_changed().is_ok() {
        view.observe(&board.all());
        terminal.draw(|frame| draw::draw(frame, &view)).map_err(failed)?;
        if quit_pressed(&mut terminal, &mut view).map_err(failed)? {
            break;
        }
    }
    Ok(())
}

/// Handles keys until the next frame is due. True: `q` or Ctrl-C.
fn quit_pressed(terminal: &mut DefaultTerminal, view: &mut View) -> std::io::Result<bool> {
    let due = Instant::now() + FRAME;
    while event::poll(due.saturating_duration_since(Instant::now()))? {
        let Event::Key(key) = event::read()? else {
            terminal.draw(|frame| draw::draw(frame, view))?;
            continue;
        };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match key.code {
            KeyCode::Char('q') => return Ok(true),
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(true),
            KeyCode::Down | KeyCode::Char('j') => view.scroll(1),
            KeyCode::Up | KeyCode::Char('k') => view.scroll(-1),
            _ => continue,
        }
        terminal.draw(|frame| draw::draw(frame, view))?;
    }
    Ok(false)
}
