// Web pages of other sites: which names in the Host header are served, and what an Origin changes.
import assert from "node:assert/strict";
import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { loadConfig } from "../../../services/common/config.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { startRouter, type Router } from "../../../services/router/main.ts";
import { logSink } from "../../support/log-sink.ts";
import type { OpenAiError } from "./support/rest.ts";

const ADMIN = "/tandem.router.v1.RouterService/ListInstances";
const DRAIN = "/tandem.router.v1.RouterService/DrainInstance";
const JSON_TYPE = { "content-type": "application/json" };

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly text: string;
}

/** fetch would not let us choose the Host header. */
async function ask(
  router: Router,
  method: string,
  path: string,
  o: { host?: string; headers?: Record<string, string>; body?: string } = {},
): Promise<Answer> {
  const req = httpRequest(`${router.restUrl}${path}`, {
    method,
    agent: false,
    headers: { ...(o.host === undefined ? {} : { host: o.host }), ...o.headers },
  });
  req.end(o.body);
  const [res] = (await once(req, "response")) as [IncomingMessage];
  let text = "";
  for await (const piece of res.setEncoding("utf8")) text += piece;
  return { status: res.statusCode!, headers: res.headers, text };
}

function start(...argv: string[]): Promise<Router> {
  // Given last, so that a test may listen elsewhere.
  const listen = argv.includes("--rest.listen") ? [] : ["--rest.listen", "127.0.0.1:0"];
  return startRouter(
    loadConfig(routerConfig, { argv: ["--grpc.listen", "127.0.0.1:0", ...listen, ...argv], env: {} }),
    { log: logSink().log },
  );
}

/** By path, the status of a call under `host`. */
async function statuses(router: Router, host: string): Promise<Record<string, number>> {
  const models = await ask(router, "GET", "/v1/models", { host });
  const answers = await ask(router, "POST", "/v1/completions", { host, headers: JSON_TYPE, body: "{" });
  const admin = await ask(router, "POST", ADMIN, { host, headers: JSON_TYPE, body: "{}" });
  return { models: models.status, answers: answers.status, admin: admin.status };
}

const OPEN = { models: 200, answers: 400, admin: 200 };

describe("a name in the Host header", () => {
  it("that a web page may have given this machine is refused on every path, in OpenAI's form, and the message says what to do", async () => {
    await using router = await start();
    for (const host of [
      "evil.example",
      "evil.example:3000",
      "localhost.evil.example",
      "127.0.0.1.evil.example",
      "notlocalhost",
      "a@127.0.0.1",
    ]) {
      assert.deepEqual(await statuses(router, host), { models: 403, answers: 403, admin: 403 }, host);
    }
    for (const [method, path] of [
      ["GET", "/"],
      ["GET", "/metrics"],
      ["GET", "/nowhere"],
      ["POST", DRAIN],
      ["OPTIONS", "/v1/models"],
    ] as const) {
      assert.equal((await ask(router, method, path, { host: "evil.example", headers: JSON_TYPE })).status, 403, path);
    }
    const { text } = await ask(router, "GET", "/v1/models", { host: "Evil.Example:80" });
    const { error } = JSON.parse(text) as { error: OpenAiError };
    assert.deepEqual([error.type, error.code], ["PermissionDeniedError", 403]);
    assert.match(
      error.message,
      /without an API key \(--api-key\).* the name evil\.example .*--rest\.hosts evil\.example/,
    );
  });

  it("that can only mean this machine is served: localhost, names under it, and every address", async () => {
    await using router = await start();
    for (const host of [
      "localhost",
      "LOCALHOST:80",
      "localhost.",
      "tandem.localhost:1",
      "127.0.0.1:9",
      "127.1.2.3",
      "[::1]:3000",
      "192.168.1.7:3000",
      "[fe80::1]",
    ]) {
      assert.deepEqual(await statuses(router, host), OPEN, host);
    }
  });

  it("is served if a setting allows it", async () => {
    await using router = await start(
      "--rest.hosts",
      "host.docker.internal",
      "--rest.hosts",
      "Proxy.Example:443",
      "--rest.advertise",
      "tandem.corp:3000",
    );
    for (const host of ["host.docker.internal:3000", "proxy.example", "TANDEM.corp"])
      assert.deepEqual(await statuses(router, host), OPEN, host);
    assert.equal((await statuses(router, "other.corp"))["models"], 403);
  });

  it("doesn't matter where a secret is required, and each API has its own secret", async () => {
    await using keyed = await start("--api-key", "sk-1");
    assert.deepEqual(await statuses(keyed, "evil.example"), { models: 401, answers: 401, admin: 403 });
    await using joined = await start("--token", "t0ken");
    assert.deepEqual(await statuses(joined, "evil.example"), { models: 403, answers: 403, admin: 401 });
  });

  it("doesn't matter if REST listens beyond loopback, as in a container: a service's name, a probe by address", async () => {
    await using router = await start("--rest.listen", "0.0.0.0:0", "--token", "t0ken");
    for (const host of ["router:3000", "10.1.2.3:3000", "tandem.svc.cluster.local"]) {
      assert.equal((await ask(router, "GET", "/health", { host })).status, 200, host);
      assert.equal((await ask(router, "GET", "/v1/models", { host })).status, 200, host);
    }
  });
});

