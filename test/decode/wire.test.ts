import assert from "node:assert/strict";
import { fromBinary } from "@bufbuild/protobuf";
import { DecodeResponseSchema, FinishReason } from "#gen/tandem/decode/v1/decode_pb.js";
import { encodePiece, encodeResponse } from "../../services/decode/wire.ts";

describe("a DecodeResponse written by hand", () => {
  for (const size of [0, 1, 127, 128, 16_383, 16_384, 300_000]) {
    it(`reads back with ${size} bytes of events`, () => {
      const parts = [Buffer.alloc(Math.floor(size / 2), "a"), Buffer.alloc(Math.ceil(size / 2), "b")];
      const message = fromBinary(DecodeResponseSchema, encodePiece(parts, size, size));
      assert.equal(message.events, Buffer.concat(parts).toString());
      assert.equal(message.tokenCount, size);
      assert.equal(message.end, undefined);
    });
  }

  it("reads back with its end behind it", () => {
    const end = encodeResponse({ end: { finishReason: FinishReason.STOP, completionTokens: 5, cachedTokens: 0 } });
    const message = fromBinary(DecodeResponseSchema, encodePiece([Buffer.from("é")], 2, 1, end));
    assert.deepEqual(
      [message.events, message.tokenCount, message.end?.completionTokens, message.end?.cachedTokens],
      ["é", 1, 5, 0],
    );
  });
});
