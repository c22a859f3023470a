//! `rotate-master-key`: a new master key while the gateways serve. Each step looks at what is, so that the command may be
//! killed at any point and run again:
//!
//! 1. the key file gets a new key behind the present one; every live replica must know it;
//! 2. the new key moves to the front; every live replica must seal with it, and its journal need no other;
//! 3. everything that is sealed in the store is sealed anew, until a whole pass finds nothing under another key;
//! 4. the old key leaves the file.
//!
//! It never rewrites a chunk of evidence: only the data keys of sessions are sealed anew.
#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use hoop_evidence::fault;
use hoop_store::Store;
use hoop_store::master_keys::{ReplicaKeys, Rotation};
use hoop_store::reseal::Resealed;
use hoop_store::seal::KeyId;

use crate::commands::{close, open};
use crate::config::Config;
use crate::key_file::{self, Key};

/// Exit code where the rotation waits for something: run it again.
const UNFINISHED: u8 = 3;
/// How often the replicas' reports are read.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Passes over the store at most; more mean that somebody still seals with an old key.
const PASSES_MAX: usize = 10;

#[derive(Args)]
pub struct RotateMasterKey {
    /// Only say how far a rotation is, and what is sealed under which key.
    #[arg(long, visible_alias = "dry-run")]
    status: bool,
    /// How long to wait for the replicas at each step, in seconds.
    #[arg(long, default_value_t = 60)]
    wait: u64,
    /// Let the old key go although sessions of a replica that is gone have no end in the store: what is only in that
    /// replica's journal can then be read with the old key alone.
    #[arg(long)]
    give_up_journals: bool,
}

impl RotateMasterKey {
    pub async fn run(self, config: &Config) -> Result<ExitCode> {
        let (store, embedded) = open(config).await?;
        let done = if self.status {
            status(&store).await.map(|()| true)
        } else {
            self.rotate(config, &store).await
        };
        close(embedded).await;
        Ok(if done? {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(UNFINISHED)
        })
    }

    /// False: it waits for something.
    async fn rotate(&self, config: &Config, store: &Store) -> Result<bool> {
        let path = &config.master_key_file;
        let mut file = KeyFile::read(path)?;
        let rotation = begun(&mut file, store).await?;
        println!("rotating from {} to {}", rotation.old_key, rotation.new_key);
        let knows = |replica: &ReplicaKeys| replica.keys.contains(&rotation.new_key);
        if !self.wait_for(store, path, "know the new key", knows).await? {
            return Ok(false);
        }
        file.put_first(&rotation.new_key, store)?;
        fault::point("rotate_first");
        let seals = |replica: &ReplicaKeys| {
            replica.keys.first() == Some(&rotation.new_key)
                && replica.journal_keys.iter().all(|key| *key == rotation.new_key)
        };
        if !self.wait_for(store, path, "seal with the new key alone", seals).await? {
            return Ok(false);
        }
        reseal(store).await?;
        if !self.journals_are_in(config, store).await? {
            return Ok(false);
        }
        fault::point("rotate_sealed");
        file.keep_only(&rotation.new_key, store)?;
        fault::point("rotate_alone");
        store.finish_rotation(&rotation).await?;
        println!(
            "done: nothing is sealed under {} any more, and {} holds the new key alone",
            rotation.old_key,
            path.display()
        );
        println!("keep the old key with exports, database backups and journal copies that were made before");
        Ok(true)
    }

