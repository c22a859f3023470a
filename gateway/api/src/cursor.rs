//! The text of a page's end: opaque to clients, checked when it comes back. It holds list, order, sort key and id, so
//! that a page begins at the same place whatever was added or taken away meanwhile.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use hoop_store::list::{Key, Listing, Position, Sort};
use serde::{Deserialize, Serialize};

/// Longest cursor that is looked at.
pub const CURSOR_MAX_BYTES: usize = 1024;
/// A cursor of another version is refused.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Cursor(u8, String, String, Value, Value);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Value {
    #[serde(rename = "s")]
    Text(String),
    /// Microseconds since 1970.
    #[serde(rename = "t")]
    Time(i64),
    #[serde(rename = "u")]
    Uuid(uuid::Uuid),
}

impl From<&Key> for Value {
    fn from(key: &Key) -> Self {
        match key {
            Key::Text(text) => Self::Text(text.clone()),
            Key::Time(time) => Self::Time(time.timestamp_micros()),
            Key::Uuid(id) => Self::Uuid(*id),
        }
    }
}

impl Value {
    fn key(self) -> Option<Key> {
        Some(match self {
            Self::Text(text) => Key::Text(text),
            Self::Time(micros) => Key::Time(DateTime::from_timestamp_micros(micros)?),
            Self::Uuid(id) => Key::Uuid(id),
        })
    }
}

pub fn encode(listing: &Listing, sort: &Sort, position: &Position) -> String {
    let cursor = Cursor(
        VERSION,
        listing.name.to_owned(),
        sort.text(),
        Value::from(&position.key),
        Value::from(&position.id),
    );
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&cursor).unwrap_or_default())
}

/// `None` where it is none of this list.
pub fn decode(listing: &'static Listing, text: &str) -> Option<(Sort, Position)> {
    if text.len() > CURSOR_MAX_BYTES {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let Cursor(version, name, sort, key, id) = serde_json::from_slice(&bytes).ok()?;
    if version != VERSION || name != listing.name {
        return None;
    }
    let sort = listing.sort(&sort)?;
    let position = Position {
        key: key.key()?,
        id: id.key()?,
    };
    listing.holds(&sort, &position).then_some((sort, position))
}

#[cfg(test)]
mod tests {
    use hoop_store::sessions::SESSIONS;
    use hoop_store::users::USERS;
    use uuid::Uuid;

    use super::*;

    fn encoded(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_alone() {
        let sort = USERS.sort("-created_at").unwrap();
        let position = Position {
            key: Key::Time(DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap()),
            id: Key::Uuid(Uuid::from_u128(7)),
        };
        let text = encode(&USERS, &sort, &position);
        let (read, at) = decode(&USERS, &text).unwrap();
        assert_eq!((read.text().as_str(), at), ("-created_at", position));
        assert!(decode(&SESSIONS, &text).is_none());
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let id = Uuid::nil();
        let good = format!(r#"[1,"users","username",{{"s":"ada"}},{{"u":"{id}"}}]"#);
        assert!(decode(&USERS, &encoded(&good)).is_some());
        for bad in [
            good.replace("[1,", "[2,"),
            good.replace("username", "password_hash"),
            good.replace(r#"{"s":"ada"}"#, r#"{"t":1}"#),
            good.replace("ada", "a\\u0000"),
            good.replace(&format!(r#"{{"u":"{id}"}}"#), r#"{"s":"x"}"#),
            good.replace(r#""username",{"s":"ada"}"#, r#""created_at",{"t":9223372036854775807}"#),
            "7".into(),
            String::new(),
        ] {
            assert!(decode(&USERS, &encoded(&bad)).is_none(), "{bad}");
        }
        assert!(decode(&USERS, &good).is_none());
        assert!(decode(&USERS, &"A".repeat(CURSOR_MAX_BYTES + 1)).is_none());
    }
}
