//! A terminal, as `script` of util-linux makes one, and what is to be seen on it.

use std::{
    fs,
    num::NonZero,
    process::Stdio,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::timeout,
};

use super::{PATIENCE, eventually_ok};

/// A terminal in which the binary runs, and after it what tells how it left the terminal.
pub struct Terminal {
    child: Child,
    keys: ChildStdin,
    parser: Arc<Mutex<vt100::Parser>>,
    reading: JoinHandle<()>,
    folder: TempDir,
}

impl Terminal {
    /// Runs the binary with these arguments in a terminal of this size.
    pub fn start(args: &str, (rows, columns): (u16, u16)) -> Self {
        let folder = TempDir::with_prefix("watchpost-terminal-").unwrap();
        let binary = env!("CARGO_BIN_EXE_watchpost");
        let script = format!(
            "stty rows {rows} cols {columns}\n\
             sh -c 'echo $$ > pid; exec \"{binary}\" {args} 2> log'\n\
             echo \"ended with $?\"\n\
             stty -a | grep -o -w -e '-*icanon' -e '-*echo'\n",
        );
        fs::write(folder.path().join("run"), script).unwrap();
        let mut child = Command::new("script")
            .args(["-qfec", "sh ./run", "/dev/null"])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("TERM", "xterm-256color")
            .env("TZ", "UTC")
            .current_dir(folder.path())
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`script`, of util-linux");
        let keys = child.stdin.take().unwrap();
        let mut output = child.stdout.take().unwrap();
        let parser = Arc::new(Mutex::new(parser(rows, columns)));
        let seen = Arc::clone(&parser);
        let reading = tokio::spawn(async move {
            let mut buffer = [0; 4_096];
            while let Ok(length @ 1..) = output.read(&mut buffer).await {
                seen.lock().unwrap().process(&buffer[..length]);
            }
        });
        Self { child, keys, parser, reading, folder }
    }

    /// What is to be seen now.
    pub fn text(&self) -> String {
        self.parser.lock().unwrap().screen().contents()
    }

    /// Whether the screen is the alternate one, and whether the cursor is hidden.
    pub fn taken(&self) -> (bool, bool) {
        let parser = self.parser.lock().unwrap();
        let screen = parser.screen();
        (screen.alternate_screen(), screen.hide_cursor())
    }

    /// Waits until what is to be seen is as it should be.
    pub async fn shows(&self, what: &str, good: impl Fn(&str) -> bool) {
        eventually_ok(&format!("the screen shows {what}"), async || {
            let text = self.text();
            if good(&text) { Ok(()) } else { Err(format!("\n{text}")) }
        })
        .await;
    }

    /// Types this.
    pub async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    /// Sends the binary a signal by its name.
    pub async fn signal(&self, name: &str) {
        let pid = fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let sent = Command::new("kill").args([&format!("-{name}"), pid.trim()]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits until the binary has ended, which must leave the terminal as it was and nothing on
    /// standard error. Returns what is to be seen then.
    pub async fn ended(mut self) -> String {
        timeout(PATIENCE, self.child.wait())
            .await
            .unwrap_or_else(|_| panic!("it does not end:\n{}", self.text()))
            .unwrap();
        timeout(PATIENCE, &mut self.reading).await.expect("the end of the output").unwrap();
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap();
        assert_eq!((self.taken(), log.as_str()), ((false, false), ""));
        let text = self.text();
        let words: Vec<_> = text.split_whitespace().collect();
        assert!(words.ends_with(&["icanon", "echo"]), "{text}");
        text
    }
}

fn parser(rows: u16, columns: u16) -> vt100::Parser {
    let some = |size| NonZero::new(size).expect("a terminal has a size");
    vt100::Parser::new(some(rows), some(columns), 0)
}
