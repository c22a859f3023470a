"""asyncpg through the gateway; everything from PG* variables."""
import asyncio
import io
import os
import ssl

import asyncpg

E = os.environ


async def main():
    tls = False
    if E["PGSSLMODE"] != "disable":
        tls = ssl.create_default_context(cafile=E["PGSSLROOTCERT"])
    conn = await asyncpg.connect(
        host="localhost", port=int(E["PGPORT"]), user=E["PGUSER"], password=E["PGPASSWORD"],
        database=E["PGDATABASE"], ssl=tls,
    )
    assert await conn.fetchval("select $1::int + 1", 41) == 42
    row = await conn.fetchrow("select $1::text as a, $2::bytea as b, $3::timestamptz as c", "ü", b"\0", None)
    assert tuple(row) == ("ü", b"\0", None), row
    await conn.execute("create temp table t (id int, v text)")
    await conn.executemany("insert into t values ($1, $2)", [(i, f"v{i}") for i in range(1000)])
    await conn.copy_records_to_table("t", records=[(i, "copied") for i in range(1000)])
    out = io.BytesIO()
    await conn.copy_from_query("select * from t where v = 'copied'", output=out)
    assert out.getvalue().count(b"\n") == 1000
    async with conn.transaction():
        count = 0
        async for _ in conn.cursor("select id from t", prefetch=50):
            count += 1
        assert count == 2000, count
    try:
        await conn.fetchval("select 1/0")
    except asyncpg.DivisionByZeroError:
        pass
    else:
        raise AssertionError("the error was lost")
    # asyncpg cancels by a CancelRequest when the caller gives up
    try:
        await conn.execute("select pg_sleep(30)", timeout=0.5)
    except asyncio.TimeoutError:
        pass
    else:
        raise AssertionError("it did not time out")
    assert await conn.fetchval("select 1") == 1
    heard = asyncio.get_running_loop().create_future()
    await conn.add_listener("news", lambda *args: heard.set_result(args[3]))
    await conn.execute("notify news, 'hot'")
    assert await asyncio.wait_for(heard, 5) == "hot"
    await conn.close()


asyncio.run(main())
print("ok")
