"""What asyncpg is told when it asks for a replication connection: SQLSTATE, message and hint, a line each."""
import asyncio
import os

import asyncpg


async def main():
    try:
        await asyncpg.connect(
            host=os.environ["PGHOSTADDR"],
            ssl=False,
            server_settings={"replication": "database"},
        )
    except asyncpg.PostgresError as error:
        print(error.sqlstate, error.message, error.hint, sep="\n")
        return
    raise AssertionError("it was let in")


asyncio.run(main())
