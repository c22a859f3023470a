-- The whole database, in numbered sections. Each is applied once, in order, under an advisory lock, and its SHA-256 is
-- recorded: a landed section never changes, it is followed by another.

-- section 1: installation, replicas, changes

-- One row. Keys are sealed with the master key, which is never in the database.
create table installation (
    single             boolean     primary key default true check (single),
    id                 uuid        not null,
    created_at         timestamptz not null default clock_timestamp(),
    ca_cert_der        bytea       not null,
    ca_key_sealed      bytea       not null,
    audit_root_public  bytea       not null,
    audit_root_sealed  bytea       not null,
    token_key_id       text        not null,
    token_key_sealed   bytea       not null,
    mock_key_sealed    bytea       not null
);

-- One row for each incarnation of a gateway process. A replica is live while its lease runs and it was neither released
-- nor given up as lost. Rows stay: records speak of them.
create table replicas (
    id           uuid        primary key,
    incarnation  bigint      generated always as identity unique,
    slot         integer     not null check (slot between 0 and 4095),
    address      text        not null,
    claimed_at   timestamptz not null default clock_timestamp(),
    held_since   timestamptz not null default clock_timestamp(), -- no gap in the lease since then
    lease_until  timestamptz not null,
    released_at  timestamptz,
    lost_at      timestamptz,
    check (released_at is null or lost_at is null)
);
create index replicas_open on replicas (lease_until) where released_at is null and lost_at is null;
create index replicas_slot on replicas (slot, lease_until);

-- Which agents a live replica holds a link to.
create table replica_links (
    replica_id  uuid not null references replicas (id) on delete cascade,
    agent_id    uuid not null,
    primary key (replica_id, agent_id)
);
create index replica_links_agent on replica_links (agent_id);

-- What changed, for every replica to read from its last number. A notification is only a hint.
create table changes (
    seq      bigint      generated always as identity primary key,
    kind     text        not null,
    subject  text        not null,
    at       timestamptz not null default clock_timestamp()
);

-- Numbers become visible in their order: the lock is held until the transaction ends, so no reader sees n + 1 before n.
create function publish_change(change_kind text, change_subject text) returns bigint
language plpgsql as $$
declare
    number bigint;
begin
    perform pg_advisory_xact_lock(114827820269570); -- "hoop" in ASCII, then 2
    insert into changes (kind, subject) values (change_kind, change_subject) returning seq into number;
    perform pg_notify('hoop_changes', number::text);
    return number;
end
$$;

-- section 2: people, agents, connections, credentials
-- Rows are never deleted while a record may speak of them: deleting sets a time. Names are unique among what lives.
create table users (
    id            uuid primary key,
    username      text not null,
    email         text not null default '',
    role          text not null check (role in ('admin', 'auditor', 'member')),
    groups        text[] not null default '{}',
    active        boolean not null default true,
    password_hash text,                                   -- argon2id, PHC string; null: no local password
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now(),
    deleted_at    timestamptz
);
create unique index users_username on users (username) where deleted_at is null;

-- Bearer tokens of the API. Only the SHA-256 is kept.
create table api_tokens (
    sha256     bytea primary key check (octet_length(sha256) = 32),
    user_id    uuid not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null
);
create index api_tokens_expires_at on api_tokens (expires_at);

