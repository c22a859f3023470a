"""Cancels through whatever the port leads to: `psycopg_cancel.py 3.0|3.2`, everything else from PG* variables. libpq sends
the classic request in clear, the newer one encrypted where the session is."""
import sys
import threading
import time

import psycopg

version = sys.argv[1]
with psycopg.connect(autocommit=True, min_protocol_version=version, max_protocol_version=version) as conn:
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
        assert time.monotonic() - begun < 15, cancel
        timer.join()
print("ok")
