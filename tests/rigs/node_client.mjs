// node-postgres through the gateway; everything from PG* variables.
import assert from 'node:assert';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const pg = createRequire(process.env.HOOP_NODE_MODULES + '/x.js')('pg');
const env = process.env;
const ssl = env.PGSSLMODE === 'disable' ? false : { ca: readFileSync(env.PGSSLROOTCERT), servername: 'localhost' };
const options = {
  host: 'localhost', port: Number(env.PGPORT), user: env.PGUSER, password: env.PGPASSWORD, database: env.PGDATABASE, ssl,
};

const client = new pg.Client(options);
await client.connect();
assert.strictEqual((await client.query('select 1 as one')).rows[0].one, 1);
assert.deepStrictEqual((await client.query('select $1::int + 1 as a, $2::text as b', [41, 'ü'])).rows[0], { a: 42, b: 'ü' });
await client.query('create temp table t (id int, v text)');
for (let i = 0; i < 100; i++) {
  await client.query({ name: 'insert', text: 'insert into t values ($1, $2)', values: [i, `v${i}`] });
}
assert.strictEqual((await client.query('select count(*)::int as n from t')).rows[0].n, 100);
await assert.rejects(client.query('select 1/0'), { code: '22012' });
const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => client.query('select $1::int as i', [i])));
assert.deepStrictEqual(answers.map((a) => a.rows[0].i), Array.from({ length: 50 }, (_, i) => i));
const heard = new Promise((resolve) => client.on('notification', (message) => resolve(message.payload)));
await client.query('listen news');
await client.query("notify news, 'hot'");
assert.strictEqual(await heard, 'hot');
await client.end();

const pool = new pg.Pool({ ...options, max: 5 });
const sums = await Promise.all(Array.from({ length: 20 }, (_, i) => pool.query('select $1::int * 2 as d', [i])));
assert.strictEqual(sums.length, 20);
await pool.end();

await assert.rejects(async () => {
  const wrong = new pg.Client({ ...options, password: 'wrong' });
  await wrong.connect();
}, { code: '28P01' });
console.log('ok');