create table agents (
    id         uuid primary key,
    name       text not null check (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    token_id   uuid not null,                             -- named in the signed token, so that it can be revoked
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);
create unique index agents_name on agents (name) where revoked_at is null;

-- Every change of what people may reach is one numbered version and stays readable.
create table policy_versions (
    version  bigint generated always as identity primary key,
    kind     text not null,
    subject  text not null,
    settings jsonb,                                       -- as it was from here on; null: deleted
    at       timestamptz not null default now()
);

create table connections (
    id               uuid primary key,
    name             text not null check (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    version          bigint not null,                     -- of policy_versions
    settings         jsonb not null,                      -- everything but name and secret
    secret_sealed    bytea,                               -- AES-256-GCM under the master key, named connection/<id>/secret
    secret_reference text,                                -- env:… or file:…, resolved by the agent; no secret itself
    created_at       timestamptz not null default now(),
    updated_at       timestamptz not null default now(),
    deleted_at       timestamptz,
    check (secret_sealed is null or secret_reference is null)
);
create unique index connections_name on connections (name) where deleted_at is null;

-- Native credentials: a look-up key and a verifier, never the password.
create table credentials (
    id            text primary key check (id ~ '^c[0-9a-hjkmnp-tv-z]{8}$'),
    user_id       uuid not null,
    connection_id uuid not null,
    salt          bytea not null,
    iterations    integer not null,
    stored_key    bytea not null check (octet_length(stored_key) = 32),
    server_key    bytea not null check (octet_length(server_key) = 32),
    created_at    timestamptz not null default now(),
    expires_at    timestamptz not null,
    revoked_at    timestamptz
);
create index credentials_user on credentials (user_id, expires_at);
create index credentials_expires_at on credentials (expires_at);

-- section 3: evidence
-- Written by AuditWriter alone. What a person typed or saw is only ever in chunks.stored, sealed.

-- One incarnation of a replica. `certificate` is the audit root's signature over id, public key, replica and start.
create table writers (
  id uuid primary key,
  replica uuid not null,
  public_key bytea not null,
  certificate bytea not null,
  started_at_us bigint not null,
  groups bigint not null default 0,        -- transactions of this writer: makes an unknown commit outcome knowable
  stopped boolean not null default false   -- it said goodbye; not evidence, only a hint
);

-- A writer's log: seq without gaps, each row holding the hash of the one before. `payload` is JSON, kept as its bytes.
create table writer_log (
  writer uuid not null,
  seq bigint not null,
  at_us bigint not null,
  kind text not null,
  payload text not null,
  prev_hash bytea not null,
  hash bytea not null,
  primary key (writer, seq)
);

-- A writer's signed heads. `others`: the checkpoints of other writers that this one names, as JSON.
create table checkpoints (
  writer uuid not null,
  number bigint not null,
  seq bigint not null,
  head_hash bytea not null,
  at_us bigint not null,
  others text not null,
  prev_hash bytea not null,
  signature bytea not null,
  primary key (writer, number)
);

-- For listing; derived from the log and the chunks.
create table sessions (
  id uuid primary key,
  writer uuid not null,                    -- whose log holds its start, or who took it over
  replica uuid not null,
  protocol text not null,
  user_name text not null,
  user_id uuid,
  email text not null,
  groups text[] not null,
  connection text not null,
  connection_id uuid,
  agent text not null,
  client_address text not null,
  credential text not null,
  database text not null,
  application text not null,
  client_tls boolean not null,
  policy_version bigint not null,
  audit_mode text not null,
  started_at timestamptz not null,
  ended_at timestamptz,
  end_code text,
  end_message text not null default '',
  end_provisional boolean not null default false,   -- given by another replica; the replayed journal supersedes it
  statements bigint not null default 0,
  client_bytes bigint not null default 0,
  target_bytes bigint not null default 0,
  wrapped_key bytea                        -- the data key under the master key; null once it was destroyed
);
create index sessions_by_start on sessions (started_at desc, id desc);
create index sessions_by_user on sessions (user_id, started_at desc);
create index sessions_by_connection on sessions (connection, started_at desc);
create index sessions_live on sessions (writer) where ended_at is null or end_provisional;

-- A session's events: zstd, then AES-256-GCM with the session's data key.
create table chunks (
  session uuid not null,
  seq bigint not null,                     -- from 1, no gaps
  first_event bigint not null,
  last_event bigint not null,
  stored bytea,
  location text,                           -- where the bytes are, when not here
  prev_hash bytea not null,
  hash bytea not null,
  primary key (session, seq),
  check ((stored is null) <> (location is null))
);
alter table chunks alter column stored set storage external;

-- section 4: access rules; users that change

-- Who may reach what, when, from where and how (hoop-access). Deny by default.
create table access_rules (
    id         uuid primary key,
    name       text not null check (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
    version    bigint not null,                           -- of policy_versions
    spec       jsonb not null,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    deleted_at timestamptz
);
create unique index access_rules_name on access_rules (name) where deleted_at is null;

-- What administrators could reach before there were rules. It can be changed and deleted as any other.
with first as (
    insert into policy_versions (kind, subject, settings)
    values ('rule.create', 'administrators',
            '{"description": "Administrators reach every connection.", "roles": ["admin"], "connections": ["*"]}')
    returning version, subject, settings
)
insert into access_rules (id, name, version, spec)
select gen_random_uuid(), subject, version, settings from first;

alter table users add column version bigint not null default 1;

-- section 5: signing in with a password and a second factor; browser sessions

-- Who is signed in from a browser. Of the cookie's value only the SHA-256 is kept. A row goes when the session ends.
create table browser_sessions (
    id           uuid primary key,
    sha256       bytea not null unique check (octet_length(sha256) = 32),
    user_id      uuid not null,
    method       text not null,                           -- how the person signed in: password, oidc:NAME, …
    address      text not null default '',
    user_agent   text not null default '',
    created_at   timestamptz not null default now(),
    last_used_at timestamptz not null default now(),      -- to about a minute
    expires_at   timestamptz not null
);
create index browser_sessions_user on browser_sessions (user_id, last_used_at);
create index browser_sessions_expires_at on browser_sessions (expires_at);

-- One-time codes by the clock (RFC 6238). Not confirmed: enrolling has begun, and signing in does not ask for it.
create table second_factors (
    user_id       uuid primary key,
    secret_sealed bytea not null,                         -- AES-256-GCM under the master key, named user/<id>/totp
    created_at    timestamptz not null default now(),
    confirmed_at  timestamptz,
    last_step     bigint not null default -1,             -- no code of this step or an earlier one is taken again
    failures      integer not null default 0,             -- wrong codes since the last right one
    failed_at     timestamptz
);

-- Each is good once: it goes when it is used.
create table recovery_codes (
    user_id uuid not null,
    sha256  bytea not null check (octet_length(sha256) = 32),
    primary key (user_id, sha256)
);

-- The password was right, the second factor is asked for. Only the SHA-256 of what names it is kept.
create table sign_in_challenges (
    sha256       bytea primary key check (octet_length(sha256) = 32),
    user_id      uuid not null,
    user_version bigint not null,                         -- a changed user begins anew
    hold         text not null check (hold in ('cookie', 'token')),
    attempts     integer not null default 0,
    expires_at   timestamptz not null
);
create index sign_in_challenges_expires_at on sign_in_challenges (expires_at);

-- The links with which the first administrator is made; all go when one is used.
create table setup_links (
    sha256     bytea primary key check (octet_length(sha256) = 32),
    expires_at timestamptz not null
);

-- section 6: identities that providers vouch for

-- Who a provider's subject is here. A row goes when it is unlinked or its user is deleted.
create table identities (
    id               uuid        primary key default gen_random_uuid(),
    provider         text        not null,
    subject          text        not null,
    user_id          uuid        not null references users (id),
    email            text        not null default '',
    display_name     text        not null default '',
    groups           text[],                               -- as the provider told them last; null: it told none ever
    linked_at        timestamptz not null default now(),
    last_sign_in_at  timestamptz,
    refresh_sealed   bytea,                                -- under the master key, named identity/<id>/refresh
    refresh_due_at   timestamptz,
    refreshed_at     timestamptz,                          -- when the provider last confirmed the sign-in in between
    claimed_until    timestamptz,                          -- a replica is asking the provider
    generation       bigint      not null default 0,       -- grows with each refresh token, for most are good once
    unique (provider, subject)
);
create index identities_user on identities (user_id);
create index identities_due on identities (refresh_due_at) where refresh_sealed is not null;

-- SAML assertions that were used. SHA-256 of issuer and id, until the assertion would not be valid any more.
create table saml_assertions (
    id          text        primary key,
    valid_until timestamptz not null
);
create index saml_assertions_valid_until on saml_assertions (valid_until);

-- Sign-ins that a command line waits for: by a device code (RFC 8628), or by a one-time code (RFC 8252). Only SHA-256s.
create table cli_sign_ins (
    secret_sha256    bytea       primary key check (octet_length(secret_sha256) = 32),
    user_code_sha256 bytea       unique,                   -- null: by a one-time code
    challenge        text,                                 -- PKCE S256 of a one-time code (RFC 7636)
    client_name      text        not null,
    network          text        not null,                 -- whence it was asked for
    state            text        not null check (state in ('pending', 'approved', 'denied')),
    user_id          uuid,
    created_at       timestamptz not null default now(),
    expires_at       timestamptz not null,
    polled_at        timestamptz,
    check ((state = 'approved') <= (user_id is not null))
);
create index cli_sign_ins_expires_at on cli_sign_ins (expires_at);
create index cli_sign_ins_network on cli_sign_ins (network);

-- section 7: connections: several agents, limits, owners

-- `agent`, one name, has become `agents`, a list.
update connections
set settings = (settings - 'agent') || jsonb_build_object('agents', jsonb_build_array(settings -> 'agent'))
where settings ? 'agent';

-- Sessions of connections with a max_sessions of their own. A row counts while its replica lives.
create table session_places (
    session       uuid primary key,
    connection_id uuid not null,
    replica_id    uuid not null references replicas (id),
    taken_at      timestamptz not null default now()
);
create index session_places_connection on session_places (connection_id);
create index session_places_replica on session_places (replica_id);

-- Which master keys a replica has, the one that seals first, and which its journal needs. Ids, no keys.
create table replica_keys (
    replica_id   uuid primary key references replicas (id),
    keys         text[] not null,
    journal_keys text[] not null,
    reported_at  timestamptz not null default now()
);

-- Rotations of the master key, by key id; at most one is not finished.
create table master_key_rotations (
    new_key     text primary key,
    old_key     text not null,
    started_at  timestamptz not null default now(),
    finished_at timestamptz
);
create unique index master_key_rotations_one on master_key_rotations ((true)) where finished_at is null;

-- section 8: service accounts, personal tokens, public keys

-- For lists with filters.
create index users_groups on users using gin (groups);
create index sessions_by_user_name on sessions (user_name, started_at desc, id desc);
create index credentials_by_creation on credentials (created_at desc, id desc);

-- A service account: no password, no sign-in; tokens from an administrator.
alter table users add column service boolean not null default false;

-- Personal tokens of the API. Only the SHA-256 is kept.
create table personal_tokens (
    id           uuid primary key,
    user_id      uuid not null,
    name         text not null,
    scopes       text[] not null,                         -- read, connect, admin
    hint         text not null,                           -- the first characters
    sha256       bytea not null unique check (octet_length(sha256) = 32),
    created_at   timestamptz not null default now(),
    expires_at   timestamptz not null,
    last_used_at timestamptz,                             -- to about ten minutes
    revoked_at   timestamptz
);
create index personal_tokens_user on personal_tokens (user_id, expires_at);
create index personal_tokens_by_creation on personal_tokens (created_at desc, id desc);

-- SSH public keys. A row goes when its account or the key does; a key is one account's.
create table ssh_keys (
    id          uuid primary key,
    user_id     uuid not null,
    name        text not null,
    algorithm   text not null,
    fingerprint text not null unique,                     -- SHA256:…, as ssh-keygen shows it
    openssh     text not null,                            -- algorithm and base64, without a comment
    created_at  timestamptz not null default now()
);
create index ssh_keys_user on ssh_keys (user_id);

-- section 9: reading the administrative record

-- One member of a log record, or null where there is none. It must not fail: what fails here would keep the audit writer
-- from committing.
create function writer_log_member(payload text, member text[]) returns text
language plpgsql immutable strict as $$
begin
    return left(payload::json #>> member, 200);
exception when others then
    return null;
end
$$;

-- Administrative kinds have a dot (rule.update); the writer's own have none (session_started).
create index writer_log_time on writer_log (at_us, writer, seq);
create index writer_log_administrative on writer_log (at_us, writer, seq) where strpos(kind, '.') > 0;
create index writer_log_person on writer_log (writer_log_member(payload, '{by,user}'), at_us, writer, seq)
    where strpos(kind, '.') > 0;
create index writer_log_subject on writer_log (writer_log_member(payload, '{subject}'), at_us, writer, seq)
    where strpos(kind, '.') > 0;

-- section 10: what a command line's sign-in was approved with

-- Of the user when the person said yes: where it is another by then, there is no token.
alter table cli_sign_ins add column user_version bigint;

-- section 11: lists at size; who manages agents
-- Each order of a list, and each filter that few rows may match, reads about as many rows as its page has. The names end
-- in the id, for rows of one import share their moment.

create index users_by_name on users (username, id);       -- deleted ones too: credentials speak of them
create index users_by_email on users (email, id) where deleted_at is null;
create index users_by_creation on users (created_at, id) where deleted_at is null;
create index users_by_role on users (role, username, id) where deleted_at is null;
create index users_inactive on users (username, id) where deleted_at is null and not active;
create index users_service on users (username, id) where deleted_at is null and service;
create index users_gone on users (id) where deleted_at is not null or not active;

create index connections_by_name on connections (name, id);
create index connections_by_creation on connections (created_at, id) where deleted_at is null;
create index connections_by_update on connections (updated_at, id) where deleted_at is null;
create index connections_by_owner on connections ((settings ->> 'owner'), name, id) where deleted_at is null;
create index connections_by_protocol on connections ((settings ->> 'protocol'), name, id) where deleted_at is null;
create index connections_by_entry on connections using gin ((settings -> 'agents'), (settings -> 'tags'))
    with (fastupdate = off);
create index connections_by_beginning on connections (name collate "C") where deleted_at is null;
create index connections_open on connections (id) where deleted_at is null and (settings ->> 'allow_members') = 'true';
create index connections_gone on connections (id) where deleted_at is not null;

-- how many have one, for the planner: whether a page is found sooner in its order or by its filter
create statistics connections_protocol on (settings ->> 'protocol') from connections;
create statistics access_rules_enabled on (coalesce((spec ->> 'enabled')::boolean, true)) from access_rules;

create index access_rules_by_creation on access_rules (created_at, id) where deleted_at is null;
create index access_rules_by_update on access_rules (updated_at, id) where deleted_at is null;
create index access_rules_disabled on access_rules (name, id)
    where deleted_at is null and not coalesce((spec ->> 'enabled')::boolean, true);
create index access_rules_by_entry on access_rules using gin (
    (spec -> 'groups'), (spec -> 'users'), (spec -> 'roles'), (spec -> 'connections'), (spec -> 'tags')
) with (fastupdate = off);

create index sessions_in_order_of_user on sessions (user_name, id);
create index sessions_in_order_of_connection on sessions (connection, id);
create index sessions_by_agent on sessions (agent, started_at desc, id desc);
create index sessions_by_protocol on sessions (protocol, started_at desc, id desc);
create index sessions_by_end on sessions (end_code, started_at desc, id desc);

create index credentials_by_expiry on credentials (expires_at, id);
create index credentials_by_connection on credentials (connection_id, created_at desc, id desc);
create index credentials_revoked on credentials (id) where revoked_at is not null;
create index personal_tokens_by_expiry on personal_tokens (expires_at, id);
create index personal_tokens_by_name on personal_tokens (name, id);
create index personal_tokens_revoked on personal_tokens (id) where revoked_at is not null;
create index ssh_keys_by_creation on ssh_keys (created_at, id);
create index ssh_keys_by_name on ssh_keys (name, id);

create index writer_log_kind on writer_log (kind collate "C", at_us, writer, seq);

-- The set of declarations that made an agent, and may remove it; empty: none.
alter table agents add column managed_by text not null default '';
