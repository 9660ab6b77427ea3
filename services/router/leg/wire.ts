// Messages to the instances, written so that the client's body is copied once and never becomes a string.
// protobuf allows the fields of a message in any order, so the body is put behind what protobuf-es wrote of the rest.
import { create, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { DecodeRequestSchema, ReserveSchema } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillRequestSchema } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { Ticket } from "./protocol.ts";

/** `body`, in Reserve and PrefillRequest alike: field 3, length-delimited. */
const BODY_TAG = 0x1a;
/** `reserve` in DecodeRequest: field 1, length-delimited. */
const RESERVE_TAG = 0x0a;

/** A PrefillRequest. `fields` without its body. */
export function prefillMessage(fields: MessageInitShape<typeof PrefillRequestSchema>, body: Buffer): Buffer {
  const rest = toBinary(PrefillRequestSchema, create(PrefillRequestSchema, fields));
  const message = Buffer.allocUnsafe(rest.length + delimitedSize(body.length));
  message.set(rest);
  writeDelimited(message, rest.length, BODY_TAG, body);
  return message;
}

/** A DecodeRequest that reserves. `fields` without its body. */
export function reserveMessage(fields: MessageInitShape<typeof ReserveSchema>, body: Buffer): Buffer {
  const rest = toBinary(ReserveSchema, create(ReserveSchema, fields));
  const innerSize = rest.length + delimitedSize(body.length);
  const message = Buffer.allocUnsafe(delimitedSize(innerSize));
  let at = writeHead(message, 0, RESERVE_TAG, innerSize);
  message.set(rest, at);
  at += rest.length;
  writeDelimited(message, at, BODY_TAG, body);
  return message;
}

export function startMessage({ text: ticket, cachedTokens, unpaired = false }: Ticket): Buffer {
  const value = cachedTokens === undefined ? { ticket, unpaired } : { ticket, cachedTokens, unpaired };
  return stepMessage({ step: { case: "start", value } });
}

export function abandonMessage(reason: string, nothingSent: boolean): Buffer {
  return stepMessage({ step: { case: "abandon", value: { reason, nothingSent } } });
}

function stepMessage(step: MessageInitShape<typeof DecodeRequestSchema>): Buffer {
  return Buffer.from(toBinary(DecodeRequestSchema, create(DecodeRequestSchema, step)));
}

function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest >= 0x80; rest = Math.floor(rest / 0x80)) size += 1;
  return size;
}

function delimitedSize(length: number): number {
  return 1 + varintSize(length) + length;
}

/** Returns the offset just behind what it wrote. */
function writeHead(to: Buffer, offset: number, tag: number, length: number): number {
  let at = offset;
  to[at++] = tag;
  let rest = length;
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) to[at++] = (rest % 0x80) + 0x80;
  to[at++] = rest;
  return at;
}

function writeDelimited(to: Buffer, offset: number, tag: number, bytes: Buffer): void {
  bytes.copy(to, writeHead(to, offset, tag, bytes.length));
}
