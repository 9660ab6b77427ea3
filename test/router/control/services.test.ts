// RouterService and InferenceService over gRPC, with a scripted relay behind them.
import assert from "node:assert/strict";
import { type GenerateResponse, InferenceService, Speaker } from "#gen/tandem/inference/v1/inference_pb.js";
import { Outcome, RouterService } from "#gen/tandem/router/v1/router_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { ServiceError } from "../../../services/common/errors.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { TANDEM_COMMIT, TANDEM_VERSION } from "../../../services/common/version.ts";
import type { RpcClient } from "../../../services/rpc/client.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { createAdmission } from "../../../services/router/admission/admission.ts";
import { inferenceService } from "../../../services/router/control/inference-service.ts";
import { createReceipts } from "../../../services/router/control/receipts.ts";
import { routerService } from "../../../services/router/control/router-service.ts";
import { createServing, type Serving } from "../../../services/router/serving/serving.ts";
import { createServingMetrics } from "../../../services/router/serving/metrics.ts";
import { dialRpc } from "../../../services/rpc/channel.ts";
import { silentLog as log } from "../../support/log-sink.ts";
import { manualClock, type ManualClock } from "../../support/manual-clock.ts";
import { eventually } from "../../support/waits.ts";
import { fakePool, type FakePool } from "../rest/support/pool.ts";
import { answer, ENDING, fakeRelay, type FakeRelay } from "../rest/support/relay.ts";

const REGISTRY = {
  kind: "consul",
  address: "127.0.0.1:8500",
  up: false,
  downSinceUnixMs: 1n,
  error: "Consul does not answer",
};

interface Control {
  /** Of RouterService. */
  readonly clock: ManualClock;
  readonly pool: FakePool;
  readonly relay: FakeRelay;
  readonly serving: Serving;
  readonly router: RpcClient<typeof RouterService>;
  readonly inference: RpcClient<typeof InferenceService>;
  /** Calls without token or key. */
  readonly stranger: {
    readonly router: RpcClient<typeof RouterService>;
    readonly inference: RpcClient<typeof InferenceService>;
  };
  [Symbol.asyncDispose](): Promise<void>;
}

async function startControl(): Promise<Control> {
  const pool = fakePool();
  const relay = fakeRelay();
  const metrics = createMetrics();
  const clock = systemClock;
  const ownClock = manualClock();
  const admission = createAdmission({
    capacity: (model) => pool.view.models.get(model)?.slots ?? 0,
    queue: { current: { limit: 4, timeoutMs: 1000 } },
    clock,
    deadlines: new Deadlines(clock),
  });
  const receipts = createReceipts({ limit: 3, watcherLimit: 1 });
  const servingMetrics = createServingMetrics(metrics, admission);
  const serving = createServing({
    pool,
    admission,
    relay,
    receipts,
    metrics: servingMetrics,
    log,
    clock,
    request: { current: { legsLimit: 8, deadlineMs: 60_000, strict: false } },
  });
  const settings = [
    { key: "token", value: "set", origin: "env TANDEM_TOKEN" },
    { key: "queue.limit", value: "4 requests", origin: "default" },
  ];
  const server = await serveRpc({
    listen: "127.0.0.1:0",
    token: "join",
    apiKey: "sk-key",
    log,
    graceMs: 100,
    services: [
      routerService({
        routerId: "router-1",
        pool,
        receipts,
        settings: () => settings,
        registry: () => REGISTRY,
        watcherLimit: 1,
        probes: { now: async () => ({ kind: "right", worstDelta: 0.01, ms: 5 }) },
        clock: ownClock,
        log,
      }),
      inferenceService({ serving, metrics: servingMetrics, bufferBytes: 1024, stallMs: 150, clock }),
    ],
  });
  const channels = [
    dialRpc(server.address, { token: "join" }),
    dialRpc(server.address, { token: "sk-key" }),
    dialRpc(server.address),
  ] as const;
  return {
    clock: ownClock,
    pool,
    relay,
    serving,
    router: channels[0].client(RouterService),
    inference: channels[1].client(InferenceService),
    stranger: { router: channels[2].client(RouterService), inference: channels[2].client(InferenceService) },
    async [Symbol.asyncDispose]() {
      await Promise.all(channels.map((channel) => channel[Symbol.asyncDispose]()));
      await server[Symbol.asyncDispose]();
    },
  };
}

const code = (expected: string) => (error: unknown) => error instanceof ServiceError && error.code === expected;

async function collect<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const one of stream) all.push(one);
  return all;
}

