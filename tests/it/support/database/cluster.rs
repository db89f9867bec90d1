//! A private PostgreSQL server, which goes when the test process goes, however that ends.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex},
};

use uuid::Uuid;

/// Below the ports that the kernel gives to outgoing connections, so that none of those
/// takes the port of a server that is stopped for a moment.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Keeps the server as long as its input is open. It reads the names of its functions, and answers
/// each with a line; whatever ends it, the server and its files go first. With a third argument
/// the server is a standby of the one on that port.
const KEEPER: &str = r#"
bin=$1 port=$2 primary=$3 server=
directory=$(mktemp -d "${TMPDIR:-/tmp}/watchpost-postgres-XXXXXX") || exit 1
stop() {
    [ -z "$server" ] || { kill -QUIT "$server"; wait "$server"; }
    server=
}
halt() {
    kill -INT "$server" && wait "$server"
    server=
}
start() {
    port=${1:-$port}
    "$bin/postgres" -D "$directory/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c max_connections=200 \
        </dev/null >>"$directory/log" 2>&1 &
    server=$!
    until "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" -U postgres; do
        kill -0 "$server" 2>/dev/null || { server=; return 1; }
        sleep 0.02
    done
}
promote() { "$bin/pg_ctl" promote -w -D "$directory/data" >>"$directory/log" 2>&1; }
reset() { "$bin/pg_resetwal" -f -D "$directory/data" "$@" >>"$directory/log" 2>&1; }
save() { rm -rf "$directory/saved" && cp -a "$directory/data" "$directory/saved"; }
put_back() { rm -rf "$directory/data" && cp -a "$directory/saved" "$directory/data"; }
trap 'stop; rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM
if [ -n "$primary" ]; then
    "$bin/pg_basebackup" -D "$directory/data" -R -c fast -h 127.0.0.1 -p "$primary" -U postgres
else
    "$bin/initdb" -D "$directory/data" -U postgres -A trust -E UTF8 --locale=C -N
fi </dev/null >"$directory/log" 2>&1 || { tail -n 5 "$directory/log"; exit 1; }
while read -r order arguments; do
    "$order" $arguments 2>/dev/null && echo done || { tail -n 5 "$directory/log"; exit 1; }
done
"#;

/// A PostgreSQL server of its own, which a test may stop and start again.
pub struct Cluster {
    port: u16,
    keeper: Arc<Mutex<Keeper>>,
}

impl Cluster {
    /// A running server with an empty database `postgres`.
    pub async fn start() -> Self {
        Self::start_with([]).await
    }

