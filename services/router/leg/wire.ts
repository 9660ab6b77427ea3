// Writes messages to the instances so that the client's body is copied once and never becomes a string. protobuf allows
// the fields of a message in any order, so the body is appended to the fields that protobuf-es wrote.
import { create, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { DecodeRequestSchema, ReserveSchema } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillRequestSchema } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { Ticket } from "./protocol.ts";

/** Field number of `body` in both Reserve and PrefillRequest. */
const BODY = 3;
/** Field number of `reserve` in DecodeRequest. */
const RESERVE = 1;

/** Encodes a PrefillRequest. `fields` holds all but its body. */
export function prefillMessage(fields: MessageInitShape<typeof PrefillRequestSchema>, body: Buffer): Buffer {
  const rest = toBinary(PrefillRequestSchema, create(PrefillRequestSchema, fields));
  return bufferOf(new BinaryWriter().raw(rest).raw(bodyHead(body)).raw(body));
}

/** Encodes a DecodeRequest that reserves. `fields` holds all but its body. */
export function reserveMessage(fields: MessageInitShape<typeof ReserveSchema>, body: Buffer): Buffer {
  const rest = toBinary(ReserveSchema, create(ReserveSchema, fields));
  const head = bodyHead(body);
  const reserve = new BinaryWriter()
    .tag(RESERVE, WireType.LengthDelimited)
    .uint32(rest.length + head.length + body.length);
  return bufferOf(reserve.raw(rest).raw(head).raw(body));
}

export function startMessage({ text: ticket, cachedTokens, unpaired = false }: Ticket): Buffer {
  return stepMessage({ step: { case: "start", value: { ticket, cachedTokens, unpaired } } });
}

export function abandonMessage(reason: string, nothingSent: boolean): Buffer {
  return stepMessage({ step: { case: "abandon", value: { reason, nothingSent } } });
}

function stepMessage(step: MessageInitShape<typeof DecodeRequestSchema>): Buffer {
  return Buffer.from(toBinary(DecodeRequestSchema, create(DecodeRequestSchema, step)));
}

/** The tag and length that precede the body on the wire. */
function bodyHead(body: Buffer): Uint8Array {
  return new BinaryWriter().tag(BODY, WireType.LengthDelimited).uint32(body.length).finish();
}

function bufferOf(writer: BinaryWriter): Buffer {
  const bytes = writer.finish();
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
