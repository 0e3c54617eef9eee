//! `swctl top`: a live view.
//!
//! [`State`] is all that is shown, made from what swd answers; [`draw`] draws it. Neither knows a terminal or a clock.

mod draw;
mod state;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ctl::client::Client;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

pub(crate) use state::Sort;
use state::{Sample, State};

/// How often the keyboard is asked, and whether anybody still listens to it.
const KEYS: Duration = Duration::from_millis(100);

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Redraw,
    Sort(Sort),
    NextSort,
    Reverse,
    Scroll(i64),
}

/// `swctl top`: until `q`, an interrupt, or the end of swd.
pub(crate) async fn top(client: &Client, sort: Sort, interval: u64) -> anyhow::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        bail!("'swctl top' needs a terminal; scripts are better served by 'swctl --json stats' or /metrics");
    }
    // Before the screen changes: a daemon that is not there is told in an ordinary line.
    let mut state = State::new(sort);
    state.take(sample(client).await?, Instant::now());
    let mut terminated = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let (wishes, mut wished) = mpsc::channel(16);
    let mut terminal = ratatui::try_init().context("cannot take over the terminal")?;
    std::thread::spawn(move || listen(&wishes));
    let mut every = tokio::time::interval(Duration::from_secs(interval));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let result = loop {
        if let Err(error) = terminal.draw(|frame| draw::draw(frame, &state)) {
            break Err(error).context("cannot draw");
        }
        tokio::select! {
            _ = every.tick() => match sample(client).await {
                Ok(sample) => state.take(sample, Instant::now()),
                Err(error) => break Err(error),
            },
            wish = wished.recv() => match wish {
                None | Some(Wish::Quit) => break Ok(()),
                Some(Wish::Redraw) => {}
                Some(Wish::Sort(sort)) => state.sort_by(sort),
                Some(Wish::NextSort) => state.sort_by(state.sort().next()),
                Some(Wish::Reverse) => state.reverse(),
                Some(Wish::Scroll(by)) => state.scroll(by),
            },
            _ = terminated.recv() => break Ok(()),
        }
    };
    // Whatever the end was, the terminal is given back as it was.
    ratatui::restore();
    result
}

async fn sample(client: &Client) -> anyhow::Result<Sample> {
    Ok(Sample { status: client.status().await?, ports: client.ports().await?, drops: client.drops().await? })
}

/// Reads the keyboard until nobody wants to know.
fn listen(wishes: &mpsc::Sender<Wish>) {
    while !wishes.is_closed() {
        match event::poll(KEYS) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if let Some(wish) = wish(&event)
                    && wishes.blocking_send(wish).is_err()
                {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

fn wish(event: &Event) -> Option<Wish> {
    let key = match event {
        Event::Resize(..) => return Some(Wish::Redraw),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Wish::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Char('s') => Wish::NextSort,
        KeyCode::Char('n') => Wish::Sort(Sort::Name),
        KeyCode::Char('b') => Wish::Sort(Sort::Rate),
        KeyCode::Char('f') => Wish::Sort(Sort::Frames),
        KeyCode::Char('d') => Wish::Sort(Sort::Drops),
        KeyCode::Char('c') => Wish::Sort(Sort::Connections),
        KeyCode::Char('r') => Wish::Reverse,
        KeyCode::Down | KeyCode::Char('j') => Wish::Scroll(1),
        KeyCode::Up | KeyCode::Char('k') => Wish::Scroll(-1),
        KeyCode::PageDown => Wish::Scroll(10),
        KeyCode::PageUp => Wish::Scroll(-10),
        KeyCode::Home => Wish::Scroll(i64::MIN),
        _ => return None,
    })
}
