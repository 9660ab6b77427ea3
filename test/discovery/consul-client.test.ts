// The door to the `consul` package against a scripted Consul: each line of the table in docs/adr/0009, and that what the
// settings say goes with every call.
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { defineConfig, loadConfig } from "../../services/common/config.ts";
import { ConsulClient, type CallLimits } from "../../services/discovery/consul-client.ts";
import type { ConsulError } from "../../services/discovery/consul-error.ts";
import { consulSettings } from "../../services/discovery/consul-settings.ts";
import { hold, json, refuse, scriptedConsul, type Answer, type ScriptedConsul } from "../support/scripted-consul.ts";
import { skip } from "../support/skip.ts";
import { eventually, within } from "../support/waits.ts";

const definition = defineConfig("test", { ...consulSettings });
interface Talk extends Disposable {
  readonly consul: ScriptedConsul;
  readonly client: ConsulClient;
}

async function talk(
  script: readonly Answer[],
  o: { env?: Record<string, string>; listen?: { host: string } | { path: string } } = {},
): Promise<Talk> {
  const consul = await scriptedConsul(script, o.listen);
  const config = loadConfig(definition, { argv: [], env: { CONSUL_HTTP_ADDR: consul.address, ...o.env } });
  const client = new ConsulClient(config);
  return {
    consul,
    client,
    [Symbol.dispose]() {
      client.close();
      consul.close();
    },
  };
}

const services = (client: ConsulClient, limits?: CallLimits) =>
  client.ask((consul, call) => consul.agent.service.list(call as object), limits);
const failure = (call: Promise<unknown>): Promise<ConsulError> =>
  call.then(
    () => assert.fail("it did not fail"),
    (error: ConsulError) => error,
  );

