// NIXL against what real vLLM 0.32 said and was sent (test/fixtures/vllm-transcripts).
import assert from "node:assert/strict";
import { scanObject } from "../../services/common/json-body.ts";
import { nixl } from "../../services/kv/nixl.ts";
import type { LegPath } from "../../services/kv/connector.ts";
import { recordedRequest, recordedResponse } from "../tiny-engine/transcripts.ts";

const PAIRS = [
  ["chat-pd-1-prefill", "chat-pd-2-decode"],
  ["chat-pd-3-prefill", "chat-pd-4-decode-stream"],
  ["completions-pd-1-prefill", "completions-pd-2-decode"],
  ["completions-pd-3-prefill", "completions-pd-4-decode-stream"],
  ["completions-pd-token-ids-1-prefill", "completions-pd-token-ids-2-decode"],
] as const;

const answerOf = (name: string): any => JSON.parse(recordedResponse(name).chunks.join(""));

describe("NIXL against recorded vLLM", () => {
  for (const [prefill, decode] of PAIRS) {
    it(`asks for the KV as recorded, and passes the whole ticket on: ${decode}`, () => {
      const sent = recordedRequest(decode);
      const { kv_transfer_params: taken, ...client } = sent.json;
      const body = Buffer.from(JSON.stringify(client));
      const leg = {
        legId: "0".repeat(32),
        path: sent.path as LegPath,
        body,
        members: scanObject(body),
        prefillKvAddress: "",
        decodeKvAddress: "",
        sampleIndex: 0,
      };
      const asked = JSON.parse(nixl.prefillRequest(leg).body.toString()) as Record<string, unknown>;
      const recorded = recordedRequest(prefill).json;
      assert.deepEqual(asked["kv_transfer_params"], recorded["kv_transfer_params"]);
      assert.equal(asked["max_tokens"], 1);
      assert.notEqual(asked["stream"], true);
      const ticket = nixl.ticket(answerOf(prefill));
      assert.deepEqual(JSON.parse(ticket), taken);
      const passed = JSON.parse(nixl.decodeRequest(leg, ticket).body.toString()) as Record<string, unknown>;
      assert.deepEqual(passed["kv_transfer_params"], taken);
    });
  }

  it("takes no ticket from a prefill engine that kept no KV", () => {
    assert.throws(() => nixl.ticket(answerOf("completions-basic")), { code: "kv_transfer_failed" });
  });

  it("never sends the incomplete parameters that ended a vLLM", () => {
    const { kv_transfer_params, ...client } = recordedRequest("completions-pd-crash-missing-keys-2-decode").json;
    const body = Buffer.from(JSON.stringify(client));
    const leg = {
      legId: "0".repeat(32),
      path: "/v1/completions" as const,
      body,
      members: scanObject(body),
      prefillKvAddress: "",
      decodeKvAddress: "",
      sampleIndex: 0,
    };
    assert.throws(() => nixl.decodeRequest(leg, JSON.stringify(kv_transfer_params)), /lacks/);
  });
});
