//! Live screens: a terminal that is drawn over and over, keys, and what is asked of the gateway meanwhile.
//!
//! * `asking.rs`: asks again and again, and connects again where the gateway was gone; `rank.rs`: sessions, the heaviest first;
//! * `status.rs`: `pushgate status --watch`; `top.rs`: `pushgate top`.
//!
//! The terminal is given back as it was, whatever ends the screen: a key, a signal, a failure, a panic.

mod asking;
mod rank;
pub mod status;
pub mod top;

use std::io::{self, IsTerminal as _};

use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    layout::Rect,
    style::Style,
    text::{Line, Span},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::asking::News;
use super::{
    failure::{Failure, Outcome, failed},
    output,
};

/// Keys and news that may wait to be shown.
const WAITING_MAX: usize = 16;

/// What a screen shows.
trait View {
    /// Takes what the gateway said.
    fn take(&mut self, news: News);
    /// Takes a key that is not one of those that every screen has.
    fn key(&mut self, key: char);
    /// Draws all of it.
    fn draw(&self, frame: &mut Frame);
    /// No news are taken until it is called again.
    fn pause(&mut self);
}

/// Whether there is somebody before a terminal that can be drawn on.
pub fn has_screen() -> bool {
    let able = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    able && output::is_terminal() && io::stdin().is_terminal()
}

/// Shows `view` until a key or a signal ends it, with what `asking` sends meanwhile.
async fn show<V: View>(mut view: V, mut news: mpsc::Receiver<News>, asking: impl Future<Output = Failure>) -> Outcome {
    // As commands are ended that have no screen: in order, and without a word.
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("cannot wait for signals"))?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed("cannot wait for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("cannot wait for signals"))?;
    let mut quit = signal(SignalKind::quit()).map_err(failed("cannot wait for signals"))?;
    let mut screen = Screen::open()?;
    let mut closed = std::pin::pin!(output::closed());
    let mut asking = std::pin::pin!(asking);
    loop {
        screen.draw(|frame| view.draw(frame))?;
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = quit.recv() => return Ok(()),
            // A terminal that is gone need not say so by a signal, and reading keys from it fails without an end.
            () = closed.as_mut() => return Ok(()),
            event = screen.events.recv() => match event {
                // The terminal is gone.
                None => return Ok(()),
                Some(event) => match pressed(&event) {
                    Some(Pressed::Quit) => return Ok(()),
                    Some(Pressed::Pause) => view.pause(),
                    Some(Pressed::Other(key)) => view.key(key),
                    // Another size, for instance: drawn anew.
                    None => {}
                },
            },
            Some(news) = news.recv() => view.take(news),
            failure = asking.as_mut() => return Err(failure),
        }
    }
}

enum Pressed {
    Quit,
    Pause,
    Other(char),
}

fn pressed(event: &Event) -> Option<Pressed> {
    let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event else { return None };
    match code {
        KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => Some(Pressed::Quit),
        KeyCode::Char(_) if modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => None,
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => Some(Pressed::Quit),
        KeyCode::Char(' ' | 'p') => Some(Pressed::Pause),
        KeyCode::Char(key) => Some(Pressed::Other(*key)),
        _ => None,
    }
}

/// The terminal while it is ours.
struct Screen {
    /// There until the end.
    terminal: Option<DefaultTerminal>,
    events: mpsc::Receiver<Event>,
}

impl Screen {
    fn open() -> Outcome<Self> {
        let terminal = ratatui::try_init().map_err(failed("cannot draw on this terminal"))?;
        let (sender, events) = mpsc::channel(WAITING_MAX);
        // Reading waits, and cannot be given up: the thread ends with the process or the terminal.
        let reading = std::thread::Builder::new().name("keys".into()).spawn(move || {
            while let Ok(event) = event::read() {
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        let screen = Self { terminal: Some(terminal), events };
        reading.map_err(failed("cannot read keys"))?;
        Ok(screen)
    }

    fn draw(&mut self, with: impl FnOnce(&mut Frame)) -> Outcome {
        match self.terminal.as_mut().map(|terminal| terminal.draw(with)).transpose() {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Err(Failure::reader_gone()),
            Err(error) => Err(failed("cannot draw")(error)),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let terminal = self.terminal.take();
        if ratatui::try_restore().is_err() {
            // It is gone, there is nothing to give back: its own end would complain of that to standard error, which is gone
            // as well, and that is a panic.
            std::mem::forget(terminal);
        }
    }
}

/// Whether nobody is before the terminal any more: writing to one whose other side is closed is EIO.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Whether colours are wanted: <https://no-color.org>.
fn style(wanted: Style) -> Style {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if plain { Style { fg: None, bg: None, ..wanted } } else { wanted }
}

/// The screen's last line: what it has to say of itself, and its keys. The keys may be cut off where it is narrow.
fn foot(frame: &mut Frame, area: Rect, keys: &[(&str, &str)], paused: bool) {
    let mut spans = Vec::new();
    if paused {
        spans.extend([Span::from("PAUSED").style(style(Style::new().yellow().bold())), Span::from("   ")]);
    }
    for (key, what) in keys {
        spans.extend([Span::from(*key).style(Style::new().bold()), Span::from(format!(" {what}   "))]);
    }
    frame.render_widget(Line::from(spans), area);
}

/// Why nothing new comes, in the place of the screen's first line.
fn trouble(frame: &mut Frame, area: Rect, failure: &str) {
    let text = format!("no answer, asking again: {}", output::clean(failure));
    frame.render_widget(Line::from(text).style(style(Style::new().red().bold())), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    /// What is on a terminal of that size, without what ends its lines.
    pub fn drawn(size: (u16, u16), draw: impl FnOnce(&mut ratatui::Frame)) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
        terminal.draw(draw).unwrap();
        let cells = terminal.backend().buffer();
        let line = |y| (0..size.0).map(|x| cells[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..size.1).map(line).collect()
    }
}
