//! A private PostgreSQL of the machine's own binaries, in a temporary folder, on a free port of 127.0.0.1.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::authority::Leaf;

const START_DEADLINE: Duration = Duration::from_secs(60);

pub struct Postgres {
    pub port: u16,
    child: Child,
    bin: PathBuf,
    dir: tempfile::TempDir,
}

impl Postgres {
    /// `hba` are the lines of pg_hba.conf for TCP; the socket is trusted.
    pub fn start(hba: &str, tls: Option<&Leaf>, setup: &str) -> Self {
        let bin = binaries();
        let owner = owner();
        let dir = tempfile::Builder::new()
            .prefix("hoop-agent-pg")
            .tempdir_in("/tmp")
            .unwrap();
        own(dir.path(), owner, 0o700);
        let data = dir.path().join("data");
        let made = run(command(&bin, "initdb", owner).arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C.UTF-8",
        ]));
        assert!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        fs::write(data.join("pg_hba.conf"), format!("local all all trust\n{hba}\n")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut settings = vec!["fsync=off".to_owned(), "listen_addresses=127.0.0.1".to_owned()];
        if let Some(leaf) = tls {
            for (name, text) in [("server.crt", &leaf.chain_pem), ("server.key", &leaf.key_pem)] {
                fs::write(data.join(name), text).unwrap();
                own(&data.join(name), owner, 0o600);
            }
            settings.push("ssl=on".to_owned());
        }
        let mut start = command(&bin, "postgres", owner);
        start
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(dir.path())
            .arg("-p")
            .arg(port.to_string());
        for setting in &settings {
            start.args(["-c", setting]);
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = start.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let server = Self { port, child, bin, dir };
        let deadline = Instant::now() + START_DEADLINE;
        while !server.psql("select 1").status.success() {
            assert!(Instant::now() < deadline, "PostgreSQL did not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        let done = server.psql(setup);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        server
    }

    pub fn psql(&self, sql: &str) -> Output {
        run(Command::new(self.bin.join("psql"))
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-c",
                sql,
            ])
            .arg("-h")
            .arg(self.dir.path())
            .args(["-p", &self.port.to_string()]))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Immediate shutdown, so that its shared memory goes too.
        let _ = Command::new("kill")
            .args(["-QUIT", &self.child.id().to_string()])
            .status();
        let _ = self.child.wait();
    }
}

fn binaries() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|bin| bin.join("initdb").exists());
    found.sort();
    found.pop().unwrap_or_else(|| {
        let path = Command::new("pg_config")
            .arg("--bindir")
            .output()
            .expect("PostgreSQL must be installed");
        PathBuf::from(String::from_utf8(path.stdout).unwrap().trim())
    })
}

/// PostgreSQL refuses to run as root.
fn owner() -> Option<(u32, u32)> {
    let id = |what: &str, user: &str| -> u32 {
        let output = Command::new("id").args([what, user]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    };
    let me: u32 = String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    (me == 0).then(|| (id("-u", "postgres"), id("-g", "postgres")))
}

fn own(path: &Path, owner: Option<(u32, u32)>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn command(bin: &Path, program: &str, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(bin.join(program));
    if let Some((uid, gid)) = owner {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env("LC_ALL", "C.UTF-8");
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}
