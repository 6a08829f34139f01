//! Looks after a row while it is being measured: says that it is still going on, and ends
//! everything when it takes longer than it may.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::exit::Exit;

/// A row that takes longer is spoken of.
const SILENCE: Duration = Duration::from_secs(2);

/// Watches rows, from a thread of its own that sleeps nearly always.
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    row: Mutex<State>,
    changed: Condvar,
    /// Whether this rank speaks.
    speaks: bool,
    limit: Option<Duration>,
}

#[derive(Default)]
struct State {
    row: Option<(String, Instant)>,
    ended: bool,
    /// Something stands in the terminal's last line.
    line: bool,
}

impl Watch {
    /// One rank speaks; every rank looks at the `limit`.
    pub fn start(speaks: bool, limit: Option<Duration>) -> Self {
        let shared =
            Arc::new(Shared { row: Mutex::default(), changed: Condvar::new(), speaks, limit });
        let watched = Arc::clone(&shared);
        let needed = speaks || limit.is_some();
        let thread = needed.then(|| thread::spawn(move || watched.watch()));
        Self { shared, thread }
    }

    /// A row begins.
    pub fn begin(&self, row: String) {
        self.shared.lock().row = Some((row, Instant::now()));
        self.shared.changed.notify_one();
    }

    /// The row is done; nothing of it is left on the terminal.
    pub fn end(&self) {
        let mut state = self.shared.lock();
        state.row = None;
        clear(&mut state);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only prints; a panic there changes no result.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.row.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn watch(&self) {
        let terminal = std::io::stderr().is_terminal();
        let every = if terminal { Duration::from_secs(1) } else { Duration::from_secs(10) };
        let mut next = SILENCE;
        let mut begun = None;
        let mut state = self.lock();
        while !state.ended {
            let Some((row, since)) = state.row.clone() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            if begun.replace(since) != Some(since) {
                next = SILENCE;
            }
            let elapsed = since.elapsed();
            self.end_if_late(&row, elapsed);
            if elapsed >= next && self.speaks {
                say(&mut state, &format!("{row}: {} s", elapsed.as_secs()), terminal);
                next = elapsed + every;
            }
            let pause = self.changed.wait_timeout(state, self.pause(next, elapsed));
            state = pause.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn pause(&self, next: Duration, elapsed: Duration) -> Duration {
        let speak = if self.speaks { next } else { Duration::MAX };
        speak.min(self.limit.unwrap_or(Duration::MAX)).saturating_sub(elapsed)
    }

    fn end_if_late(&self, row: &str, elapsed: Duration) {
        let Some(limit) = self.limit.filter(|limit| elapsed >= *limit) else {
            return;
        };
        eprintln!("warpmesh-perf: {row}: not done after {} s (-T); ending", limit.as_secs());
        std::process::exit(Exit::Timeout as i32);
    }
}

fn say(state: &mut State, text: &str, terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K# {text} ");
        state.line = true;
    } else {
        eprintln!("# {text}");
    }
}

fn clear(state: &mut State) {
    if std::mem::take(&mut state.line) {
        eprint!("\r\x1b[K");
        // The terminal may be gone; nothing is lost with it.
        let _ = std::io::stderr().flush();
    }
}