describe("RouterService", () => {
  let control: Control;
  beforeEach(async () => {
    control = await startControl();
  });
  afterEach(() => control[Symbol.asyncDispose]());

  const generate = (): Promise<GenerateResponse[]> =>
    collect(control.inference.generate({ input: { case: "prompt", value: "hi" } }));

  it("lists the instances with what the router thinks of them", async () => {
    control.pool.set([
      { id: "d1", role: "decode", draining: "It drains." },
      { id: "p1", role: "prefill" },
    ]);
    const { instances, routerId } = await control.router.listInstances({});
    assert.equal(routerId, "router-1");
    assert.deepEqual(
      instances.map(({ info, eligible, reason }) => [info!.instanceId, eligible, reason]),
      [
        ["p1", true, ""],
        ["d1", false, "It drains."],
      ],
    );
    assert.equal(instances[0]!.legsTotal, 7n);
  });

  it("tells of changes at once and at most five times a second", async () => {
    const seen: number[] = [];
    const stop = new AbortController();
    for await (const { instances } of control.router.watchInstances({}, { signal: stop.signal })) {
      seen.push(instances.length);
      if (seen.length === 1) {
        control.pool.set([{ id: "p1", role: "prefill" }]);
        control.pool.set([
          { id: "p1", role: "prefill" },
          { id: "d1", role: "decode" },
          { id: "d2", role: "decode" },
        ]);
        await control.clock.untilPending();
        control.clock.advance(199);
        assert.equal(control.clock.pending, 1, "it still waits");
        control.clock.advance(1);
      } else break;
    }
    assert.deepEqual(seen, [2, 3], "changes in quick succession are told as one");
    stop.abort();
  });

  it("refuses one watcher too many, and takes one again when another left", async () => {
    const stop = new AbortController();
    const first = control.router.watchInstances({}, { signal: stop.signal })[Symbol.asyncIterator]();
    await first.next();
    await assert.rejects(collect(control.router.watchInstances({})), code("queue_full"));
    stop.abort();
    await assert.rejects(first.next(), code("cancelled"));
    await eventually("there is room again", async () => {
      for await (const _ of control.router.watchInstances({})) return true;
      return false;
    });
  });

  it("keeps the receipts of the last requests, the newest first", async () => {
    const ids: string[] = [];
    for (let count = 0; count < 4; count += 1) ids.push((await generate())[0]!.requestId);
    const { receipts } = await control.router.listRequests({});
    assert.deepEqual(
      receipts.map(({ requestId }) => requestId),
      ids.slice(1).reverse(),
      "the oldest of four is gone: the limit is three",
    );
    const { receipt } = await control.router.getReceipt({ requestId: ids[3]! });
    assert.equal(receipt!.outcome, Outcome.COMPLETED);
    assert.equal(receipt!.path, "Generate");
    assert.equal(receipt!.legs[0]!.prefillInstanceId, "p1");
    await assert.rejects(control.router.getReceipt({ requestId: ids[0]! }), code("not_found"));
    assert.equal((await control.router.listRequests({ limit: 1 })).receipts.length, 1);
  });

  it("shows requests that run", async () => {
    let end = (): void => {};
    control.relay.script = async (run) => {
      await new Promise<void>((resolve) => (end = resolve));
      return answer(run);
    };
    const running = generate();
    await eventually("it runs", () => control.relay.runs.length === 1);
    const [receipt] = (await control.router.listRequests({})).receipts;
    assert.deepEqual([receipt!.outcome, receipt!.status], [Outcome.UNSPECIFIED, 0]);
    end();
    await running;
  });

  it("tells of requests as they end", async () => {
    const stop = new AbortController();
    const watch = control.router.watchRequests({}, { signal: stop.signal })[Symbol.asyncIterator]();
    const next = watch.next();
    // The call has to have arrived before the request ends; a second watcher is refused only then.
    await eventually("it watches", async () => {
      const other = control.router.watchRequests({}, { timeoutMs: 200 });
      return collect(other).then(() => false, code("queue_full"));
    });
    const [first] = await generate();
    const { value } = await next;
    assert.equal(value!.receipt!.requestId, first!.requestId);
    assert.equal(value!.missed, 0);
    stop.abort();
  });

  it("drains an instance and takes it back", async () => {
    assert.equal((await control.router.drainInstance({ instanceId: "d1", reason: "upgrade" })).remaining, 3);
    await control.router.drainInstance({ instanceId: "d1", undrain: true });
    assert.deepEqual(control.pool.drained, [
      { instanceId: "d1", undrain: false, reason: "upgrade" },
      { instanceId: "d1", undrain: true, reason: "" },
    ]);
    await assert.rejects(control.router.drainInstance({ instanceId: "nope" }), code("not_found"));
  });

  it("shows its settings in order, secrets hidden, and how the registry does", async () => {
    const { settings, tandemVersion, tandemCommit, registry } = await control.router.getConfig({});
    assert.deepEqual(
      settings.map(({ key, value }) => [key, value]),
      [
        ["queue.limit", "4 requests"],
        ["token", "set"],
      ],
    );
    assert.deepEqual([registry!.kind, registry!.up, registry!.error], [REGISTRY.kind, false, REGISTRY.error]);
    assert.deepEqual([tandemVersion, tandemCommit], [TANDEM_VERSION, TANDEM_COMMIT]);
  });

  it("is for those who know the join token", async () => {
    await assert.rejects(control.stranger.router.listInstances({}), code("unauthenticated"));
  });
});

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
    ["extra_json that is no object", { input: { case: "prompt", value: "x" }, extraJson: "[1]" }, "invalid_request"],
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

  it("gives up a caller that takes nothing at all", async () => {
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
    await eventually("it is given up", () => control.serving.count === 0);
    assert.ok(control.relay.runs[0]!.gone.aborted);
    assert.match((await control.router.listRequests({})).receipts[0]!.error, /took nothing for 150 ms/);
    await stream.return!();
  });

  it("is for those who have the API key", async () => {
    await assert.rejects(
      collect(control.stranger.inference.generate({ input: { case: "prompt", value: "x" } })),
      code("unauthenticated"),
    );
  });
});
