import assert from "node:assert/strict";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { Outcome, ReceiptSchema } from "#gen/tandem/router/v1/router_pb.js";
import { explain } from "../../../clients/cli/explain/explain.ts";
import { storyOf } from "../../../clients/cli/explain/story.ts";
import { loadConfig } from "../../../services/common/config.ts";
import { routerConfig } from "../../../services/router/config.ts";
import { startRouter } from "../../../services/router/main.ts";
import { simDecode, simPrefill } from "../../instance/legs.ts";
import { logSink } from "../../support/log-sink.ts";
import { eventually } from "../../support/waits.ts";

const receipt = (init: MessageInitShape<typeof ReceiptSchema>): string =>
  storyOf(
    create(ReceiptSchema, {
      requestId: "cmpl-1",
      startedUnixMs: 0n,
      path: "/v1/completions",
      model: "m",
      stream: true,
      ...init,
    }),
  );

describe("the story of a request", () => {
  it("tells each attempt, what ended it and where the time went", () => {
    const story = receipt({
      outcome: Outcome.COMPLETED,
      status: 200,
      queueMs: 100,
      ttftMs: 700,
      totalMs: 1_000,
      bodyBytes: 99n,
      tenant: "team-a",
      priority: -5,
      fallbacks: ["retry:transfer:leg_stalled"],
      legs: [
        {
          prefillInstanceId: "p1",
          decodeInstanceId: "d1",
          startedMs: 100,
          reserveMs: 1,
          prefillMs: 199,
          error: "leg_stalled: No token came.",
        },
        {
          prefillInstanceId: "p2",
          decodeInstanceId: "d2",
          startedMs: 500,
          prefillMs: 150,
          transferMs: 50,
          decodeMs: 300,
          promptTokens: 7,
          completionTokens: 3,
          cachedTokens: 2,
        },
      ],
    });
    assert.equal(
      story,
      `cmpl-1: /v1/completions, model m, streamed
Completed with status 200 after 1000 ms; 7 prompt tokens (2 cached), 3 completion tokens; 99 bytes sent.

    0.0 ms  arrived at 1970-01-01T00:00:00.000Z (tenant team-a, priority -5)
    100 ms  admitted from the queue
    100 ms  leg 1 of 2: ended by leg_stalled: No token came.
              prefill on p1
              decode on d1
              reserve 1.0 ms, prefill 199 ms
    500 ms  leg 2 of 2
              prefill on p2
              decode on d2
              prefill 150 ms, transfer 50 ms, decode 300 ms
    700 ms  first bytes sent to the client
   1000 ms  ended

Fallbacks:
  retry:transfer:leg_stalled: an attempt failed before its first byte and was retried

queue   |qqqqqq......................................................|
leg 1   |......PPPPPPPPPPPP..........................................|
leg 2   |..............................PPPPPPPPPtttDDDDDDDDDDDDDDDDDD|
         0                                                    1000 ms
         q queue, r reserve, P prefill, t transfer, D decode`,
    );
  });

  it("counts all answers of a request, and shows transfer and decode as one part if nothing was streamed", () => {
    const leg = {
      prefillInstanceId: "p1",
      decodeInstanceId: "d1",
      prefillMs: 20,
      transferMs: 79,
      decodeMs: 1,
      promptTokens: 7,
      completionTokens: 3,
      kvBytes: 1024n,
    };
    const story = receipt({
      outcome: Outcome.COMPLETED,
      status: 200,
      ttftMs: 100,
      totalMs: 100,
      stream: false,
      legs: [{ ...leg, error: "instance_lost: gone.", completionTokens: 2 }, leg, leg],
    });
    assert.match(
      story,
      /^Completed with status 200 after 100 ms; 2 answers, 6 tokens in total; 3\.0 KiB of KV moved; 0 bytes sent\.$/m,
    );
    assert.match(story, /leg 3 of 3\n +prefill on p1\n +decode on d1\n +prefill 20 ms, transfer and decode 80 ms$/m);
    assert.match(story, /^leg 3   \|P{12}D{48}\|$/m);
    assert.match(story, /q queue, r reserve, P prefill, D transfer and decode$/);
  });

  it("tells why a request without legs was refused", () => {
    const story = receipt({
      outcome: Outcome.REFUSED,
      status: 429,
      totalMs: 3,
      errorCode: "queue_full",
      error: "Too many requests.",
    });
    assert.match(story, /^Refused with status 429 after 3.0 ms; 0 bytes sent\.$/m);
    assert.match(story, /ended: queue_full: Too many requests\./);
    assert.doesNotMatch(story, /\|/);
  });
});

describe("tandem explain", () => {
  it("finds a request by the id that its answer carried, or that its client gave it", async () => {
    const argv = ["--rest.listen", "127.0.0.1:0", "--grpc.listen", "127.0.0.1:0"];
    await using router = await startRouter(loadConfig(routerConfig, { argv, env: {} }), { log: logSink().log });
    const registry = { "registry.address": router.grpcAddress };
    await using _prefill = await simPrefill("p2p-zmq", registry);
    await using _decode = await simDecode("p2p-zmq", registry);
    await eventually("ready", async () => (await fetch(`${router.restUrl}/readyz`)).ok);
    const response = await fetch(`${router.restUrl}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-request-id": "mine-1" },
      body: JSON.stringify({ model: "tandem-sim", prompt: "hello", max_tokens: 5, stream: true }),
    });
    await response.text();
    const story = await explain(["mine-1", "--router", router.restUrl], {});
    assert.match(story, /^cmpl-[0-9a-f]{32}: \/v1\/completions, model tandem-sim, streamed\nCompleted with status 200/);
    assert.match(
      story,
      /leg\n +prefill on prefill-\S+\n +decode on decode-\S+\n +reserve [\d.]+ ms, prefill [\d.]+ ms, transfer [\d.]+ ms, decode [\d.]+ ms\n/,
    );
    const json = JSON.parse(await explain([story.split(":")[0]!, "--json", "--router", router.restUrl], {})) as {
      legs: unknown[];
    };
    assert.equal(json.legs.length, 1);
    await assert.rejects(
      explain(["nobody", "--router", router.restUrl], {}),
      /^StartError: http:\/\/\S+: Request `nobody` is neither running nor among the last/,
    );
    await assert.rejects(explain([], {}), /Which request\?/);
    const metrics = await (await fetch(`${router.restUrl}/metrics`)).text();
    for (const name of [
      "tandem_time_to_first_token_seconds_count",
      "tandem_inter_token_latency_seconds_count",
      "tandem_request_time_per_output_token_seconds_count",
      "tandem_kv_transfer_seconds_count",
      "tandem_legs_total",
      "tandem_kv_orphans",
      "tandem_breakers_open",
      "tandem_requests_waiting",
      "tandem_request_queue_seconds_count",
    ])
      assert.match(metrics, new RegExp(`^${name}(\\{.*\\})? [\\d.]+$`, "m"), name);
  });
});
