-- The whole database, in numbered sections. Each is applied once, in order, under an advisory lock, and its SHA-256 is
-- recorded: a landed section never changes, it is followed by another.

-- section 1: installation, replicas, changes
-- section 2: people, agents, connections, credentials
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
