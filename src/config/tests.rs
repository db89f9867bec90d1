//! Tests of settings and their sources.

use std::time::Duration;

use super::*;

const NONE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn wrong(args: &[&str]) -> String {
    match read(["watchpost"].iter().chain(args).copied()) {
        Err(EarlyExit::Invalid(problem)) => problem,
        other => panic!("{args:?}: {other:?}"),
    }
}

#[test]
fn the_defaults_are_good() {
    let cli = read(["watchpost"]).unwrap();
    assert_eq!(cli.settings.database().url, "sqlite://./watchpost-data/watchpost.db");
    assert_eq!(cli.settings.listen, "127.0.0.1:50051");
    assert_eq!(cli.settings.metrics_listen, None);
    let for_ever = read(["watchpost", "--job-retention-dead", "0"]).unwrap();
    assert_eq!(for_ever.settings.job_retention().dead, Duration::ZERO);
}

#[test]
fn a_bad_setting_is_named_in_one_line() {
    for (args, name) in [
        (&["--listen", "nowhere"][..], "--listen"),
        (&["--listen", "host:99999"], "--listen"),
        (&["--metrics-listen", "9400"], "--metrics-listen"),
        (&["--metrics-listen", ":9400"], "--metrics-listen"),
        (&["--database-url", "mysql://x"], "--database-url"),
        (&["--database-url", "sqlite://:memory:"], "--database-url"),
        (&["--database-connections", "1"], "--database-connections"),
        (&["--sqlite-synchronous", "off"], "--sqlite-synchronous"),
        (&["--gpu-interval", "1ms"], "--gpu-interval"),
        (&["--gpu-stats-retention", "59m"], "--gpu-stats-retention"),
        (&["--gpu-rollup-retention", "29d"], "--gpu-rollup-retention"),
        (&["--log", "a=b=c"], "--log"),
        (&["--log", "verbose"], "--log"),
        (&["--log", "info,watchpost"], "--log"),
        (&["--log", "info,watchpost=loud"], "--log"),
        (&["--log", ","], "--log"),
        (&["--max-watches", "-1"], "--max-watches"),
        (&["--job-retention-dead", "3651d"], "--job-retention-dead"),
        (&["jobs", "watch", "x"], "<ID>"),
        (&["jobs", "watch", NONE, "--server", "host"], "--server"),
        (&["--no-such-setting", "1"], "--no-such-setting"),
        (&["nonsense"], "nonsense"),
        (&["migrate", "down"], "STEPS"),
        (&["top", "--server", "host"], "--server"),
        (&["agent", "--server", "https://host:1"], "--server"),
        (&["agent", "--server", "http://host"], "--server"),
        (&["agent", "--server", "http://u:p@host:1"], "--server"),
        (&["agent", "--server", "http://host:1/path"], "--server"),
    ] {
        let problem = wrong(args);
        assert!(problem.contains(name) && !problem.contains('\n'), "{args:?}: {problem}");
    }
    assert!(!wrong(&["--database-url", "mysql://u:secret@h/d"]).contains("secret"));
}

#[test]
fn the_url_of_the_database_can_be_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    let file = path.to_str().unwrap();
    let url = "postgres://u:secret@h/d";
    std::fs::write(&path, format!("{url}\n")).unwrap();
    let cli = read(["watchpost", "--database-url-file", file]).unwrap();
    assert_eq!(cli.settings.database().url, url);
    let both = ["--database-url-file", file, "--database-url", "sqlite://x"];
    assert!(wrong(&both).contains("beside"));
    for text in ["", "mysql://u:secret@h/d", "postgres://u:secret@h/d\nmore"] {
        std::fs::write(&path, text).unwrap();
        let problem = wrong(&["--database-url-file", file]);
        assert!(problem.contains("--database-url-file") && !problem.contains("secret"), "{problem}");
    }
    assert!(wrong(&["--database-url-file", "/no/such/file"]).contains("/no/such/file"));
}

#[test]
fn a_flag_beats_the_file_and_the_file_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("watchpost.toml");
    let config = path.to_str().unwrap();
    std::fs::write(&path, "listen = \"127.0.0.1:1\"\nmax_watches = 7\ngpu_interval = \"2s\"\n").unwrap();
    let settings = read(["watchpost", "--config", config, "--listen", "127.0.0.1:2"]).unwrap().settings;
    assert_eq!((settings.listen.as_str(), settings.max_watches), ("127.0.0.1:2", 7));
    assert_eq!(settings.gpu_interval, Duration::from_secs(2));
    std::fs::write(&path, "server = \"http://h:1\"\nreport_buffer = 7\n").unwrap();
    let cli = read(["watchpost", "agent", "--config", config]).unwrap();
    match cli.command {
        Some(Command::Agent { server: Some(server), report_buffer }) => {
            assert_eq!((server.to_string().as_str(), report_buffer), ("http://h:1/", 7));
        }
        other => panic!("{other:?}"),
    }
    match read(["watchpost", "top", "--config", config]).unwrap().command {
        Some(Command::Top { server }) => assert_eq!(server, "http://h:1"),
        other => panic!("{other:?}"),
    }
    let jobs = ["watchpost", "jobs", "watch", NONE, "--config", config];
    match read(jobs).unwrap().command {
        Some(Command::Jobs { server, .. }) => assert_eq!(server, "http://h:1"),
        other => panic!("{other:?}"),
    }
    assert!(read(["watchpost", "--config", config]).is_ok());
    for (text, name) in [
        ("nope = 1", "nope"),
        ("listen = 1.5", "listen"),
        ("listen = \"x\"", "--listen"),
        ("config = \"x\"", "config"),
        ("= x", "TOML"),
        ("listen = [\"127.0.0.1:1\"]", "listen"),
        ("notification_networks = [1.5]", "notification_networks"),
        ("notification_networks = [\"10.0.0.0\", \"x\"]", "--notification-networks"),
        ("\n\nmax_watches = -1", "line 3"),
        ("\n\n\nnope = 1", "line 4"),
        ("\n= x", "line 2"),
    ] {
        std::fs::write(&path, text).unwrap();
        assert!(wrong(&["--config", config]).contains(name), "{text}");
    }
    assert!(wrong(&["--config", "/no/such/file"]).contains("config"));
    let flag = wrong(&["--listen", "x"]);
    assert!(flag.ends_with("(from the command line)"), "{flag}");
    let text = "notification_networks = [\"10.0.0.0/8\", \"fd00::/8\"]\n";
    std::fs::write(&path, text).unwrap();
    let settings = read(["watchpost", "--config", config]).unwrap().settings;
    assert_eq!(settings.notification_networks.len(), 2);
}
