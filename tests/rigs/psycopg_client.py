"""psycopg (libpq 18) through the gateway: `psycopg_client.py 3.0|3.2 [direct]`, everything else from PG* variables."""
import sys
import threading
import time

import psycopg

version = sys.argv[1]
direct = "direct" in sys.argv[2:]
extra = {"min_protocol_version": version, "max_protocol_version": version}
if direct:
    extra["sslnegotiation"] = "direct"

assert psycopg.pq.version() >= 180000, f"libpq {psycopg.pq.version()} is too old for protocol 3.2"
with psycopg.connect(autocommit=True, **extra) as conn:
    assert conn.execute("select 1").fetchone() == (1,)
    # text and binary parameters and results
    row = conn.execute("select %s::int + 1, %s::text, %s::bytea", (41, "ü", b"\0\1")).fetchone()
    assert row == (42, "ü", b"\0\1"), row
    row = conn.execute("select %b::int8, %b::text", (2**40, None), binary=True).fetchone()
    assert row == (2**40, None), row
    conn.execute("create temp table t (id int, v text)")
    with conn.cursor() as cur:
        cur.executemany("insert into t values (%s, %s)", [(i, f"v{i}") for i in range(500)])
        # server-side prepared
        for i in range(20):
            cur.execute("select v from t where id = %s", (i,), prepare=True)
            assert cur.fetchone() == (f"v{i}",)
        with cur.copy("copy t from stdin") as copy:
            for i in range(500, 2500):
                copy.write_row((i, "x" * 100))
        with cur.copy("copy t to stdout") as copy:
            rows = sum(1 for _ in copy.rows())
        assert rows == 2500, rows
    # pipeline with an error in its middle: the rest is aborted, the session lives on
    try:
        with conn.pipeline() as pipe:
            first = conn.execute("select 1")
            conn.execute("select 1/0")
            conn.execute("select 2")
            pipe.sync()
    except psycopg.errors.DivisionByZero:
        pass
    else:
        raise AssertionError("the pipeline's error was lost")
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (i,)) for i in range(100)]
    assert [c.fetchone()[0] for c in cursors] == list(range(100))
    # a server-side cursor in a transaction, read in portions
    with conn.transaction():
        with conn.cursor(name="c") as cur:
            cur.itersize = 100
            cur.execute("select id from t order by id")
            assert sum(1 for _ in cur) == 2500
    # cancel: by the classic request and by libpq 17's encrypted one
    for cancel in (conn.cancel, conn.cancel_safe):
        timer = threading.Timer(0.5, cancel)
        timer.start()
        begun = time.monotonic()
        try:
            conn.execute("select pg_sleep(30)")
        except psycopg.errors.QueryCanceled:
            pass
        else:
            raise AssertionError("it was not cancelled")
        assert time.monotonic() - begun < 10
        timer.join()
    conn.execute("listen news")
    conn.execute("notify news, 'hot'")
    assert next(conn.notifies(timeout=5)).payload == "hot"
print("ok")
