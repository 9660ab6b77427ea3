import assert from "node:assert/strict";
import { once } from "node:events";
import { Agent, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { type TimedAnswer, timedRequest } from "../../clients/common/timed-request.ts";

/** How a stream of `pieces` is recorded. `cut`: the connection breaks behind them. */
async function recorded(pieces: readonly string[], cut = false): Promise<TimedAnswer> {
  await using server = createServer((request, response) => {
    request.resume().once("end", async () => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      for (const piece of pieces) await new Promise((resolve) => response.write(piece, resolve));
      if (cut) response.destroy();
      else response.end();
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const agent = new Agent();
  const ask = { path: "/v1/completions", body: "{}", stream: true };
  const record = await timedRequest(ask, { url, agent, hangMs: 30_000 });
  agent.destroy();
  return record;
}

const TEXT = 'data: {"choices":[{"text":"Hi","finish_reason":"stop"}],"usage":{"completion_tokens":1}}\n\n';
const ERROR = 'data: {"error":{"message":"engine lost"}}\n\n';
const DONE = "data: [DONE]\n\n";

describe("a stream, as chaos and the load generator record it,", () => {
  for (const [what, pieces, ending, message] of [
    ["is completed with [DONE]", [": keep-alive\n\n", TEXT, DONE], "completed", /^$/],
    ["is an error with its words", [TEXT, ERROR, DONE], "error", /^engine lost$/],
    ["is malformed without [DONE]", [TEXT], "malformed", /without \[DONE\]/],
    ["is malformed when an event comes after [DONE]", [TEXT, DONE + TEXT], "malformed", /after \[DONE\]/],
    ["is malformed when [DONE] comes twice", [TEXT, DONE + DONE], "malformed", /twice/],
    ["is malformed when text comes after an error", [ERROR + TEXT, DONE], "malformed", /after the error/],
    ["is malformed at an event that is not JSON", [TEXT, "data: {nope\n\n", DONE], "malformed", /not JSON/],
  ] as const) {
    it(what, async () => {
      const record = await recorded(pieces);
      assert.equal(record.ending, ending);
      assert.match(record.message, message);
    });
  }

  it("is cut when the connection breaks", async () => {
    const record = await recorded([TEXT], true);
    assert.deepEqual([record.ending, record.text, record.tokens, record.finishReason], ["cut", "Hi", 1, "stop"]);
  });
});
