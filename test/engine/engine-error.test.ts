import assert from "node:assert/strict";
import { engineFailure, refusalOf } from "../../services/engine/engine-error.ts";

const refuse = (status: number, body: string, internal: string[] = []) =>
  refusalOf(status, Buffer.from(body), { leg: "decode", internal });
const error = (fields: object): string =>
  JSON.stringify({ error: { message: "m", type: "BadRequestError", param: null, code: 400, ...fields } });

describe("an engine's refusal", () => {
  it("reaches the client with status, message, type and param", () => {
    const refusal = refuse(
      404,
      error({ message: "The model `x` does not exist.", type: "NotFoundError", param: "model" }),
    );
    assert.deepEqual(
      [refusal.code, refusal.param, refusal.message],
      ["engine_refused", "model", "The model `x` does not exist."],
    );
    assert.deepEqual(JSON.parse(refusal.engineAnswer!.body), {
      error: { message: "The model `x` does not exist.", type: "NotFoundError", param: "model", code: 404 },
    });
    assert.equal(refusal.engineAnswer!.status, 404);
  });

  it("reaches the client whole, even if it is long", () => {
    const message = `too long: ${"x".repeat(5_000)}`;
    assert.equal(refuse(400, error({ message })).message, message);
  });

  for (const [what, message] of [
    ["an id of a pair", "request ___prefill_addr_10.0.0.1:20001___decode_addr_10.0.0.2:21001_ab failed"],
    ["an address", "connect ECONNREFUSED 127.0.0.1:8000"],
    ["KV parameters", "field kv_transfer_params must be an object"],
    ["the leg's id", "leg deadbeef is unknown"],
  ] as const) {
    it(`loses its message if the message holds ${what}`, () => {
      const refusal = refuse(400, error({ message }), ["deadbeef"]);
      assert.equal(refusal.message, "The engine refused the request.");
      assert.ok(!refusal.engineAnswer!.body.includes(message));
    });
  }

  it("is harmless if it is not JSON, or is vLLM's odd 401", () => {
    assert.equal(refuse(400, "<html>").message, "The engine refused the request.");
    assert.equal(refuse(422, '{"error":"text"}').message, "The engine refused the request.");
    assert.equal(refuse(401, '{"error":"Unauthorized"}').code, "engine_failed");
  });

  it("blames the engine for 5xx, and for having no free slot", () => {
    assert.equal(refuse(500, "{}").code, "engine_failed");
    assert.equal(refuse(503, "{}").code, "instance_unavailable");
    assert.equal(refuse(429, "{}").code, "instance_unavailable");
  });

  it("keeps the words of a 5xx, for a request that is at fault itself, but not those with internal names", () => {
    const words = (body: string): unknown => {
      const { code, message, engineAnswer } = refuse(500, body, ["deadbeef"]);
      assert.deepEqual([code, message], ["engine_failed", "The decode engine failed while it worked on the request."]);
      assert.equal(engineAnswer!.status, 500);
      return (JSON.parse(engineAnswer!.body) as { error: { message: unknown } }).error.message;
    };
    assert.equal(words(error({ message: "Unexpected reasoning effort" })), "Unexpected reasoning effort");
    assert.equal(words("Internal Server Error"), "Internal Server Error");
    const hidden = "The engine failed on the request.";
    assert.equal(words(error({ message: "no KV for ___prefill_addr_10.0.0.1:20001" })), hidden);
    assert.equal(words("leg deadbeef failed"), hidden);
    assert.equal(words(`<html>${"x".repeat(300)}`), hidden);
    assert.equal(words("{}"), hidden);
    assert.equal(refuse(503, "{}").engineAnswer, undefined, "it has no slot");
  });

  it("blames the transfer if it names a field that only Tandem sets", () => {
    assert.equal(refuse(503, error({ param: "kv" })).code, "kv_transfer_failed");
    assert.equal(refuse(400, error({ param: "kv_transfer_params" })).code, "kv_transfer_failed");
  });

  it("blames the transfer on a decode leg without a token", () => {
    assert.equal(engineFailure("decode", new Error("x"), { beforeFirstToken: true }).code, "kv_transfer_failed");
    assert.equal(engineFailure("decode", new Error("x")).code, "engine_failed");
    assert.equal(engineFailure("prefill", new Error("x"), { beforeFirstToken: true }).code, "engine_failed");
  });
});
