//! The server's files: lock, data folder, socket folder, who may log in. Makes them; runs `initdb` once.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::binaries::Binaries;
use super::owner::Owner;
use super::{EmbeddedError, SUPERUSER};

/// `sockaddr_un.sun_path` holds 108 bytes, the last of them zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;
const SOCKET_FILE: &str = ".s.PGSQL.5432";
/// A log above this is renamed at the next start, replacing the one before.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;
/// What an error shows of the log.
const LOG_TAIL_BYTES: u64 = 2_000;

/// A data folder that is ours: locked, and ready for a server.
pub struct Cluster {
    pub owner: Owner,
    pub binaries: Binaries,
    store_dir: PathBuf,
    socket_dir: PathBuf,
    /// Held for as long as a gateway uses the folder. Not inherited by the server, so a killed gateway frees it.
    _lock: File,
}

impl Cluster {
    /// Locks the folder, checks the version, makes what is missing.
    pub async fn prepare(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = make_dir_absolute(data_dir)?;
        let lock = lock(&data_dir)?;
        tokio::task::spawn_blocking(move || Self::prepare_locked(&data_dir, lock))
            .await
            .map_err(|error| EmbeddedError::Initdb(error.to_string()))?
    }

    fn prepare_locked(data_dir: &Path, lock: File) -> Result<Self, EmbeddedError> {
        let owner = Owner::find()?;
        let store_dir = data_dir.join("store");
        let recorded = read_version(&store_dir.join("cluster"));
        let binaries = Binaries::find(recorded.as_deref().and_then(|version| version.parse().ok()))?;
        if let Some(found) = recorded
            && found != binaries.major.to_string()
        {
            let installed = binaries.major.to_string();
            return Err(EmbeddedError::OtherVersion {
                folder: store_dir.join("cluster"),
                found,
                installed,
            });
        }
        reachable(data_dir, &owner)?;
        owned_dir(&store_dir, &owner)?;
        let socket_dir = socket_dir(&store_dir, &owner)?;
        let cluster = Self {
            owner,
            binaries,
            store_dir,
            socket_dir,
            _lock: lock,
        };
        if !cluster.data_dir().exists() {
            cluster.initdb()?;
        }
        cluster.write_access_files()?;
        cluster.rotate_log()?;
        Ok(cluster)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.store_dir.join("cluster")
    }

    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    pub fn log(&self) -> PathBuf {
        self.store_dir.join("postgres.log")
    }

    /// The last lines of the server's log, for an error.
    pub fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().unwrap_or_default()
    }

    /// A program of the server's, run as its user, with an environment of its own: none of the gateway's secrets.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .current_dir(&self.store_dir)
            .stdin(Stdio::null());
        if self.owner.drops() {
            command.uid(self.owner.server.uid).gid(self.owner.server.gid);
        }
        command
    }

    /// The socket's folder is made anew at each start, after a clean stop.
    pub fn remove_socket_dir(&self) {
        if let Err(error) = fs::remove_dir_all(&self.socket_dir) {
            tracing::debug!(%error, folder = %self.socket_dir.display(), "the socket's folder was not removed");
        }
    }

    /// Makes the cluster beside its final place, so that one that was interrupted is never taken for whole.
    fn initdb(&self) -> Result<(), EmbeddedError> {
        let new = self.store_dir.join("cluster.new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(at("remove", &new))?;
        }
        let mut command = self.command("initdb");
        command
            .arg("-D")
            .arg(&new)
            .args(["-U", SUPERUSER, "--encoding=UTF8", "--locale=C", "--data-checksums"])
            .args(["--auth-local=peer", "--auth-host=reject"]);
        let program = self.binaries.program("initdb");
        let output = command
            .output()
            .map_err(|source| EmbeddedError::Run { program, source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(EmbeddedError::Initdb(format!("{} ({said})", output.status)));
        }
        fs::rename(&new, self.data_dir()).map_err(at("rename", &new))?;
        File::open(&self.store_dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at("sync", &self.store_dir))
    }

    /// Only the gateway's own user, over the unix socket. Written at each start: the data may have moved.
    fn write_access_files(&self) -> Result<(), EmbeddedError> {
        let hba = format!("# Written by the gateway at each start.\nlocal all {SUPERUSER} peer map=gateway\n");
        let ident = format!(
            "# Written by the gateway at each start.\ngateway \"{}\" {SUPERUSER}\n",
            self.owner.gateway.name
        );
        for (name, text) in [("pg_hba.conf", hba), ("pg_ident.conf", ident)] {
            let path = self.data_dir().join(name);
            if fs::read_to_string(&path).is_ok_and(|found| found == text) {
                continue;
            }
            fs::write(&path, text).map_err(at("write", &path))?;
            self.give(&path)?;
        }
        Ok(())
    }

    fn rotate_log(&self) -> Result<(), EmbeddedError> {
        let log = self.log();
        if fs::metadata(&log).is_ok_and(|found| found.len() > MAX_LOG_BYTES) {
            fs::rename(&log, log.with_extension("log.old")).map_err(at("rename", &log))?;
        }
        let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&log);
        open.map_err(at("open", &log))?;
        self.give(&log)
    }

    fn give(&self, path: &Path) -> Result<(), EmbeddedError> {
        give(path, &self.owner)
    }
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> EmbeddedError + use<> {
    let path = path.to_owned();
    move |source| EmbeddedError::File { action, path, source }
}

