//! Which user the server runs as: PostgreSQL refuses root.

use std::os::unix::fs::MetadataExt;

use super::EmbeddedError;

/// Users a root process drops its server to, in order of preference.
const UNPRIVILEGED: &[&str] = &["postgres", "nobody"];

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

/// Who the gateway is, and who its server is to be.
#[derive(Debug, Clone)]
pub struct Owner {
    pub gateway: User,
    pub server: User,
}

impl Owner {
    /// # Errors
    /// `NamelessUser` where the gateway's user has no name, `NoUser` where root finds nobody to drop to.
    pub fn find() -> Result<Self, EmbeddedError> {
        let io = |path: &'static str| {
            move |source| EmbeddedError::File {
                action: "read",
                path: path.into(),
                source,
            }
        };
        // The owner of /proc/self is this process's effective user.
        let uid = std::fs::metadata("/proc/self").map_err(io("/proc/self"))?.uid();
        let passwd = std::fs::read_to_string("/etc/passwd").map_err(io("/etc/passwd"))?;
        Self::choose(uid, &users(&passwd))
    }

    fn choose(uid: u32, users: &[User]) -> Result<Self, EmbeddedError> {
        let gateway = users.iter().find(|user| user.uid == uid).cloned();
        let gateway = gateway.ok_or(EmbeddedError::NamelessUser { uid })?;
        if uid != 0 {
            return Ok(Self {
                server: gateway.clone(),
                gateway,
            });
        }
        let server = UNPRIVILEGED
            .iter()
            .find_map(|name| users.iter().find(|user| user.name == *name && user.uid != 0));
        Ok(Self {
            gateway,
            server: server.cloned().ok_or(EmbeddedError::NoUser)?,
        })
    }

    /// Whether the server runs as another user than the gateway.
    pub fn drops(&self) -> bool {
        self.server.uid != self.gateway.uid
    }
}

/// passwd(5): name, password, uid, gid, …
fn users(passwd: &str) -> Vec<User> {
    let read = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
        let uid = fields.nth(1)?.parse().ok()?;
        Some(User {
            name,
            uid,
            gid: fields.next()?.parse().ok()?,
        })
    };
    passwd.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n\
                          postgres:x:101:104::/:/bin/sh\njane:x:1000:1000::/home/jane:/bin/sh\n# odd line\n";

    #[test]
    fn root_drops_its_server_to_postgres_and_others_stay_themselves() {
        let all = users(PASSWD);
        assert_eq!(Owner::choose(0, &all).unwrap().server.name, "postgres");
        let jane = Owner::choose(1000, &all).unwrap();
        assert_eq!((jane.server.name.as_str(), jane.drops()), ("jane", false));
        let few: Vec<User> = all.iter().filter(|user| user.name != "postgres").cloned().collect();
        assert_eq!(Owner::choose(0, &few).unwrap().server.uid, 65534);
        assert!(matches!(Owner::choose(0, &few[..1]), Err(EmbeddedError::NoUser)));
        assert!(matches!(
            Owner::choose(7, &all),
            Err(EmbeddedError::NamelessUser { uid: 7 })
        ));
    }
}
