// Blocking queries against a scripted Consul, with answers that a real one gives rarely.
import assert from "node:assert/strict";
import { ConfigError, defineConfig, loadConfig, section } from "../../services/common/config.ts";
import { ConsulClient } from "../../services/discovery/consul-client.ts";
import type { ConsulError } from "../../services/discovery/consul-error.ts";
import { consulServer, consulSettings, readConsulToken } from "../../services/discovery/consul-settings.ts";
import { watchConsul } from "../../services/discovery/consul-watch.ts";
import type { Clock } from "../../services/common/clock.ts";
import { manualClock } from "../support/manual-clock.ts";
import { hold, json, scriptedConsul, type Answer, type Asked } from "../support/scripted-consul.ts";
import { eventually } from "../support/waits.ts";

const definition = defineConfig("test", { consul: section("Consul", { ...consulSettings }) });
const configOf = (env: Record<string, string>) => loadConfig(definition, { argv: [], env }).consul;

interface Heard {
  readonly changes: { body: unknown; gap: boolean }[];
  readonly downs: ConsulError[];
}

async function watching(
  script: readonly Answer[],
  look: (heard: Heard, asked: Asked[]) => boolean | Promise<boolean>,
  o: { readonly waitMs?: number; readonly clock?: Clock } = {},
): Promise<{ heard: Heard; asked: Asked[] }> {
  const consul = await scriptedConsul(script);
  const client = new ConsulClient(configOf({ CONSUL_HTTP_ADDR: consul.address }));
  const heard: Heard = { changes: [], downs: [] };
  const watch = watchConsul({
    client,
    ask: (consul, call) => consul.health.service({ service: "x", ...call }),
    policy: 'service "x" { policy = "read" }',
    onChange: (body, gap) => heard.changes.push({ body, gap }),
    onHealth: (error) => error !== undefined && heard.downs.push(error),
    ...o,
  });
  try {
    await eventually("it was heard", () => look(heard, consul.asked));
  } finally {
    await watch[Symbol.asyncDispose]();
    client.close();
    consul.close();
  }
  return { heard, asked: consul.asked };
}