describe("a call to Consul", () => {
  it("gives the body and Consul's headers", async () => {
    const headers = { "x-consul-contenthash": "abc", "x-consul-results-filtered-by-acls": "true" };
    using all = await talk([json("18446744073709551615", { web: {} }, headers)]);
    const { body, headers: got } = await services(all.client);
    assert.deepEqual(body, { web: {} });
    assert.deepEqual(
      Object.keys(headers).map((name) => got[name]),
      ["abc", "true"],
    );
    assert.equal(got["x-consul-index"], "18446744073709551615");
  });

  it("asks for the agent's own entry by its content hash", async () => {
    using all = await talk([json(1, {}, { "x-consul-contenthash": "b" }), refuse(404, "unknown service ID: decode/1")]);
    assert.equal(await all.client.ownEntry("decode/1", { hash: "a", wait: "60000ms" }), "b");
    const [{ path, query }] = all.consul.asked as [(typeof all.consul.asked)[number]];
    assert.deepEqual([path, query.get("hash"), query.get("wait")], ["/v1/agent/service/decode/1", "a", "60000ms"]);
    assert.equal((await failure(all.client.ownEntry("decode/1", {}))).kind, "unknown");
  });

  it("fails at once when the answer breaks off, and does not ask again", async () => {
    const cut: Answer = (response) => {
      response.writeHead(200, { "content-type": "application/json", "content-length": "100" });
      response.write('{"a":', () => response.socket!.destroy());
    };
    // On a connection that has been used before: only one that was cut before any answer is used again.
    using all = await talk([json(1, {}), cut, json(1, {})]);
    await services(all.client);
    const error = await failure(services(all.client, { timeoutMs: 600_000 }));
    assert.equal(error.kind, "away");
    assert.match(error.message, /^Consul at 127\.0\.0\.1:\d+ does not answer: aborted$/);
    assert.equal(all.consul.asked.length, 2);
  });

  it("is sent again when the agent has just closed the idle connection", async () => {
    const close: Answer = (response) => void response.socket!.resetAndDestroy();
    using all = await talk([json(1, {}), close, json(1, { again: true })]);
    await services(all.client);
    assert.deepEqual((await services(all.client)).body, { again: true });
    using first = await talk([close]);
    assert.equal((await failure(services(first.client))).kind, "away", "a new connection is not idle");
    assert.equal(first.consul.asked.length, 1);
  });

  it("fails with Consul's whole text, however long", async () => {
    const long = `rpc error making call: ${"a node further on says no, ".repeat(10)}the end`;
    using all = await talk([
      refuse(400, long),
      refuse(500, "No cluster leader"),
      refuse(403, `Permission denied: ${long}`),
    ]);
    const errors = [];
    for (let index = 0; index < 3; index++) errors.push(await failure(services(all.client)));
    assert.deepEqual(
      errors.map(({ kind, message }) => [kind, message]),
      [
        ["refused", `Consul answers 400: ${long}`],
        ["away", "Consul answers 500: No cluster leader"],
        ["denied", `Consul denies permission: Permission denied: ${long}`],
      ],
    );
  });

  it("names the policy that is missing, and a token that Consul does not know", async () => {
    const lacks = `Permission denied: token with AccessorID '0-0' lacks permission 'service:write' on "tandem-decode"`;
    using all = await talk([refuse(403, lacks), refuse(500, "rpc error: ACL not found")]);
    const [first, second] = [await failure(services(all.client)), await failure(services(all.client))];
    assert.equal(first.policy, 'service "tandem-decode" { policy = "write" }');
    assert.deepEqual([second.kind, second.policy], ["denied", undefined]);
    assert.match(second.message, /doesn't know the token/);
  });

  it("recognizes an agent that has forgotten a check, also one that answers 500", async () => {
    using all = await talk([refuse(404, "Unknown check ID"), refuse(500, 'CheckID "x" does not have associated TTL')]);
    const pass = () => all.client.ask((consul, call) => consul.agent.check.pass({ id: "x", note: "serving", ...call }));
    assert.deepEqual([(await failure(pass())).kind, (await failure(pass())).kind], ["unknown", "unknown"]);
    assert.equal(all.consul.asked[0]!.query.get("note"), "serving");
  });

  it("times out, and says so", async () => {
    using all = await talk([hold]);
    const error = await failure(services(all.client, { timeoutMs: 50 }));
    assert.deepEqual([error.kind, /no answer within 50 ms/.test(error.message)], ["away", true]);
  });

  it("says which address does not answer, and why", async () => {
    const all = await talk([]);
    all[Symbol.dispose]();
    const kv = () => all.client.ask((consul, call) => consul.kv.get({ key: "a", recurse: true, ...call }));
    for (const call of [() => services(all.client), kv]) {
      const { kind, message } = await failure(call());
      assert.equal(kind, "away");
      assert.equal(
        message,
        `Consul at ${all.consul.address} does not answer: connect ECONNREFUSED ${all.consul.address}`,
      );
    }
  });

  it("is ended by its AbortSignal, on the wire too", async () => {
    using all = await talk([hold]);
    const stop = new AbortController();
    const failed = failure(services(all.client, { signal: stop.signal }));
    const { request } = await eventually("Consul is asked", () => all.consul.asked[0]);
    const closed = once(request.socket, "close");
    stop.abort();
    assert.equal((await within(failed, "the call ends")).kind, "away");
    await within(closed, "the connection is closed");
    await failure(services(all.client, { signal: stop.signal }));
    assert.equal(all.consul.asked.length, 1, "what is no longer wanted is not asked");
  });

  it("bounds the size of an answer", async () => {
    const piece = Buffer.alloc(4 * 1024 * 1024, " ");
    const endless: Answer = (response) => {
      response.writeHead(200, { "content-type": "application/json" });
      const write = (): void => void (response.write(piece) ? setImmediate(write) : response.once("drain", write));
      write();
    };
    using all = await talk([endless]);
    assert.match((await failure(services(all.client, { timeoutMs: 600_000 }))).message, /more than 67108864 bytes/);
  });
});

describe("a setting of Consul", () => {
  it("goes with each call: token, datacenter and the password of a proxy", async () => {
    const env = { CONSUL_HTTP_TOKEN: "secret", TANDEM_CONSUL_DATACENTER: "dc2", CONSUL_HTTP_AUTH: "ann:pass:word" };
    using all = await talk([json(1, [])], { env });
    await all.client.ask((consul, call) => consul.health.service({ service: "x", ...call }));
    await all.client.ownEntry("x", {});
    const headers = all.consul.asked.map(({ request }) => request.headers);
    assert.deepEqual(
      headers.map((one) => one["x-consul-token"]),
      ["secret", "secret"],
    );
    assert.equal(headers[0]!.authorization, `Basic ${Buffer.from("ann:pass:word").toString("base64")}`);
    assert.equal(all.consul.asked[0]!.query.get("dc"), "dc2");
  });

  it("may be a token file, which is read again when Consul denies a call", async () => {
    const folder = mkdtempSync(join(tmpdir(), "tandem-token-"));
    const file = join(folder, "token");
    writeFileSync(file, "old\n");
    const knows: Answer = (response, asked) =>
      (asked.request.headers["x-consul-token"] === "new" ? json(1, {}) : refuse(403, "ACL not found"))(response, asked);
    using all = await talk([knows], { env: { CONSUL_HTTP_TOKEN_FILE: file } });
    assert.equal((await failure(services(all.client))).kind, "denied");
    assert.equal(all.consul.asked.length, 1, "the same token is not tried twice");
    writeFileSync(file, "new\n");
    await services(all.client);
    assert.equal(all.consul.asked.length, 3);
    rmSync(folder, { recursive: true });
  });

  it("may be a socket's path or an IPv6 address", async function () {
    const folder = mkdtempSync(join(tmpdir(), "tandem-socket-"));
    {
      using all = await talk([json(1, { by: "socket" })], { listen: { path: join(folder, "consul.sock") } });
      assert.deepEqual((await services(all.client)).body, { by: "socket" });
    }
    rmSync(folder, { recursive: true });
    if (!Object.values(networkInterfaces()).some((all) => all!.some(({ address }) => address === "::1")))
      skip(this, "this machine has no ::1");
    using all = await talk([json(1, { by: "ipv6" })], { listen: { host: "::1" } });
    assert.deepEqual((await services(all.client)).body, { by: "ipv6" });
  });
});
