import assert from "node:assert/strict";
import { FAILURES, type FailureCode, GRPC_CODES, ServiceError } from "../../services/common/errors.ts";
import { decodeMessage, fromStatus, toStatus } from "../../services/rpc/errors-wire.ts";

const throughWire = (error: ServiceError): ServiceError => {
  const { code, message, detailsBin } = toStatus(error);
  return fromStatus(code, message, detailsBin);
};

describe("a ServiceError on the wire", () => {
  it("keeps every code, although several share a gRPC status", () => {
    for (const code of Object.keys(FAILURES) as FailureCode[]) {
      const error = new ServiceError(code, "What happened.");
      assert.equal(toStatus(error).code, GRPC_CODES[FAILURES[code].grpc]);
      assert.equal(throughWire(error).code, code);
      assert.equal(throughWire(error).message, "What happened.");
    }
  });

  it("keeps the parameter, the pause and the engine's answer", () => {
    const error = throughWire(
      new ServiceError("engine_refused", "Größe: 100 %", {
        param: "max_tokens",
        retryAfterS: 1.5,
        engineAnswer: { status: 422, body: '{"error":{"message":"ü"}}' },
        cause: new Error("secret"),
      }),
    );
    assert.equal(error.message, "Größe: 100 %");
    assert.equal(error.param, "max_tokens");
    assert.equal(error.retryAfterS, 1.5);
    assert.deepEqual(error.engineAnswer, { status: 422, body: '{"error":{"message":"ü"}}' });
    assert.equal(error.cause, undefined);
  });

  it("stays below the 64 KiB of headers that a peer accepts, however long the engine's error is", () => {
    const long = "\u{1F600}".repeat(100_000);
    const status = toStatus(new ServiceError("engine_refused", long, { engineAnswer: { status: 400, body: long } }));
    assert.ok(encodeURI(status.message).length + status.detailsBin.toString("base64").length < 60_000);
    assert.equal(fromStatus(status.code, status.message, status.detailsBin).code, "engine_refused");
  });

  it("can be percent-encoded even with half a surrogate pair in it", () => {
    assert.doesNotThrow(() => encodeURI(toStatus(new ServiceError("internal", "cut \ud83d")).message));
  });
});

describe("a status that Tandem did not make", () => {
  it("is read by its code alone", () => {
    assert.equal(fromStatus(GRPC_CODES.UNAVAILABLE, "x").code, "instance_unavailable");
    assert.equal(fromStatus(GRPC_CODES.UNAVAILABLE, "x", undefined, true).code, "instance_lost");
    assert.equal(fromStatus(GRPC_CODES.DEADLINE_EXCEEDED, "x").code, "deadline_exceeded");
    assert.equal(fromStatus(GRPC_CODES.CANCELLED, "x").code, "cancelled");
    assert.equal(fromStatus(GRPC_CODES.RESOURCE_EXHAUSTED, "x").code, "internal");
    assert.equal(fromStatus(99, "x").code, "internal");
  });

  it("shows its text in the log, and not to clients", () => {
    const error = fromStatus(GRPC_CODES.INTERNAL, "connect ECONNREFUSED 10.0.0.7:50051");
    assert.doesNotMatch(error.message, /10\.0\.0\.7/);
    assert.match(String(error.cause), /INTERNAL.*10\.0\.0\.7/);
  });

  it("may carry details that can't be read", () => {
    assert.equal(fromStatus(GRPC_CODES.ABORTED, "x", Buffer.from("not protobuf at all")).code, "internal");
  });
});

describe("grpc-message", () => {
  it("is percent-decoded, or taken as it is if that fails", () => {
    assert.equal(decodeMessage("100 %25 %C3%BC"), "100 % ü");
    assert.equal(decodeMessage("100 % off"), "100 % off");
  });
});
