// The HTTP around the two hot routes.
import assert from "node:assert/strict";
import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { turnFor } from "../../../services/router/rest/read-body.ts";
import { TANDEM_BUILD } from "../../../services/common/version.ts";
import { eventually } from "../../support/waits.ts";
import { untilGone } from "./support/relay.ts";
import { errorOf, startRest, type Rest } from "./support/rest.ts";

const COMPLETIONS = "/v1/completions";

/** What a socket answers to `text`, until it closes. */
async function raw(rest: Rest, text: string): Promise<string> {
  const socket = connect(rest.port, "127.0.0.1");
  await once(socket, "connect");
  let answer = "";
  socket
    .setEncoding("utf8")
    .on("data", (data: string) => (answer += data))
    .on("error", () => {});
  socket.write(text);
  await once(socket, "close");
  return answer;
}

describe("a body that is too large", () => {
  it("is a 413 for a client that sends all of it first", async () => {
    await using rest = await startRest({ bodyLimitBytes: 10_000 });
    const response = await rest.post(COMPLETIONS, { prompt: "x".repeat(20 << 20) });
    assert.equal(response.status, 413);
    assert.equal(response.headers.get("connection"), "close");
    assert.match((await errorOf(response)).message, /10000 bytes/);
  });

  it("is a 413 for a client that keeps sending chunks", async () => {
    await using rest = await startRest({ bodyLimitBytes: 10_000 });
    const req = httpRequest(`${rest.url}${COMPLETIONS}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
    });
    req.on("error", () => {});
    const answered = once(req, "response");
    let sending = true;
    const block = Buffer.alloc(1 << 20, "x");
    const pump = (): void => {
      while (sending && req.write(block));
      if (sending) req.once("drain", pump);
    };
    pump();
    const [response] = await answered;
    assert.equal(response.statusCode, 413);
    let text = "";
    for await (const piece of response) text += piece;
    assert.match(text, /larger than the 10000 bytes/);
    sending = false;
    req.destroy();
  });

  it("is refused before it is sent if the client asks first", async () => {
    await using rest = await startRest({ bodyLimitBytes: 10_000 });
    const socket = connect(rest.port, "127.0.0.1").setEncoding("utf8");
    socket.write(
      "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: 20000000\r\n\r\n",
    );
    const [first] = await once(socket, "data");
    assert.match(first as string, /^HTTP\/1\.1 413 /);
    socket.destroy();
  });

  it("leaves the next request alone", async () => {
    await using rest = await startRest({ bodyLimitBytes: 10_000 });
    await rest.post(COMPLETIONS, { prompt: "x".repeat(1 << 20) });
    assert.equal((await rest.post(COMPLETIONS, { prompt: "x" })).status, 200);
  });
});

describe("long bodies that arrive together", () => {
  it("are parsed in turns of their own, so that others are answered in between", async () => {
    const turns: number[] = [];
    let turn = 0;
    const req = { socket: { destroyed: false } } as IncomingMessage;
    const all = Array.from({ length: 5 }, () =>
      turnFor(Buffer.alloc(1 << 20), req).then(() => {
        turns.push(turn);
      }),
    );
    const count = (): void => void (turn++, turns.length < 5 && setImmediate(count));
    setImmediate(count);
    await Promise.all(all);
    assert.equal(new Set(turns).size, 5);
  });
});

describe("a body that is announced with Expect", () => {
  it("is asked for and served", async () => {
    await using rest = await startRest();
    const body = '{"prompt":"x"}';
    const req = httpRequest(`${rest.url}${COMPLETIONS}`, {
      method: "POST",
      headers: { "content-type": "application/json", expect: "100-continue", "content-length": body.length },
    });
    req.flushHeaders();
    await once(req, "continue");
    req.end(body);
    const [response] = await once(req, "response");
    assert.equal(response.statusCode, 200);
    response.resume();
  });
});

describe("an unknown expectation", () => {
  it("is ignored", async () => {
    await using rest = await startRest();
    const answer = await raw(rest, "GET /health HTTP/1.1\r\nhost: x\r\nexpect: tea\r\nconnection: close\r\n\r\n");
    assert.match(answer, /^HTTP\/1\.1 200 .*"ok"/s);
  });
});

describe("requests that are sent before earlier ones are answered", () => {
  const request = (body: string): string =>
    `POST ${COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;

  it("are answered in their order, including refused ones", async () => {
    await using rest = await startRest();
    const last = "GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    const answer = await raw(
      rest,
      request('{"prompt":"x","stream":true}') + request("{}") + request('{"prompt":"x"}') + last,
    );
    assert.deepEqual(answer.match(/HTTP\/1\.1 \d+|\[DONE\]|non-empty|text_completion|"ok"/g), [
      "HTTP/1.1 200",
      "[DONE]",
      "HTTP/1.1 400",
      "non-empty",
      "HTTP/1.1 200",
      "text_completion",
      "HTTP/1.1 200",
      '"ok"',
    ]);
  });

  it("all end when their client leaves", async () => {
    await using rest = await startRest({ script: untilGone });
    const warnings: Error[] = [];
    const onWarning = (warning: Error): void => void warnings.push(warning);
    process.on("warning", onWarning);
    const socket = connect(rest.port, "127.0.0.1");
    socket.write(request('{"prompt":"x","stream":true}').repeat(12));
    await eventually("one runs, and the others wait", () => rest.serving.count === 1 && rest.relay.runs.length === 1);
    socket.destroy();
    await eventually("they have ended", () => rest.serving.count === 0);
    process.off("warning", onWarning);
    assert.deepEqual(
      rest.receipts.list(12).map(({ outcome }) => outcome),
      ["cancelled"],
    );
    assert.deepEqual(warnings, []);
  });
});

describe("an API key", () => {
  let rest: Rest;
  before(async () => {
    rest = await startRest({ apiKey: "sk-right" });
  });
  after(() => rest[Symbol.asyncDispose]());

  it("is required, and its absence is reported in OpenAI's form", async () => {
    for (const headers of [{}, { authorization: "Bearer sk-wrong" }, { authorization: "sk-right" }] as Record<
      string,
      string
    >[]) {
      const response = await rest.post(COMPLETIONS, { prompt: "x" }, { headers });
      assert.equal(response.status, 401);
      assert.equal(response.headers.get("www-authenticate"), "Bearer");
      const { type, code, param } = await errorOf(response);
      assert.deepEqual({ type, code, param }, { type: "AuthenticationError", code: "invalid_api_key", param: null });
    }
    assert.equal((await fetch(`${rest.url}/v1/models`)).status, 401);
    assert.equal(rest.relay.runs.length, 0);
    assert.doesNotMatch(JSON.stringify(rest.logs.lines), /sk-(right|wrong)/);
  });

  it("gives access to the models", async () => {
    const headers = { authorization: "bearer sk-right" };
    assert.equal((await rest.post(COMPLETIONS, { prompt: "x" }, { headers })).status, 200);
    assert.equal((await fetch(`${rest.url}/v1/models`, { headers })).status, 200);
  });

  it("is not needed for health and readiness, and is not shown by the page", async () => {
    for (const path of ["/health", "/livez", "/ready", "/readyz"]) {
      assert.equal((await fetch(`${rest.url}${path}`)).status, 200, path);
    }
    const headers = { authorization: "bearer sk-right" };
    assert.doesNotMatch(await (await fetch(`${rest.url}/`, { headers })).text(), /sk-right/);
  });
});

describe("the rest of the API", () => {
  let rest: Rest;
  before(async () => {
    rest = await startRest();
  });
  after(() => rest[Symbol.asyncDispose]());
  afterEach(() =>
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode" },
    ]),
  );

  const get = (path: string): Promise<Response> => fetch(`${rest.url}${path}`);

  it("lists the models with their context length", async () => {
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", model: "org/other" },
    ]);
    const list = (await (await get("/v1/models")).json()) as {
      object: string;
      data: { id: string; max_model_len: number; object: string }[];
    };
    assert.equal(list.object, "list");
    assert.deepEqual(
      list.data.map(({ id, object, max_model_len }) => [id, object, max_model_len]),
      [
        ["org/other", "model", 512],
        ["tiny", "model", 512],
      ],
    );
    for (const path of ["/v1/models/org/other", "/v1/models/org%2Fother"]) {
      assert.equal(((await (await get(path)).json()) as { id: string }).id, "org/other");
    }
    const missing = await get("/v1/models/nope");
    assert.equal(missing.status, 404);
    assert.match((await errorOf(missing)).message, /Valid aliases: org\/other, tiny\./);
  });

  it("is alive even when it can't serve, and says what is missing", async () => {
    rest.pool.set([
      { id: "p1", role: "prefill" },
      { id: "d1", role: "decode", draining: "" },
    ]);
    assert.equal((await get("/livez")).status, 200);
    assert.equal((await get("/health")).status, 200);
    for (const path of ["/ready", "/readyz"]) {
      const response = await get(path);
      assert.equal(response.status, 503);
      assert.match(await response.text(), /its only decode instance is out \(draining\)/);
    }
    rest.pool.set([]);
    assert.match(await (await get("/readyz")).text(), /start a prefill and a decode instance/);
  });

  it("counts requests", async () => {
    await (await rest.post(COMPLETIONS, { prompt: "x" })).text();
    await eventually("the metric", async () => {
      const text = await (await get("/metrics")).text();
      return (
        /^tandem_requests_total\{path="\/v1\/completions",outcome="completed",code=""\} 1$/m.test(text) &&
        /^tandem_requests_running 0$/m.test(text)
      );
    });
  });

  it("names the known paths and methods to a request for another one", async () => {
    const unknown = await get("/v1/nope");
    assert.equal(unknown.status, 404);
    assert.match(
      (await errorOf(unknown)).message,
      /There is no \/v1\/nope here\. There are: POST \/v1\/chat\/completions/,
    );
    const wrong = await get(COMPLETIONS);
    assert.equal(wrong.status, 405);
    assert.equal(wrong.headers.get("allow"), "POST");
    assert.match((await errorOf(wrong)).message, /use POST/);
    const post = await rest.post("/v1/models", {});
    assert.equal(post.status, 405);
    assert.equal(post.headers.get("allow"), "GET, HEAD");
    const undecodable = await get("/v1/models/%E0%A4%A");
    assert.equal(undecodable.status, 400);
  });

  it("answers a broken request with a 400", async () => {
    const answer = await raw(rest, "NONSENSE\r\n\r\n");
    assert.match(answer, /^HTTP\/1\.1 400 /);
    assert.match(answer, /"type":"BadRequestError"/);
    assert.match(
      await raw(rest, `GET / HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(40_000)}\r\n\r\n`),
      /^HTTP\/1\.1 431 Request Header Fields Too Large\r\n.*"code":431/s,
    );
    for (const path of ["/health", COMPLETIONS]) {
      const answer = await raw(rest, `POST ${path} HTTP/1.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`);
      assert.match(answer, /^HTTP\/1\.1 400 .*"message":"The request has no Host header/s, path);
    }
    assert.match(await raw(rest, "GET /health HTTP/1.0\r\n\r\n"), /^HTTP\/1\.1 200 /);
  });

  it("allows no other site to read it", async () => {
    const response = await fetch(`${rest.url}/v1/models`, { headers: { origin: "https://elsewhere.example" } });
    assert.equal(response.headers.get("access-control-allow-origin"), null);
  });
});

