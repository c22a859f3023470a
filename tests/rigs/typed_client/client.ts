// What somebody writes against types that openapi-typescript has made of GET /api/openapi.json. It must compile, and do
// what it says at a running gateway. HOOP_API, HOOP_USER and HOOP_PASSWORD are in the environment.
import createClient from "openapi-fetch";
import type { components, operations, paths } from "./api.js";

declare const process: { env: Record<string, string | undefined>; exitCode: number };

type Schemas = components["schemas"];
type Connection = Schemas["Connection"];
type Problem = Schemas["Problem"];

// Compiles only where both are the same type.
type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
const same = <_ extends true>(): void => {};

same<Same<Connection["audit_mode"], "journalled" | "synced" | "strict">>();
same<Same<Schemas["User"]["role"], "admin" | "auditor" | "member">>();
same<Same<Schemas["Page_Connection"], { items: Connection[]; next: string | null }>>();
same<Same<Schemas["Rule"]["groups"], string[]>>();
same<Same<Schemas["Rule"]["schedule"], Schemas["Schedule"] | null>>();
same<Same<Schemas["RuleSettings"]["groups"], string[] | undefined>>();
same<Same<Schemas["ConnectionSettings"]["port"], number | undefined>>();
same<Same<Schemas["SessionRow"]["ended_at"], string | null>>();
same<Same<Problem["field"], string | undefined>>();
same<Same<operations["list_connections"]["responses"][401]["content"]["application/problem+json"], Problem>>();
same<Same<operations["update_connection"]["responses"][412]["content"]["application/problem+json"], Problem>>();

function fail(what: string): never {
  throw new Error(what);
}

function ensure(holds: boolean, what: string): asserts holds {
  if (!holds) fail(what);
}

const environment = (name: string): string => process.env[name] ?? fail(`${name} is missing`);

// The error of every call is a Problem, without a cast.
function told(error: Problem | undefined): string {
  return error ? `${error.status} ${error.type}: ${error.detail} (${error.field ?? "no field"})` : "no error";
}

const client = createClient<paths>({ baseUrl: environment("HOOP_API") });

async function signIn(): Promise<void> {
  const { data, error } = await client.POST("/api/login", {
    body: { username: environment("HOOP_USER"), password: environment("HOOP_PASSWORD") },
  });
  if (!data) return fail(told(error));
  if ("challenge" in data) return fail("a second factor is wanted");
  const token = data.token ?? fail("no token");
  client.use({
    onRequest({ request }) {
      request.headers.set("Authorization", `Bearer ${token}`);
      return request;
    },
  });
}

const settings = (name: string): Schemas["ConnectionSettings"] => ({
  name,
  agents: ["default"],
  host: "db.internal",
  user: "app",
  secret: { reference: "env:HOOP_TARGET_DB" },
  audit_mode: "synced",
  tags: ["typed"],
});

async function create(name: string): Promise<string> {
  const { data, error, response } = await client.POST("/api/connections", { body: settings(name) });
  if (!data) return fail(told(error));
  ensure(data.target?.port === 5432 && data.target.secret === "reference", `defaults: ${JSON.stringify(data)}`);
  return response.headers.get("ETag") ?? fail("no ETag");
}

async function listed(tag: string): Promise<string[]> {
  const names: string[] = [];
  let cursor: string | null = null;
  do {
    const page: Schemas["Page_Connection"] = await onePage(tag, cursor);
    names.push(...page.items.map((item) => item.name));
    cursor = page.next;
  } while (cursor !== null);
  return names;
}

async function onePage(tag: string, cursor: string | null): Promise<Schemas["Page_Connection"]> {
  const query = { tag, sort: "-name" as const, limit: 2, ...(cursor === null ? {} : { cursor }) };
  const { data, error } = await client.GET("/api/connections", { params: { query } });
  if (!data) return fail(told(error));
  ensure(data.items.length <= 2, "a page has more than was asked for");
  return data;
}

async function update(name: string, etag: string, description: string) {
  return client.PUT("/api/connections/{name}", {
    params: { path: { name }, header: { "If-Match": etag } },
    body: { ...settings(name), description },
  });
}

async function main(): Promise<void> {
  await signIn();
  const names = ["typed-1", "typed-2", "typed-3"];
  const etags = [];
  for (const name of names) etags.push(await create(name));
  const found = await listed("typed");
  ensure(found.join() === [...names].reverse().join(), `listed: ${found.join()}`);

  const first = etags[0] ?? fail("no ETag");
  const changed = await update("typed-1", first, "once");
  ensure(changed.data?.description === "once", told(changed.error));
  const stale = await update("typed-1", first, "twice");
  ensure(stale.response.status === 412 && stale.error?.type === "urn:hoop:problem:stale", told(stale.error));

  const wrong = await client.POST("/api/connections", { body: { ...settings("typed-4"), agents: [] } });
  ensure(wrong.error?.status === 422 && wrong.error.field === "agents", told(wrong.error));

  for (const name of names) {
    const { error } = await client.DELETE("/api/connections/{name}", { params: { path: { name } } });
    ensure(error === undefined, told(error));
  }
  ensure((await listed("typed")).length === 0, "they are still there");
}

await main();
