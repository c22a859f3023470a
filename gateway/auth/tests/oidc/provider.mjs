// npm's oidc-provider for the tests: node provider.mjs MODULES_DIR REDIRECT_URI RETURN_TO CLIENT_SECRET [userinfo|rotate]
// It says `ready PORT`, then obeys lines on its standard input and answers each with `done`:
//   rotate            a new signing key, with a new key id
//   groups NAME A,B   that person's groups from now on
//   nogroups NAME     nothing is said of that person's groups from now on
//   lie WHAT          ID tokens from now on, signed with the right key: audience (another client's), expired, replay
//                     (that of the sign-in before), nothing (as they should be)
//   forget            every sign-in so far is over
// With `userinfo`, an ID token has no claims but the necessary ones; with `rotate`, a refresh token is good once.
import { createServer } from 'node:http';
import { createPrivateKey, generateKeyPairSync, randomUUID, sign } from 'node:crypto';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

const [modules, redirect, returnTo, secret, mode] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(`${modules}/oidc-provider/lib/index.js`));
const groups = { alice: ['admin', 'sre'], bob: ['dev'], carol: [] };
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
let key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: randomUUID() };

const server = createServer();
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const issuer = `http://localhost:${server.address().port}`;

// Everything that the provider remembers, so that it survives a change of keys.
const remembered = new Map();
class Memory {
  constructor(kind) { this.kind = kind; }
  id(id) { return `${this.kind} ${id}`; }
  async upsert(id, payload) { remembered.set(this.id(id), payload); }
  async find(id) { return remembered.get(this.id(id)); }
  async findByUid(uid) {
    return [...remembered].find(([id, payload]) => id.startsWith(`${this.kind} `) && payload.uid === uid)?.[1];
  }
  async consume(id) { remembered.get(this.id(id)).consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { remembered.delete(this.id(id)); }
  async revokeByGrantId(grant) {
    for (const [id, payload] of remembered) if (payload.grantId === grant) remembered.delete(id);
  }
}

let lie = 'nothing';
let earlier;
function signed(claims) {
  const encoded = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const input = `${encoded({ alg: 'RS256', typ: 'JWT', kid: key.kid })}.${encoded(claims)}`;
  const signature = sign('sha256', Buffer.from(input), createPrivateKey({ key, format: 'jwk' }));
  return `${input}.${signature.toString('base64url')}`;
}
async function told(ctx, next) {
  await next();
  const honest = ctx.path === '/token' && ctx.body?.id_token;
  if (!honest) return;
  const claims = JSON.parse(Buffer.from(honest.split('.')[1], 'base64url'));
  const lies = {
    nothing: () => honest,
    audience: () => signed({ ...claims, aud: 'another-client' }),
    expired: () => signed({ ...claims, iat: claims.iat - 7200, exp: claims.iat - 3600 }),
    replay: () => earlier,
  };
  ctx.body.id_token = lies[lie]();
  earlier = honest;
}

function start() {
  const provider = new Provider(issuer, {
    adapter: Memory,
    jwks: { keys: [key] },
    clients: [{
      client_id: 'gateway', client_secret: secret, redirect_uris: [redirect], post_logout_redirect_uris: [returnTo],
      grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'],
    }],
    cookies: { keys: ['test-only'] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], profile: ['name', 'preferred_username'], groups: ['groups'] },
    conformIdTokenClaims: mode === 'userinfo',
    pkce: { required: () => true },
    ...(mode === 'rotate' ? { rotateRefreshToken: true } : {}),
    features: { devInteractions: { enabled: true }, rpInitiatedLogout: { enabled: true } },
    findAccount: (ctx, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.test`, email_verified: true, name: `The ${id}`, groups: groups[id] }),
    }),
  });
  provider.use(told);
  provider.on('server_error', (ctx, error) => console.error(error));
  server.removeAllListeners('request');
  server.on('request', provider.callback());
}

start();
console.log(`ready ${server.address().port}`);
for await (const line of createInterface({ input: process.stdin })) {
  const [command, name, list] = line.split(' ');
  if (command === 'rotate') {
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: randomUUID() };
    start();
  } else if (command === 'groups') {
    groups[name] = list.split(',');
  } else if (command === 'nogroups') {
    delete groups[name];
  } else if (command === 'lie') {
    lie = name;
  } else if (command === 'forget') {
    remembered.clear();
  }
  console.log('done');
}
process.exit(0);