    /// The same with environment variables for PostgreSQL.
    pub async fn start_with<const N: usize>(variables: [(&'static str, OsString); N]) -> Self {
        let cluster = Self::keep(None, variables).await;
        cluster.order("start").await;
        cluster
    }

    /// A standby with what this server has now. It does not run, and so does not follow either.
    pub async fn standby(&self) -> Self {
        let standby = Self::keep(Some(self.port), []).await;
        // Answered once the files are copied.
        standby.order("true").await;
        standby
    }

    async fn keep<const N: usize>(primary: Option<u16>, variables: [(&'static str, OsString); N]) -> Self {
        let port = free_port();
        let keeper = tokio::task::spawn_blocking(move || Keeper::spawn(port, primary, &variables));
        let keeper = Arc::new(Mutex::new(keeper.await.expect("a keeper")));
        Self { port, keeper }
    }

    /// Starts a standby in the place of a server that was stopped, on its port, and makes it the primary.
    pub async fn take_over(&mut self, other: &Self) {
        self.port = other.port;
        self.order(&format!("start {}", self.port)).await;
        self.order("promote").await;
    }

    /// Stops the server as an operator would.
    pub async fn halt(&self) {
        self.order("halt").await;
    }

    /// Starts a server that was stopped.
    pub async fn resume(&self) {
        self.order("start").await;
    }

    /// Runs `pg_resetwal` on a server that is stopped.
    pub async fn reset_wal(&self, arguments: &str) {
        self.order(&format!("reset {arguments}")).await;
    }

    /// Copies the files of a server that is stopped.
    pub async fn save_files(&self) {
        self.order("save").await;
    }

    /// Puts the copy back, with the server stopped.
    pub async fn put_files_back(&self) {
        self.order("put_back").await;
    }

    /// Runs a program of PostgreSQL against this server.
    pub async fn run(&self, program: &str, arguments: &[&str]) {
        let output = tokio::process::Command::new(binaries().join(program))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(self.port.to_string())
            .args(arguments)
            .output()
            .await
            .expect("a program of PostgreSQL");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {error}");
    }

    /// Stops the server as a crash would: no checkpoint, and its clients are cut off.
    pub async fn stop(&self) {
        self.order("stop").await;
    }

    /// Starts the server again, on the same port and with the data that it had committed.
    pub async fn restart(&self) {
        self.order("stop").await;
        self.order("start").await;
    }

    /// Whether the server takes connections, or comes to do so by itself within ten seconds.
    pub async fn is_ready(&self) -> bool {
        for _ in 0..200 {
            let mut ready = tokio::process::Command::new(binaries().join("pg_isready"));
            ready.args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
            ready.arg(self.port.to_string());
            if ready.status().await.is_ok_and(|status| status.success()) {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        false
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    async fn order(&self, order: &str) {
        let (keeper, text) = (Arc::clone(&self.keeper), order.to_owned());
        let obey = move || keeper.lock().map(|mut keeper| keeper.obey(&text)).is_ok();
        let obeyed = tokio::task::spawn_blocking(obey).await;
        assert!(obeyed.is_ok_and(|obeyed| obeyed), "PostgreSQL did not {order}");
    }
}

/// The shell that runs [`KEEPER`]. Closing its input is what ends it.
struct Keeper {
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    shell: Child,
}

impl Keeper {
    fn spawn(port: u16, primary: Option<u16>, variables: &[(&str, OsString)]) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", KEEPER, "sh"])
            .arg(binaries())
            .arg(port.to_string())
            .arg(primary.map(|port| port.to_string()).unwrap_or_default())
            .current_dir("/")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the tests; the keeper has to live a little longer.
            .process_group(0);
        if let Some((user, group)) = unprivileged() {
            shell.uid(user).gid(group);
        }
        let mut shell = shell.spawn().expect("sh");
        Self {
            orders: shell.stdin.take(),
            answers: BufReader::new(shell.stdout.take().expect("a piped output")),
            shell,
        }
    }

    fn obey(&mut self, order: &str) {
        let orders = self.orders.as_mut().expect("an open input");
        writeln!(orders, "{order}").expect("a keeper that reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        if answer.trim() != "done" {
            while self.answers.read_line(&mut answer).is_ok_and(|read| read > 0) {}
            panic!("PostgreSQL could not {order}: {answer}");
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        self.shell.wait().ok();
    }
}

/// The directory of the newest installed server.
fn binaries() -> PathBuf {
    let version = |directory: &PathBuf| -> Option<u32> { directory.parent()?.file_name()?.to_str()?.parse().ok() };
    let mut installed: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    installed.sort_by_key(version);
    installed.reverse();
    if let Ok(configured) = Command::new("pg_config").arg("--bindir").output() {
        installed.push(String::from_utf8_lossy(&configured.stdout).trim().into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    installed.extend(std::env::split_paths(&path));
    let complete = |directory: &PathBuf| {
        ["initdb", "postgres", "pg_isready"].iter().all(|program| directory.join(program).is_file())
    };
    installed.into_iter().find(complete).expect(
        "a PostgreSQL server: no initdb, postgres and pg_isready in /usr/lib/postgresql/*/bin, \
         where pg_config says, or in PATH. Install PostgreSQL 15 or newer, or let \
         WATCHPOST_TEST_DATABASE_URL name a server",
    )
}

/// Who runs the server if we are root, as which it refuses to run: `postgres`, or else
/// `nobody`.
fn unprivileged() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").ok()?.uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let user = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    user("postgres").or_else(|| user("nobody"))
}

fn free_port() -> u16 {
    let span = u128::from(PORTS.end - PORTS.start);
    let candidate = || {
        let offset = u16::try_from(Uuid::now_v7().as_u128() % span).expect("less than the span");
        PORTS.start + offset
    };
    std::iter::repeat_with(candidate)
        .take(100)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}
