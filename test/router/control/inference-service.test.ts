// InferenceService over gRPC, with a scripted relay behind it.
import assert from "node:assert/strict";
import { Speaker } from "#gen/tandem/inference/v1/inference_pb.js";
import { Outcome } from "#gen/tandem/router/v1/router_pb.js";
import { ServiceError } from "../../../services/common/errors.ts";
import { eventually } from "../../support/waits.ts";
import { ENDING } from "../rest/support/relay.ts";
import { code, collect, startControl, type Control } from "./support/control.ts";

describe("InferenceService", () => {
  let control: Control;
  beforeEach(async () => {
    control = await startControl();
  });
  afterEach(() => control[Symbol.asyncDispose]());

  const body = (): string => control.relay.runs.at(-1)!.request.body.toString();

  it("answers a prompt with text and a typed end", async () => {
    const pieces = await collect(
      control.inference.generate({
        input: { case: "prompt", value: 'say "hi"' },
        maxTokens: 5,
        temperature: 0,
        topP: 0.5,
        seed: 9007199254740993n,
        stop: ["\n"],
        extraJson: '{"top_k": 5, "seed_of_nothing": 12345678901234567890}',
      }),
    );
    assert.equal(pieces.map(({ text }) => text).join(""), "Hello");
    assert.match(pieces[0]!.requestId, /^cmpl-[0-9a-f]{32}$/);
    assert.ok(pieces.slice(1).every(({ requestId }) => requestId === ""));
    assert.ok(pieces.slice(0, -1).every(({ finish }) => finish === undefined));
    const { reason, promptTokens, completionTokens, cachedTokens } = pieces.at(-1)!.finish!;
    assert.deepEqual([reason, promptTokens, completionTokens, cachedTokens], ["stop", 5, 2, 3]);
    assert.equal(control.relay.runs[0]!.request.path, "/v1/completions");
    assert.equal(
      body(),
      '{"prompt":"say \\"hi\\"","max_tokens":5,"temperature":0,"top_p":0.5,"seed":9007199254740993,"stop":["\\n"],' +
        '"stream":true,"stream_options":{"include_usage":true},"top_k":5,"seed_of_nothing":12345678901234567890}',
    );
  });

  it("answers a conversation", async () => {
    const messages = [
      { speaker: Speaker.SYSTEM, text: "Be brief." },
      { text: "Hi" },
      { speaker: Speaker.ASSISTANT, text: "Yes?" },
    ];
    await collect(control.inference.generate({ model: "tiny", input: { case: "conversation", value: { messages } } }));
    assert.equal(control.relay.runs[0]!.request.path, "/v1/chat/completions");
    assert.deepEqual(
      JSON.parse(body()).messages.map(({ role }: { role: string }) => role),
      ["system", "user", "assistant"],
    );
  });

  const REFUSED: readonly (readonly [
    name: string,
    request: Parameters<Control["inference"]["generate"]>[0],
    expected: string,
  ])[] = [
    ["neither prompt nor conversation", {}, "invalid_request"],
    ["an unknown model", { model: "nope", input: { case: "prompt", value: "x" } }, "model_not_found"],
    [
      "extra_json that repeats a field",
      { input: { case: "prompt", value: "x" }, extraJson: '{"max_\\u0074okens":5}' },
      "invalid_request",
    ],
    [
      "extra_json that asks for several answers",
      { input: { case: "prompt", value: "x" }, extraJson: '{"n":2}' },
      "invalid_request",
    ],
    [
      "extra_json that is not an object",
      { input: { case: "prompt", value: "x" }, extraJson: "[1]" },
      "invalid_request",
    ],
    [
      "extra_json of very many fields",
      {
        input: { case: "prompt", value: "x" },
        extraJson: JSON.stringify(Object.fromEntries(Array.from({ length: 150_000 }, (_, index) => [`k${index}`, 1]))),
      },
      "invalid_request",
    ],
    [
      "extra_json with KV parameters",
      { input: { case: "prompt", value: "x" }, extraJson: '{"kv_transfer_params":{}}' },
      "invalid_request",
    ],
    ["max_tokens of 0", { input: { case: "prompt", value: "x" }, maxTokens: 0 }, "invalid_request"],
  ];
  for (const [name, request, expected] of REFUSED) {
    it(`refuses ${name}`, async () => {
      await assert.rejects(collect(control.inference.generate(request)), code(expected));
      assert.equal(control.relay.runs.length, 0);
    });
  }

  it("fails with the relay's error, also after the first text", async () => {
    control.relay.script = async ({ sink, leg, write }) => {
      leg();
      sink.start();
      write('data: {"choices":[{"text":"Hel"}]}\n\n');
      throw new ServiceError("kv_transfer_failed", "The KV transfer failed.", { retryAfterS: 1 });
    };
    const texts: string[] = [];
    await assert.rejects(async () => {
      for await (const { text } of control.inference.generate({ input: { case: "prompt", value: "x" } }))
        texts.push(text);
    }, code("kv_transfer_failed"));
    assert.deepEqual(texts, ["Hel"]);
    const [receipt] = (await control.router.listRequests({})).receipts;
    assert.deepEqual([receipt!.outcome, receipt!.errorCode], [Outcome.FAILED, "kv_transfer_failed"]);
  });

  it("ends the legs when its caller cancels", async () => {
    control.relay.script = (run) => {
      run.sink.start();
      run.write('data: {"choices":[{"text":"Hel"}]}\n\n');
      return new Promise((_resolve, reject) =>
        run.gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "gone"))),
      );
    };
    for await (const _ of control.inference.generate({ input: { case: "prompt", value: "x" } })) break;
    await eventually("the legs are cancelled", () => control.relay.runs[0]!.gone.aborted);
    await eventually("the receipt is closed", () => control.serving.count === 0);
  });

  it("holds the legs back for a caller that reads slowly", async () => {
    let held = 0;
    control.relay.script = async (run) => {
      run.sink.start();
      for (let count = 0; count < 200; count += 1) {
        if (run.write(`data: {"choices":[{"text":"${"x".repeat(10_000)}"}]}\n\n`)) continue;
        held += 1;
        await new Promise<void>((resolve) => (run.sink.onDrain = resolve));
      }
      return ENDING;
    };
    const pieces = await collect(control.inference.generate({ input: { case: "prompt", value: "x" } }));
    assert.equal(
      pieces.reduce((sum, { text }) => sum + text.length, 0),
      2_000_000,
    );
    assert.ok(held > 0);
  });

  it("disconnects a caller that reads nothing at all", async () => {
    control.relay.script = async (run) => {
      run.leg();
      run.sink.start();
      const gone = new Promise<never>((_resolve, reject) =>
        run.gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "gone"))),
      );
      for (;;) {
        if (!run.write(`data: {"choices":[{"text":"${"x".repeat(100_000)}"}]}\n\n`)) {
          await Promise.race([gone, new Promise<void>((resolve) => (run.sink.onDrain = resolve))]);
        }
      }
    };
    const stream = control.inference.generate({ input: { case: "prompt", value: "x" } })[Symbol.asyncIterator]();
    await stream.next();
    await eventually("it is disconnected", () => control.serving.count === 0);
    assert.ok(control.relay.runs[0]!.gone.aborted);
    assert.match((await control.router.listRequests({})).receipts[0]!.error, /read nothing for 150 ms/);
    await stream.return!();
  });

  it("requires the API key", async () => {
    await assert.rejects(
      collect(control.stranger.inference.generate({ input: { case: "prompt", value: "x" } })),
      code("unauthenticated"),
    );
  });
});