describe("a blocking query", () => {
  it("asks at once, then waits on the index, and reports only changes", async () => {
    const { heard, asked } = await watching(
      [json(5, ["a"]), json(5, ["a"]), json(9, ["a", "b"]), hold],
      (_, all) => all.length === 4,
    );
    assert.deepEqual(
      heard.changes.map(({ body }) => body),
      [["a"], ["a", "b"]],
    );
    assert.deepEqual(
      asked.map(({ query }) => query.get("index")),
      [null, "5", "5", "9"],
    );
    assert.deepEqual(
      asked.map(({ query }) => query.get("wait")),
      [null, "10000ms", "10000ms", "10000ms"],
    );
    assert.deepEqual(
      heard.changes.map(({ gap }) => gap),
      [false, false],
    );
  });

  it("starts over when the index goes backwards, and reports the gap", async () => {
    const { heard, asked } = await watching(
      [json(50, ["a"]), json(7, []), json(7, []), hold],
      (_, all) => all.length === 4,
    );
    assert.deepEqual(
      asked.map(({ query }) => query.get("index")),
      [null, "50", null, "7"],
    );
    assert.deepEqual(heard.changes, [
      { body: ["a"], gap: false },
      { body: [], gap: true },
    ]);
  });

  it("never waits on index 0, which would be answered at once forever", async () => {
    const { asked } = await watching([json(0, []), hold], (_, all) => all.length === 2);
    assert.equal(asked[1]!.query.get("index"), "1");
  });

  it("keeps its pace when values churn", async () => {
    let index = 1;
    const clock = manualClock();
    const counts: number[] = [];
    await watching(
      [(response, asked) => json(++index, [index])(response, asked)],
      async (_, asked) => {
        await clock.untilPending();
        counts.push(asked.length);
        clock.advance(50);
        return counts.length === 4;
      },
      { clock },
    );
    assert.deepEqual(counts, [5, 6, 7, 8], "a burst, then one each 50 ms");
  });

  it("notices a connection that breaks in the middle of an answer", async () => {
    const cut: Answer = (response) => {
      response.writeHead(200, { "x-consul-index": "5", "content-length": "100" });
      response.write('[{"a":', () => response.socket!.destroy());
    };
    const { heard } = await watching([cut, json(6, ["a"]), hold], ({ changes }) => changes.length === 1);
    assert.deepEqual(
      heard.downs.map(({ kind }) => kind),
      ["away"],
    );
    assert.match(heard.downs[0]!.message, /aborted/, "it was the connection, not the time");
    assert.deepEqual(heard.changes, [{ body: ["a"], gap: true }]);
  });

  it("notices an agent that no longer answers", async () => {
    const { heard } = await watching([json(5, []), hold], ({ downs }) => downs.length === 1, { waitMs: 100 });
    assert.match(heard.downs[0]!.message, /no answer within/);
  });

  it("treats a cluster without a leader as away, and another server's page as a refusal", async () => {
    const noLeader: Answer = (response) => response.writeHead(500).end("No cluster leader");
    const page: Answer = (response) => response.writeHead(200, { "content-type": "text/html" }).end("<html>");
    const broken: Answer = (response) =>
      response.writeHead(200, { "content-type": "application/json", "x-consul-index": "3" }).end("<html>");
    const { heard } = await watching([noLeader, page, broken, hold], ({ downs }) => downs.length === 3);
    assert.deepEqual(
      heard.downs.map(({ kind }) => kind),
      ["away", "refused", "refused"],
    );
    assert.match(heard.downs[0]!.message, /No cluster leader/);
  });

  it("treats a filtered answer as a missing policy, not as fewer instances", async () => {
    const { heard } = await watching(
      [json(5, [], { "x-consul-results-filtered-by-acls": "true" }), hold],
      ({ downs }) => downs.length === 1,
    );
    assert.deepEqual(
      [heard.downs[0]!.kind, heard.downs[0]!.policy, heard.changes.length],
      ["denied", 'service "x" { policy = "read" }', 0],
    );
  });

  it("names the policy that a denied token lacks", async () => {
    const denied: Answer = (response) =>
      response
        .writeHead(403)
        .end(
          `Permission denied: token with AccessorID '00000000-0000-0000-0000-000000000002' lacks permission 'service:write' on "tandem-decode"`,
        );
    const { heard } = await watching([denied, hold], ({ downs }) => downs.length === 1);
    assert.equal(heard.downs[0]!.policy, 'service "tandem-decode" { policy = "write" }');
  });
});

describe("the settings of Consul", () => {
  it("read addresses as Consul's own tools do", () => {
    const at = (address: string, env: Record<string, string> = {}) => {
      const { host, port, socketPath, secure } = consulServer(configOf({ CONSUL_HTTP_ADDR: address, ...env }));
      return [socketPath ?? host, port, secure];
    };
    assert.deepEqual(at("10.0.0.1:8500"), ["10.0.0.1", 8500, false]);
    assert.deepEqual(at("consul"), ["consul", 8500, false]);
    assert.deepEqual(at("https://consul.example"), ["consul.example", 443, true]);
    assert.deepEqual(at("http://consul.example:80"), ["consul.example", 80, false]);
    assert.deepEqual(at("[::1]:8501", { CONSUL_HTTP_SSL: "true" }), ["[::1]", 8501, true]);
    assert.deepEqual(at("http://consul.example:8501", { CONSUL_HTTP_SSL: "1" }), ["consul.example", 8501, true]);
    assert.deepEqual(at("unix:///run/consul.sock"), ["/run/consul.sock", undefined, false]);
    assert.deepEqual(at(""), ["127.0.0.1", 8500, false], "an empty variable says nothing");
    for (const bad of ["ftp://x", "host:port:more", "a/path"]) assert.throws(() => at(bad), ConfigError, bad);
  });

  it("name a token file that is not there, and never print a token", () => {
    const withFile = configOf({ CONSUL_HTTP_TOKEN_FILE: "/nowhere/token", CONSUL_HTTP_TOKEN: "secret" });
    assert.throws(() => readConsulToken(withFile), /consul.token_file: .*\/nowhere\/token/);
    assert.equal(readConsulToken(configOf({ CONSUL_HTTP_TOKEN: "secret" })), "secret");
    assert.throws(
      () => consulServer(configOf({ CONSUL_HTTP_SSL: "true", CONSUL_CACERT: "/nowhere/ca.pem" })),
      /consul.tls.ca_file/,
    );
  });
});
