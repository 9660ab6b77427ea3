import assert from "node:assert/strict";
import { once } from "node:events";
import { Agent, createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { streamRequest, type StreamResult } from "../../../clients/loadgen/stream-request.ts";

/** What a server that answers with `answer` makes of one request. */
async function against(answer: (response: ServerResponse) => void | Promise<void>): Promise<StreamResult> {
  const server = createServer((request, response) => {
    request.resume().once("end", () => void answer(response));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const agent = new Agent();
  try {
    const { port } = server.address() as AddressInfo;
    return await streamRequest({ url: `http://127.0.0.1:${port}`, agent }, "{}");
  } finally {
    agent.destroy();
    server.close();
    server.closeAllConnections();
  }
}

const event = (text: string): string => `data: ${JSON.stringify({ choices: [{ text }] })}\n\n`;

describe("the load generator's stream", () => {
  it("reads text, usage and gaps, however the stream is cut into pieces", async () => {
    const bytes = Buffer.from(
      `${event("Hé")}${event("llo")}data: {"choices":[],"usage":{"completion_tokens":5}}\n\ndata: [DONE]\n\n`,
    );
    const result = await against(async (response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      for (const byte of bytes) {
        response.write(Buffer.of(byte));
        await new Promise((resolve) => setImmediate(resolve));
      }
      response.end();
    });
    assert.equal(result.error, undefined);
    assert.equal(result.completed, true);
    assert.equal(result.text, "Héllo");
    assert.equal(result.tokens, 5);
    assert.equal(result.chunks, 2);
    assert.equal(result.gapsMs.length, 1);
    assert.ok(result.ttftMs > 0 && result.endToEndMs >= result.ttftMs);
  });

  it("calls a stream without [DONE] broken", async () => {
    const result = await against((response) => {
      response.writeHead(200).end(event("Hel"));
    });
    assert.equal(result.completed, false);
    assert.equal(result.error, "the stream ended without [DONE]");
  });

  it("reports an error inside the stream", async () => {
    const result = await against((response) => {
      response.writeHead(200).end(`${event("Hel")}data: {"error":{"message":"engine lost"}}\n\ndata: [DONE]\n\n`);
    });
    assert.equal(result.error, "engine lost");
  });

  it("reports a status other than 200 with its body", async () => {
    const result = await against((response) => {
      response.writeHead(503).end("nobody there");
    });
    assert.equal(result.error, "status 503: nobody there");
  });

  it("reports a connection that broke", async () => {
    const result = await against((response) => {
      response.writeHead(200);
      response.write(event("Hel"));
      response.destroy();
    });
    assert.equal(result.completed, false);
  });

  it("reports a body that is not an event stream", async () => {
    const result = await against((response) => {
      response.writeHead(200).end("data: {oops\n\n");
    });
    assert.match(result.error ?? "", /an event that is not JSON/);
  });
});
