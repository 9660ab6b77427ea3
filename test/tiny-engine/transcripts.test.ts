import assert from "node:assert/strict";
import { startSimEngine, type RunningEngine } from "../../services/tiny-engine/server.ts";
import { exchange } from "./raw-http.ts";
import { essence, recordedRequest, recordedResponse, transcriptNames } from "./transcripts.ts";

/** Not served: the sim has neither API. */
const NOT_SERVED = new Set(["responses-basic", "messages-basic"]);
/** Where the answer ends depends on what the model says. */
const ENDING_VARIES = /no-max-tokens-stop-token|max-tokens-over-remaining/;
/** Recorded with all tokens in one event, which depends on timing: only head and end can be compared. */
const ONE_EVENT = new Set(["completions-basic-stream", "completions-echo-logprobs-stream"]);
/** Recorded with --enable-request-id-headers and an API key, which the sim has not. */
const WITH_FLAGS = /^extra-/;

describe("the sim answers the recorded requests as vLLM 0.32 did", () => {
  let engine: RunningEngine;
  before(async () => {
    engine = await startSimEngine({
      modelName: "tiny",
      maxLength: 512,
      kvBlockSize: 32,
      decodeMsPerToken: 0,
      prefillMsPerToken: 0,
    });
  });
  after(() => engine[Symbol.asyncDispose]());

  for (const name of transcriptNames("agg").filter((one) => !NOT_SERVED.has(one) && !WITH_FLAGS.test(one))) {
    it(name, async () => {
      const recorded = recordedResponse(name);
      const answered = await exchange(engine.url, recordedRequest(name));
      const options = { endingVaries: ENDING_VARIES.test(name) };
      const [ours, theirs] = [essence(answered, options), essence(recorded, options)] as {
        body: Record<string, unknown>;
      }[];
      if (ONE_EVENT.has(name)) {
        for (const { body } of [ours!, theirs!]) delete body["0"];
      }
      assert.deepEqual(ours, theirs);
    });
  }

  it("writes each event as a chunk of its own, and nothing else", async () => {
    const { chunks } = await exchange(engine.url, recordedRequest("completions-stream-usage"));
    assert.equal(chunks.at(-1), "data: [DONE]\n\n");
    assert.ok(chunks.every((chunk) => /^data: .*\n\n$/s.test(chunk)));
  });

  it("reports cached tokens where it was told to, as with --enable-prompt-tokens-details", async () => {
    await using telling = await startSimEngine({
      modelName: "tiny",
      maxLength: 512,
      kvBlockSize: 32,
      decodeMsPerToken: 0,
      reportCachedTokens: true,
    });
    for (const name of ["extra-cached-tokens-1", "extra-cached-tokens-2", "extra-cached-tokens-3-stream"]) {
      const { body, ...answered } = essence(await exchange(telling.url, recordedRequest(name))) as { body: unknown };
      assert.deepEqual(body, (essence(recordedResponse(name)) as { body: unknown }).body, name);
      assert.ok(answered);
    }
  });
});
