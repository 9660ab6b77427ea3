import assert from "node:assert/strict";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeResponseSchema, EndSchema, FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillRequestSchema } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { ServiceError } from "../../../services/common/errors.ts";
import {
  abandonMessage,
  DecodeFrame,
  prefillMessage,
  reserveMessage,
  startMessage,
} from "../../../services/router/leg/wire.ts";

const encode = (init: Parameters<typeof create<typeof DecodeResponseSchema>>[1]): Buffer =>
  Buffer.from(toBinary(DecodeResponseSchema, create(DecodeResponseSchema, init)));

const SAMPLES = [
  encode({}),
  encode({ events: "data: {}\n\n", tokenCount: 1 }),
  encode({ events: `data: ${"é".repeat(5_000)}\n\n`, tokenCount: 300 }),
  encode({ reserved: { holdMs: 30_000 } }),
  encode({ reserved: {} }),
  encode({ reserved: { holdMs: 1, reportsTokens: true } }),
  encode({ tokenCount: 7 }),
  encode({
    events: "data: 1\n\ndata: 2\n\n",
    tokenCount: 2,
    end: {
      finishReason: FinishReason.LENGTH,
      promptTokens: 70_000,
      completionTokens: 2,
      cachedTokens: 0,
      firstTokenMs: 1.5,
    },
  }),
];

describe("the reader of decode messages", () => {
  const frame = new DecodeFrame();

  for (const [index, sample] of SAMPLES.entries()) {
    it(`reads what protobuf-es reads: sample ${index}`, () => {
      const oracle = fromBinary(DecodeResponseSchema, sample);
      frame.read(sample);
      assert.equal(frame.events.toString(), oracle.events);
      assert.equal(frame.tokens, oracle.tokenCount);
      assert.equal(frame.reserved, oracle.reserved !== undefined);
      if (frame.reserved) assert.equal(frame.reportsTokens, oracle.reserved!.reportsTokens);
      const end = frame.end === undefined ? undefined : fromBinary(EndSchema, frame.end);
      assert.deepEqual(end, oracle.end);
    });

    it(`agrees with protobuf-es about every cut: sample ${index}`, () => {
      const step = Math.max(1, Math.floor(sample.length / 500));
      for (let length = 0; length < sample.length; length += step) {
        const cut = sample.subarray(0, length);
        let oracle: ReturnType<typeof fromBinary<typeof DecodeResponseSchema>> | undefined;
        try {
          oracle = fromBinary(DecodeResponseSchema, cut);
        } catch {
          // A cut inside a nested message alone escapes the reader, which leaves that message to protobuf-es.
        }
        try {
          frame.read(cut);
          assert.ok(oracle !== undefined, `read a message cut at ${length}`);
          assert.equal(frame.events.toString(), oracle.events);
        } catch (thrown) {
          assert.ok(thrown instanceof ServiceError && thrown.code === "engine_failed", String(thrown));
          assert.equal(oracle, undefined, `refused a message cut at ${length}`);
        }
      }
    });
  }

  it("does not copy the events", () => {
    const sample = SAMPLES[1]!;
    frame.read(sample);
    assert.equal(frame.events.buffer, sample.buffer);
  });

  it("skips fields of a later version", () => {
    const later = Buffer.concat([
      Buffer.from([0x79, 1, 2, 3, 4, 5, 6, 7, 8]), // 15, fixed64
      Buffer.from([0x7d, 1, 2, 3, 4]), // 15, fixed32
      Buffer.from([0x82, 0x01, 2, 65, 66]), // 16, bytes
      SAMPLES[1]!,
      Buffer.from([0x78, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), // 15, -1
    ]);
    frame.read(later);
    assert.equal(frame.events.toString(), "data: {}\n\n");
  });

  it("refuses groups and endless numbers", () => {
    for (const bytes of [[0x0b], [0x10, ...Array<number>(11).fill(0x80), 1], [0x0a, 0xff, 0xff, 0xff, 0x7f, 1]]) {
      assert.throws(() => frame.read(Buffer.from(bytes)), { code: "engine_failed" });
    }
  });
});

describe("the messages to instances", () => {
  for (const bodyBytes of [0, 2, 127, 128, 16_383, 16_384, 300_000]) {
    it(`carry a body of ${bodyBytes} bytes as protobuf-es would`, () => {
      const body = Buffer.alloc(bodyBytes, "x");
      const text = body.toString();
      const prefill = fromBinary(PrefillRequestSchema, prefillMessage({ legId: "l", promptIndex: 0 }, body));
      assert.deepEqual(prefill, create(PrefillRequestSchema, { legId: "l", promptIndex: 0, body: text }));
      const reserve = { legId: "l", path: "/v1/completions", identity: { id: "cmpl-1", choiceIndex: 3 } };
      const decode = fromBinary(DecodeRequestSchema, reserveMessage(reserve, body));
      assert.deepEqual(
        decode,
        create(DecodeRequestSchema, { step: { case: "reserve", value: { ...reserve, body: text } } }),
      );
    });
  }

  it("start with the ticket, or abandon with a reason", () => {
    const start = fromBinary(DecodeRequestSchema, startMessage({ text: "{}", cachedTokens: 0 }));
    assert.deepEqual(
      start,
      create(DecodeRequestSchema, { step: { case: "start", value: { ticket: "{}", cachedTokens: 0 } } }),
    );
    const abandon = fromBinary(DecodeRequestSchema, abandonMessage("cancelled", true));
    assert.deepEqual(
      abandon,
      create(DecodeRequestSchema, { step: { case: "abandon", value: { reason: "cancelled", nothingSent: true } } }),
    );
  });
});
