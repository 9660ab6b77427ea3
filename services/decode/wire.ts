// DecodeResponse on the token path, written by hand: one allocation and one copy a message. protobuf-es would decode the
// text of every event and encode it again.
import { create, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { DecodeResponseSchema } from "#gen/tandem/decode/v1/decode_pb.js";

/** `events`, field 1, length-delimited. */
const EVENTS_TAG = (1 << 3) | 2;
/** `token_count`, field 2, varint. */
const TOKEN_COUNT_TAG = 2 << 3;

/**
 * A message with `events` = `parts` joined, and `token_count`. Of several encodings put together protobuf makes one
 * message, so the last one of a leg is this followed by that of `end`.
 *
 * @param bytes Length of all parts.
 * @param suffix Encoding of further fields.
 */
export function encodePiece(parts: readonly Buffer[], bytes: number, tokenCount: number, suffix?: Uint8Array): Buffer {
  const head = bytes === 0 ? 0 : 1 + varintLength(bytes);
  const tokens = tokenCount === 0 ? 0 : 1 + varintLength(tokenCount);
  const message = Buffer.allocUnsafe(head + bytes + tokens + (suffix?.length ?? 0));
  let at = 0;
  if (bytes > 0) {
    message[at++] = EVENTS_TAG;
    at = writeVarint(message, at, bytes);
    for (const part of parts) at += part.copy(message, at);
  }
  if (tokenCount > 0) {
    message[at++] = TOKEN_COUNT_TAG;
    at = writeVarint(message, at, tokenCount);
  }
  if (suffix !== undefined) message.set(suffix, at);
  return message;
}

/** Everything that is not on the token path: `reserved`, `end`. */
export function encodeResponse(response: MessageInitShape<typeof DecodeResponseSchema>): Buffer {
  return Buffer.from(toBinary(DecodeResponseSchema, create(DecodeResponseSchema, response)));
}

function varintLength(value: number): number {
  let length = 1;
  for (let rest = value; rest >= 0x80; rest = Math.floor(rest / 128)) length++;
  return length;
}

function writeVarint(target: Buffer, from: number, value: number): number {
  let at = from;
  let rest = value;
  for (; rest >= 0x80; rest = Math.floor(rest / 128)) target[at++] = (rest % 128) | 0x80;
  target[at++] = rest;
  return at;
}
