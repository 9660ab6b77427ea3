// The list of headers is what the router reads and sets, no more and no less.
import assert from "node:assert/strict";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { readdirSync, readFileSync } from "node:fs";
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ServiceError } from "../../../services/common/errors.ts";
import { ANSWER_HEADERS, REQUEST_HEADERS } from "../../../services/router/serving/headers.ts";
import { answer } from "./support/relay.ts";
import { startRest } from "./support/rest.ts";

const namesIn = (list: Record<string, { readonly name: string }>): string[] =>
  Object.values(list)
    .map(({ name }) => name)
    .sort();

/** What HTTP itself needs, Node writes, or guards the page. */
const FRAMING = [
  "connection",
  "content-length",
  "content-security-policy",
  "content-type",
  "date",
  "keep-alive",
  "transfer-encoding",
  "x-content-type-options",
];

describe("the list of headers", () => {
  const sources = fileURLToPath(new URL("../../../services/router", import.meta.url));

  it("is the only place in the router that spells them", () => {
    const spelled = readdirSync(sources, { recursive: true, encoding: "utf8" })
      .filter((file) => file.endsWith(".ts") && !file.endsWith("headers.ts"))
      .flatMap((file) => [...readFileSync(join(sources, file), "utf8").matchAll(/"([a-z]+(?:-[a-z]+)*)"/g)])
      .map(([, name]) => name!);
    const known: readonly string[] = [...namesIn(REQUEST_HEADERS), ...namesIn(ANSWER_HEADERS)];
    // A setting of Express, that it adds no such header.
    const allowed = new Set([...FRAMING, "x-powered-by"]);
    assert.deepEqual(
      spelled.filter((name) => !allowed.has(name) && (known.includes(name) || name.startsWith("x-"))),
      [],
    );
  });

  it("has the headers of a request that the router reads", async () => {
    const read = new Set<string>();
    const get = (headers: IncomingHttpHeaders, name: string): unknown => {
      // Only what our own code asks for: Express and Node read others for themselves.
      const caller = new Error("for its stack").stack!.split("\n")[2];
      if (caller?.includes("/services/router/")) read.add(name);
      return headers[name];
    };
    const onRequest = (message: unknown): void => {
      const { request } = message as { request: IncomingMessage };
      Object.defineProperty(request, "headers", { value: new Proxy(request.headers, { get }) });
    };
    subscribe("http.server.request.start", onRequest);
    try {
      await using rest = await startRest({ apiKey: "k", hosts: { apiKey: "k" } });
      const headers = { authorization: "Bearer k" };
      assert.equal((await rest.post("/v1/completions", { prompt: "hello" }, { headers })).status, 200);
      assert.equal((await fetch(`${rest.url}/v1/models`, { headers })).status, 200);
      assert.equal((await fetch(rest.url)).status, 200);
    } finally {
      unsubscribe("http.server.request.start", onRequest);
    }
    assert.deepEqual([...read].sort(), namesIn(REQUEST_HEADERS));
  });

  it("has the headers of an answer that the router sets", async () => {
    await using rest = await startRest({ apiKey: "k" });
    const authorized = { authorization: "Bearer k" };
    const seen = new Set<string>();
    const note = async (response: Response, status: number): Promise<void> => {
      assert.equal(response.status, status, await response.text());
      for (const name of response.headers.keys()) seen.add(name);
    };
    const ask = (body: object): Promise<Response> =>
      rest.post("/v1/completions", { prompt: "hello", ...body }, { headers: authorized });
    rest.relay.script = (run) => {
      run.draft.fallbacks.push("busy:decode");
      return answer(run);
    };
    await note(await ask({ stream: true }), 200);
    await note(await ask({}), 200);
    rest.relay.script = () => Promise.reject(new ServiceError("instance_busy", "Full.", { retryAfterS: 1 }));
    await note(await ask({ stream: true }), 503);
    await note(await ask({ n: 0 }), 400);
    await note(await rest.post("/v1/completions", {}), 401);
    await note(await fetch(`${rest.url}/v1/completions`, { headers: authorized }), 405);
    for (const path of ["/v1/models", "/readyz", "/metrics", "/", "/nowhere"])
      await note(await fetch(`${rest.url}${path}`, { headers: authorized }), path === "/nowhere" ? 404 : 200);
    assert.deepEqual([...seen].filter((name) => !FRAMING.includes(name)).sort(), namesIn(ANSWER_HEADERS));
  });
});