fn make_dir_absolute(dir: &Path) -> Result<PathBuf, EmbeddedError> {
    if !dir.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at("make", dir))?;
    }
    fs::canonicalize(dir).map_err(at("find", dir))
}

fn lock(data_dir: &Path) -> Result<File, EmbeddedError> {
    let path = data_dir.join("store.lock");
    let open = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let file = open.map_err(at("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EmbeddedError::InUse {
            folder: data_dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(at("lock", &path)(source)),
    }
}

fn read_version(cluster: &Path) -> Option<String> {
    fs::read_to_string(cluster.join("PG_VERSION"))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Makes sure that the server's user can walk down to the data folder. The folder itself is the gateway's, so its group
/// may be the server's, with the right to pass through and nothing else; what lies above is the administrator's.
fn reachable(data_dir: &Path, owner: &Owner) -> Result<(), EmbeddedError> {
    if !owner.drops() {
        return Ok(());
    }
    let passes = |dir: &Path| -> Result<bool, EmbeddedError> {
        let meta = fs::metadata(dir).map_err(at("read", dir))?;
        let mode = meta.mode();
        Ok(if meta.uid() == owner.server.uid {
            mode & 0o100 != 0
        } else if meta.gid() == owner.server.gid {
            mode & 0o010 != 0
        } else {
            mode & 0o001 != 0
        })
    };
    if !passes(data_dir)? {
        let meta = fs::metadata(data_dir).map_err(at("read", data_dir))?;
        chown(data_dir, None, Some(owner.server.gid)).map_err(at("change the group of", data_dir))?;
        let mode = meta.mode() & 0o7707 | 0o010;
        fs::set_permissions(data_dir, fs::Permissions::from_mode(mode)).map_err(at("change the mode of", data_dir))?;
    }
    for above in data_dir.ancestors() {
        if !passes(above)? {
            return Err(EmbeddedError::NotReachable {
                user: owner.server.name.clone(),
                folder: above.to_owned(),
            });
        }
    }
    Ok(())
}

/// A folder of mode 0700 that is the server's.
fn owned_dir(dir: &Path, owner: &Owner) -> Result<(), EmbeddedError> {
    if !dir.exists() {
        DirBuilder::new().mode(0o700).create(dir).map_err(at("make", dir))?;
    }
    give(dir, owner)
}

fn give(path: &Path, owner: &Owner) -> Result<(), EmbeddedError> {
    if owner.drops() {
        chown(path, Some(owner.server.uid), Some(owner.server.gid)).map_err(at("change the owner of", path))?;
    }
    Ok(())
}

/// The folder of the unix socket: short, private, in the machine's temporary folder, named in the file `socket`. One
/// that is recorded is used again if it is still ours alone.
fn socket_dir(store_dir: &Path, owner: &Owner) -> Result<PathBuf, EmbeddedError> {
    let record = store_dir.join("socket");
    if let Ok(text) = fs::read_to_string(&record) {
        let dir = PathBuf::from(text.trim());
        let ours = fs::symlink_metadata(&dir)
            .is_ok_and(|meta| meta.is_dir() && meta.uid() == owner.server.uid && meta.mode() & 0o7777 == 0o700);
        if ours && fits(&dir) {
            return Ok(dir);
        }
    }
    let name = format!("hoop-{:08x}", rand::random::<u32>());
    let dir = [std::env::temp_dir(), PathBuf::from("/tmp")]
        .into_iter()
        .map(|parent| parent.join(&name))
        .find(|dir| fits(dir) && dir.is_absolute() && dir.parent().is_some_and(reachable_by_all))
        .unwrap_or_else(|| Path::new("/tmp").join(&name));
    DirBuilder::new().mode(0o700).create(&dir).map_err(at("make", &dir))?;
    give(&dir, owner)?;
    fs::write(&record, dir.as_os_str().as_bytes()).map_err(at("write", &record))?;
    give(&record, owner)?;
    Ok(dir)
}

fn fits(dir: &Path) -> bool {
    dir.join(SOCKET_FILE).as_os_str().len() <= MAX_SOCKET_PATH_BYTES
}

fn reachable_by_all(dir: &Path) -> bool {
    dir.ancestors()
        .all(|above| fs::metadata(above).is_ok_and(|meta| meta.mode() & 0o001 != 0))
}

#[cfg(test)]
mod tests {
    use super::super::owner::User;
    use super::*;

    fn dropping() -> Owner {
        let user = |name: &str, id| User {
            name: name.to_owned(),
            uid: id,
            gid: id,
        };
        Owner {
            gateway: user("root", 0),
            server: user("server", 4_000),
        }
    }

    #[test]
    fn a_private_data_folder_is_opened_to_the_servers_group_alone_and_what_is_above_is_named() {
        let owner = dropping();
        if Owner::find().is_ok_and(|found| found.gateway.uid != 0) {
            eprintln!("skipped: only root can give a folder away");
            return;
        }
        let above = tempfile::tempdir().unwrap();
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let data = above.path().join("data");
        DirBuilder::new().mode(0o700).create(&data).unwrap();
        let told = reachable(&data, &owner).unwrap_err().to_string();
        assert!(
            told.contains(&above.path().display().to_string()) && told.contains("/var/lib/hoop"),
            "{told}"
        );
        fs::set_permissions(above.path(), fs::Permissions::from_mode(0o711)).unwrap();
        reachable(&data, &owner).unwrap();
        let meta = fs::metadata(&data).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 4_000, 0o710));
    }

    #[test]
    fn a_socket_folder_is_short_private_and_used_again() {
        let user = Owner::find().unwrap().gateway;
        let owner = Owner {
            gateway: user.clone(),
            server: user,
        };
        let store = tempfile::tempdir().unwrap();
        let first = socket_dir(store.path(), &owner).unwrap();
        assert!(fits(&first));
        assert_eq!(fs::metadata(&first).unwrap().mode() & 0o777, 0o700);
        assert_eq!(socket_dir(store.path(), &owner).unwrap(), first);
        fs::set_permissions(&first, fs::Permissions::from_mode(0o755)).unwrap();
        let second = socket_dir(store.path(), &owner).unwrap();
        assert_ne!(second, first, "a folder that others may enter is not trusted");
        fs::remove_dir(first).unwrap();
        fs::remove_dir(second).unwrap();
    }

    #[test]
    fn a_folder_is_locked_once() {
        let data = tempfile::tempdir().unwrap();
        let held = lock(data.path()).unwrap();
        assert!(matches!(lock(data.path()), Err(EmbeddedError::InUse { .. })));
        drop(held);
        lock(data.path()).unwrap();
    }
}