describe("a caller of RouterService over HTTP/1.1", () => {
  it("can't make the router hold much before it has shown its token", async () => {
    await using router = await start("--token", "t0ken");
    const { status, text } = await ask(router, "POST", ADMIN, {
      headers: JSON_TYPE,
      body: JSON.stringify({ x: "y".repeat(300_000) }),
    });
    assert.equal(status, 429);
    assert.match(text, /resource_exhausted/);
  });
});

describe("a web page of another origin", () => {
  const origin = "http://evil.example";

  it("gets no permission from a preflight, on any path", async () => {
    await using router = await start();
    for (const path of [ADMIN, DRAIN, "/v1/chat/completions", "/v1/completions", "/v1/models", "/", "/metrics"]) {
      const { headers } = await ask(router, "OPTIONS", path, {
        headers: { origin, "access-control-request-method": "POST", "access-control-request-headers": "content-type" },
      });
      assert.deepEqual(
        Object.keys(headers).filter((name) => name.startsWith("access-control-")),
        [],
        path,
      );
    }
  });

  it("can't do without a preflight: no call accepts the requests that need none", async () => {
    await using router = await start();
    for (const type of [
      undefined,
      "text/plain",
      "application/x-www-form-urlencoded",
      "multipart/form-data; boundary=x",
      "text/plain; application/json",
    ]) {
      const headers = { origin, ...(type === undefined ? {} : { "content-type": type }) };
      for (const path of [ADMIN, DRAIN])
        assert.equal((await ask(router, "POST", path, { headers, body: "{}" })).status, 415, `${path} as ${type}`);
      assert.equal((await ask(router, "POST", "/v1/completions", { headers, body: '{"prompt":"x"}' })).status, 400);
    }
    for (const path of [ADMIN, DRAIN]) {
      assert.equal(
        (await ask(router, "GET", `${path}?connect=v1&encoding=json&message=%7B%7D`, { headers: { origin } })).status,
        405,
        path,
      );
    }
  });
});

describe("what names instances and models", () => {
  const PATHS = ["/", "/metrics", "/readyz", "/livez", "/v1/models"];
  const seen = async (router: Router, headers: Record<string, string> = {}): Promise<number[]> =>
    Promise.all(PATHS.map(async (path) => (await ask(router, "GET", path, { headers })).status));

  it("needs the API key where other machines can connect, and probes need none and tell nothing", async () => {
    await using router = await start("--rest.listen", "0.0.0.0:0", "--api-key", "k");
    assert.deepEqual(await seen(router), [401, 401, 503, 200, 401]);
    assert.deepEqual(await seen(router, { authorization: "Bearer k" }), [200, 200, 503, 200, 200]);
    assert.deepEqual(JSON.parse((await ask(router, "GET", "/readyz")).text), { status: "not ready" });
  });

  it("is open on loopback", async () => {
    await using router = await start("--api-key", "k");
    assert.deepEqual(await seen(router), [200, 200, 503, 200, 401]);
    assert.match((await ask(router, "GET", "/readyz")).text, /No instance has registered/);
  });
});