describe("the page", () => {
  it("shows the instances, and no address but those that clients use", async () => {
    await using rest = await startRest();
    rest.pool.set([
      { id: "p1", role: "prefill", model: "<script>alert(1)</script>" },
      { id: "d1", role: "decode", draining: "10.1.2.3:3201 does not answer" },
    ]);
    const response = await fetch(`${rest.url}/`);
    const html = await response.text();
    assert.match(response.headers.get("content-type")!, /^text\/html/);
    assert.match(response.headers.get("content-security-policy")!, /default-src 'none'/);
    assert.doesNotMatch(html, /<script>alert|10\.1\.2\.3|https?:\/\/(?!127\.0\.0\.1)/);
    assert.match(html, /does not answer/);
    assert.ok(html.includes(`Tandem ${TANDEM_BUILD}`));
    assert.match(html, new RegExp(`curl -N http://127\\.0\\.0\\.1:${rest.port}/v1/chat/completions`));
  });

  it("does not take an address from a hostile Host header", async () => {
    await using rest = await startRest();
    const answer = await raw(rest, 'GET / HTTP/1.1\r\nhost: "><img src=x>\r\nconnection: close\r\n\r\n');
    assert.doesNotMatch(answer, /<img/);
  });
});

describe("a router that stops", () => {
  it("refuses new requests, says so in /readyz, and closes kept connections", async () => {
    await using rest = await startRest();
    await rest.serving.drain(0);
    const ready = await fetch(`${rest.url}/readyz`);
    assert.equal(ready.status, 503);
    assert.equal(ready.headers.get("connection"), "close");
    const refused = await rest.post(COMPLETIONS, { prompt: "x" });
    assert.equal(refused.status, 503);
    assert.equal(refused.headers.get("retry-after"), "1");
    assert.equal(refused.headers.get("connection"), "close");
  });
});

describe("requests that are sent before the last one was answered", () => {
  const GET = "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";

  it("are answered one after the other", async () => {
    await using rest = await startRest();
    const answer = await raw(rest, GET.repeat(50) + GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"));
    assert.equal(answer.match(/HTTP\/1\.1 200/g)?.length, 51);
  });

  it("close the connection if there are more than a hundred", async () => {
    await using rest = await startRest();
    const answer = await raw(rest, GET.repeat(5_000));
    assert.ok((answer.match(/HTTP\/1\.1 200/g)?.length ?? 0) < 5_000);
  });
});
