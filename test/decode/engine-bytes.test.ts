import assert from "node:assert/strict";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeResponseSchema, DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { loadConfig } from "../../services/common/config.ts";
import { decodeConfig } from "../../services/decode/config.ts";
import { startDecode } from "../../services/decode/main.ts";
import { dialRpc } from "../../services/rpc/channel.ts";
import { IDENTITY, leg, openDecode, quiet, type SimInstance } from "../instance/legs.ts";
import { within } from "../support/waits.ts";

describe("an engine that sends odd bytes", () => {
  const HEAD = 'data: {"id":"cmpl-secret","object":"text_completion","created":1,"model":"odd","choices":[';
  const chunk = (text: string, finish = "null"): string =>
    `${HEAD}{"index":0,"text":${JSON.stringify(text)},"finish_reason":${finish}}]}`;

  async function answerWith(
    write: (res: ServerResponse) => void | Promise<void>,
  ): Promise<{ events: string; messages: number; error: { code?: string } | undefined }> {
    const server = createServer((req: IncomingMessage, res) => {
      req.resume();
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"odd","max_model_len":100}]}');
      if (req.url === "/version") return void res.end('{"version":"9"}');
      if (req.method === "GET") return void res.writeHead(req.url === "/sim/state" ? 404 : 200).end();
      req.on("end", () => void write(res));
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const argv = [
      "--grpc.listen=127.0.0.1:0",
      "--registry.address=",
      `--attach=${url}`,
      "--engine.kind=sim",
      "--connector=p2p-zmq",
      "--engine.kv_address=127.0.0.1:9",
    ];
    await using instance = await startDecode(loadConfig(decodeConfig, { argv, env: {} }), { log: quiet });
    await using channel = dialRpc(instance.address);
    const call = openDecode({ instance, channel } as unknown as SimInstance);
    call.reserve(leg({ model: "odd" }), undefined, { prefillKvAddress: "127.0.0.1:9" });
    call.start("");
    let events = "";
    let messages = 0;
    let error: { code?: string } | undefined;
    try {
      for (let message = await call.next(); message !== undefined; message = await call.next()) {
        events += message.events;
        messages++;
      }
    } catch (thrown) {
      error = thrown as { code?: string };
    }
    server.closeAllConnections();
    server.close();
    return { events, messages, error };
  }

  it("is read however its events are cut, with comments and CRLF between them", async () => {
    const { events, error } = await answerWith(async (res) => {
      const text = `: keep-alive\n\n${chunk("a")}\n\n${chunk("é\\n")}\r\n\r\n: x\n\n${chunk("c", '"stop"')}\n\ndata: [DONE]\n\n`;
      for (const byte of Buffer.from(text)) {
        res.write(Buffer.from([byte]));
        await new Promise(setImmediate);
      }
      res.end();
    });
    assert.equal(error, undefined);
    assert.deepEqual(
      events
        .trim()
        .split("\n\n")
        .map((event) => JSON.parse(event.slice(6)).choices[0].text),
      ["a", "é\\n", "c"],
    );
    assert.doesNotMatch(events, /secret|\r|keep-alive/);
  });

  it("is held back while the caller doesn't read, and loses nothing", async () => {
    const count = 200_000;
    let sent = 0;
    const server = createServer((req, res) => {
      req.resume();
      if (req.url === "/v1/models") return void res.end('{"data":[{"id":"odd"}]}');
      if (req.url === "/version") return void res.end("{}");
      if (req.method === "GET") return void res.writeHead(req.url === "/sim/state" ? 404 : 200).end();
      const more = (): void => {
        while (sent < count)
          if (!res.write(`${chunk("abcdefghij", ++sent === count ? '"length"' : "null")}\n\n`))
            return void res.once("drain", more);
        res.end("data: [DONE]\n\n");
      };
      more();
    });
    await new Promise<void>((done) => server.listen(0, "127.0.0.1", done));
    const argv = [
      "--grpc.listen=127.0.0.1:0",
      "--router=",
      `--attach=http://127.0.0.1:${(server.address() as AddressInfo).port}`,
      "--engine.kind=sim",
      "--connector=p2p-zmq",
      "--engine.kv_address=127.0.0.1:9",
    ];
    await using instance = await startDecode(loadConfig(decodeConfig, { argv, env: {} }), { log: quiet });
    const thin = dialRpc(instance.address, { log: quiet });
    let bytes = 0;
    let tokens = 0;
    let stuckAt = 0;
    const ended = new Promise<unknown>((onEnd) => {
      const call = thin.open(`/${DecodeService.typeName}/Decode`, {
        onMessage(message) {
          const piece = fromBinary(DecodeResponseSchema, message);
          bytes += piece.events.length;
          tokens += piece.tokenCount;
        },
        onEnd,
      });
      const pair = leg({ model: "odd" });
      const reserve = { ...pair, identity: IDENTITY, prefillKvAddress: "127.0.0.1:9" };
      call.pause();
      call.write(
        Buffer.from(
          toBinary(DecodeRequestSchema, create(DecodeRequestSchema, { step: { case: "reserve", value: reserve } })),
        ),
      );
      call.write(
        Buffer.from(toBinary(DecodeRequestSchema, create(DecodeRequestSchema, { step: { case: "start", value: {} } }))),
      );
      void (async () => {
        let before = -1;
        // Until the engine is stuck: nothing more is taken from it for a while.
        for (let quietRounds = 0; quietRounds < 20; quietRounds = sent === before ? quietRounds + 1 : 0) {
          before = sent;
          await new Promise((done) => setTimeout(done, 10));
        }
        stuckAt = sent;
        call.resume();
      })();
    });
    assert.equal(await within(ended, "the end", 20_000), undefined);
    // What the sockets and the HTTP/2 window hold, and no more.
    assert.ok(stuckAt < count / 2, `the engine was held back at ${stuckAt} of ${count}`);
    assert.deepEqual([tokens, bytes > count * 100], [count, true]);
    await thin[Symbol.asyncDispose]();
    server.closeAllConnections();
    server.close();
  });

  it("passes on many events of one read as one message", async () => {
    const { events, messages } = await answerWith((res) => {
      const all = Array.from({ length: 50 }, (_, i) => `${chunk(String(i), i === 49 ? '"length"' : "null")}\n\n`).join(
        "",
      );
      res.end(`${all}data: [DONE]\n\n`);
    });
    assert.equal(events.split("\n\n").length, 51);
    assert.ok(messages <= 4, `${messages} messages`);
  });

  it("is not trusted with KV parameters", async () => {
    const { events } = await answerWith((res) => {
      const secret = '"kv_transfer_params":{"remote_host":"10.0.0.1"}';
      res.end(`${chunk("a")}\n\n${chunk("b", '"stop"').slice(0, -1)},${secret}}\n\ndata: [DONE]\n\n`);
    });
    assert.match(events, /"kv_transfer_params":null/);
    assert.doesNotMatch(events, /10\.0\.0\.1/);
  });

  for (const [what, bytes, code] of [
    ["ends without a finish reason", `${chunk("a")}\n\ndata: [DONE]\n\n`, "engine_failed"],
    ["ends without [DONE]", `${chunk("a", '"stop"')}\n\n`, "engine_failed"],
    ["sends what is no JSON", "data: {oops\n\n", "engine_failed"],
    ["sends HTML", "<html>\n\n</html>", "engine_failed"],
    [
      "reports an error before the first token",
      'data: {"error": {"message": "Internal server error", "code": 500}}\n\ndata: [DONE]\n\n',
      "kv_transfer_failed",
    ],
    [
      "refuses inside the stream",
      'data: {"error": {"message": "bad", "code": 400}}\n\ndata: [DONE]\n\n',
      "engine_refused",
    ],
  ] as const) {
    it(`fails the leg when it ${what}`, async () => {
      const { error } = await answerWith((res) => void res.end(bytes));
      assert.equal(error?.code, code);
    });
  }
});