    /// Waits until every live replica is as it should be.
    async fn wait_for(
        &self,
        store: &Store,
        path: &Path,
        what: &str,
        is_so: impl Fn(&ReplicaKeys) -> bool,
    ) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(self.wait);
        loop {
            let replicas = store.replica_keys().await?;
            let late: Vec<&ReplicaKeys> = replicas.iter().filter(|replica| !is_so(replica)).collect();
            if late.is_empty() {
                println!("{} live replicas {what}", replicas.len());
                return Ok(true);
            }
            if Instant::now() >= deadline {
                for replica in late {
                    println!(
                        "the replica {} at {} does not {what}: put {} there as its master_key_file, then run this again \
                         (its keys: {}; its journal needs: {})",
                        replica.replica,
                        replica.address,
                        path.display(),
                        list(&replica.keys),
                        list(&replica.journal_keys)
                    );
                }
                return Ok(false);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Whether what replicas wrote that are gone is in the store.
    async fn journals_are_in(&self, config: &Config, store: &Store) -> Result<bool> {
        let sessions = store.sessions_without_their_journal().await?;
        let nobody_serves = store.replica_keys().await?.is_empty();
        let left_here = nobody_serves && journal_files(&config.data_dir.join("journal"));
        if sessions == 0 && !left_here {
            return Ok(true);
        }
        println!(
            "{sessions} sessions of replicas that are gone have no end in the store{}: their journals were sealed under \
             the old key",
            if left_here {
                ", and journal files lie in the data folder"
            } else {
                ""
            }
        );
        if self.give_up_journals {
            return Ok(true);
        }
        println!(
            "start those replicas once, or take their journals over with `hoop-gateway journal import`, then run this \
             again; or let them go with --give-up-journals"
        );
        Ok(false)
    }
}

/// The rotation that is under way, or a new one. A new key is in the file before the store speaks of it.
async fn begun(file: &mut KeyFile, store: &Store) -> Result<Rotation> {
    if let Some(rotation) = store.rotation().await? {
        if !file.ids(store)?.contains(&rotation.new_key) {
            bail!(
                "a rotation to the key {} is under way, and {} does not hold that key: run this where it was begun, or \
                 put that host's file here",
                rotation.new_key,
                file.path.display()
            );
        }
        return Ok(rotation);
    }
    if file.keys.len() == 1 {
        file.keys.push(key_file::fresh()?);
        file.save(store)?;
        fault::point("rotate_added");
    }
    let [old_key, new_key] = <[KeyId; 2]>::try_from(file.ids(store)?).map_err(|ids| {
        anyhow::anyhow!(
            "{} holds {} keys and no rotation is under way: leave the key that seals, alone or with its successor",
            file.path.display(),
            ids.len()
        )
    })?;
    let rotation = Rotation { old_key, new_key };
    if !store.begin_rotation(&rotation).await? {
        bail!(
            "the key {} in {} was rotated away before: remove its line",
            rotation.new_key,
            file.path.display()
        );
    }
    Ok(rotation)
}

/// Passes until one finds nothing under another key.
async fn reseal(store: &Store) -> Result<()> {
    for pass in 1..=PASSES_MAX {
        let found = store.reseal(true, |_| fault::point("rotate_batch")).await?;
        let sum = |of: fn(&Resealed) -> u64| found.iter().map(of).sum::<u64>();
        let (values, changed, unopened) = (
            sum(|column| column.values),
            sum(|column| column.under_other_keys),
            sum(|column| column.unopened),
        );
        println!("pass {pass}: {values} sealed values, {changed} sealed anew");
        if unopened > 0 {
            show(&found);
            bail!(
                "{unopened} sealed values open with no key of the file: put the key that they were sealed with into it"
            );
        }
        if changed == 0 {
            return Ok(());
        }
    }
    bail!("values under the old key keep coming: is a gateway running that the store does not know?")
}

async fn status(store: &Store) -> Result<()> {
    println!("this gateway's keys: {} (the first seals)", list(&store.master().ids()));
    match store.rotation().await? {
        Some(rotation) => println!(
            "a rotation from {} to {} is under way",
            rotation.old_key, rotation.new_key
        ),
        None => println!("no rotation is under way"),
    }
    for replica in store.replica_keys().await? {
        println!(
            "replica {} at {}: keys {}; its journal needs {}",
            replica.replica,
            replica.address,
            list(&replica.keys),
            list(&replica.journal_keys)
        );
    }
    show(&store.reseal(false, |_| {}).await?);
    Ok(())
}

fn show(found: &[Resealed]) {
    for column in found {
        println!(
            "{}.{}: {} sealed values, {} under another key than the one that seals, {} that no key opens",
            column.table, column.column, column.values, column.under_other_keys, column.unopened
        );
    }
}

fn list(ids: &[KeyId]) -> String {
    if ids.is_empty() {
        "none told".to_owned()
    } else {
        ids.join(", ")
    }
}

fn journal_files(dir: &Path) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .into_iter()
        .any(|entry| entry.path().extension().is_some_and(|end| end == "seg"))
}

/// The key file as this command changes it. The store's own ring follows each change.
struct KeyFile {
    path: PathBuf,
    keys: Vec<Key>,
}

impl KeyFile {
    fn read(path: &Path) -> Result<Self> {
        let keys = key_file::read(path)?;
        Ok(Self {
            path: path.to_owned(),
            keys,
        })
    }

    fn ids(&self, store: &Store) -> Result<Vec<KeyId>> {
        self.follow(store)?;
        Ok(store.master().ids())
    }

    fn follow(&self, store: &Store) -> Result<()> {
        let replaced = store.master().replace(&key_file::bytes(&self.keys));
        replaced.context("the master keys")
    }

    fn save(&self, store: &Store) -> Result<()> {
        let written = key_file::write(&self.path, &self.keys);
        written.with_context(|| {
            format!(
                "{} cannot be changed by this command: change it where it is kept, as docs/operations.md says, and run \
                 this again",
                self.path.display()
            )
        })?;
        self.follow(store)
    }

    fn put_first(&mut self, key: &KeyId, store: &Store) -> Result<()> {
        let at = self.position(key, store)?;
        if at > 0 {
            let new = self.keys.remove(at);
            self.keys.insert(0, new);
            self.save(store)?;
        }
        self.follow(store)
    }

    fn keep_only(&mut self, key: &KeyId, store: &Store) -> Result<()> {
        let at = self.position(key, store)?;
        if self.keys.len() > 1 {
            self.keys = vec![self.keys.remove(at)];
            self.save(store)?;
        }
        Ok(())
    }

    fn position(&self, key: &KeyId, store: &Store) -> Result<usize> {
        let at = self.ids(store)?.iter().position(|id| id == key);
        at.with_context(|| format!("{} does not hold the key {key}", self.path.display()))
    }
}
