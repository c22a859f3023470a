#!/bin/sh
# Records every *.bin here anew, against a PostgreSQL at 127.0.0.1:$1 (user postgres, password 'secret', SCRAM).
set -e
cd "$(dirname "$0")"
PORT=$1
export PGPASSWORD=secret PGSSLMODE=disable PGGSSENCMODE=disable PGAPPNAME=golden PGOPTIONS= PGCONNECT_TIMEOUT=10
W=$(mktemp -d)
sql() { psql -qX -h 127.0.0.1 -p "$PORT" -U postgres -c "$1"; }
sql 'drop table if exists golden; create table golden (id int primary key, name text)'
record() { name=$1; shift; python3 capture.py "$name.bin" "$PORT" -- "$@" >/dev/null 2>&1 || true; }
psql_in() { name=$1; record "$name" psql -X -h 127.0.0.1 -p '{port}' -U postgres -f "$W/$name.sql"; }

cat > "$W/simple.sql" <<'SQL'
select 1 as one;
select generate_series(1, 3), null::int;
select 'a' \; select 'b' union all select 'c';
select * from missing;
do $$ begin raise notice 'mind the gap'; end $$;
listen jobs; notify jobs, 'done';
set timezone to 'UTC';
begin; select 1/0; select 2; rollback;
SQL
psql_in simple
printf '1,one\n2,two\n3,three\n' > "$W/rows.csv"
cat > "$W/copy.sql" <<SQL
\\copy golden from '$W/rows.csv' csv
copy golden to stdout;
\\copy golden from '$W/rows.csv' csv
SQL
psql_in copy
cat > "$W/prepared.sql" <<'SQL'
\set n 7
select :n, name from golden where id < :n;
SQL
record prepared pgbench -n -M prepared -t 3 -f "$W/prepared.sql" -h 127.0.0.1 -p '{port}' -U postgres postgres
record extended pgbench -n -M extended -t 2 -f "$W/prepared.sql" -h 127.0.0.1 -p '{port}' -U postgres postgres
cat > "$W/pipeline.sql" <<'SQL'
\startpipeline
select 1;
select 2;
\endpipeline
\startpipeline
select 3;
select 1/0;
select 4;
\endpipeline
SQL
record pipeline pgbench -n -M extended -t 1 -f "$W/pipeline.sql" -h 127.0.0.1 -p '{port}' -U postgres postgres
record wrong_password env PGPASSWORD=wrong psql -X -h 127.0.0.1 -p '{port}' -U postgres -c 'select 1'
record wrong_database psql -X -h 127.0.0.1 -p '{port}' -U postgres -d missing -c 'select 1'

# md5, the same password.
sql "set password_encryption = md5; drop role if exists golden_md5; create role golden_md5 login password 'secret'"
HBA=$(psql -qXAt -h 127.0.0.1 -p "$PORT" -U postgres -c 'show hba_file')
sed -i '1i host all golden_md5 127.0.0.1/32 md5' "$HBA"
sql 'select pg_reload_conf()' >/dev/null
sleep 1
record md5 psql -X -h 127.0.0.1 -p '{port}' -U golden_md5 -d postgres -c 'select 1'
sed -i '1d' "$HBA"
sql 'select pg_reload_conf()' >/dev/null
rm -r "$W"
ls -l ./*.bin
