// Messages to and from instances, by hand where they carry bodies and answers. The client's body is copied once and
// never becomes a string: protobuf allows the fields of a message in any order, so the body is appended to the fields
// that protobuf-es wrote.
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { DecodeRequestSchema, ReservedSchema, ReserveSchema } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillRequestSchema } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { ServiceError } from "../../common/errors.ts";
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

/** Field numbers of DecodeResponse. */
const EVENTS = 1;
const TOKEN_COUNT = 2;
const RESERVED = 3;
const END = 4;

const NOTHING = Buffer.alloc(0);

/**
 * Reads a DecodeResponse, once a token. `events` stays a view of the network's buffer, and nothing is allocated for a
 * message that carries only events. One reader serves any number of legs, because its fields are used before the next
 * message is read.
 */
export class DecodeFrame {
  /** A view into the message, empty if it carries no events. */
  events: Buffer = NOTHING;
  /** New tokens, as far as the engine reports them. */
  tokens = 0;
  reserved = false;
  /** Of a reservation: the leg reports its tokens as they come. */
  reportsTokens = false;
  /** An encoded `End`, in the last message. */
  end: Buffer | undefined = undefined;

  #at = 0;

  /** @throws ServiceError `engine_failed` if `message` is not a DecodeResponse. The fields are undefined then. */
  read(message: Buffer): void {
    this.events = NOTHING;
    this.tokens = 0;
    this.reserved = false;
    this.end = undefined;
    this.#at = 0;
    while (this.#at < message.length) {
      const tag = this.#varint(message);
      // This version has no field numbers above 15. A later one may, and they are skipped like any unknown field.
      const field = Math.floor(tag / 8);
      const type = tag % 8;
      if (type === 2) {
        const length = this.#varint(message);
        const start = this.#at;
        this.#at += length;
        if (this.#at > message.length) throw malformed();
        if (field === EVENTS) this.events = message.subarray(start, this.#at);
        else if (field === RESERVED) this.#readReserved(message.subarray(start, this.#at));
        else if (field === END) this.end = message.subarray(start, this.#at);
      } else if (type === 0) {
        const value = this.#varint(message);
        if (field === TOKEN_COUNT) this.tokens = value;
      } else if (type === 1) this.#at += 8;
      else if (type === 5) this.#at += 4;
      else throw malformed();
    }
    if (this.#at !== message.length) throw malformed();
  }

  /** Once a leg. @throws ServiceError as `read` does */
  #readReserved(bytes: Buffer): void {
    this.reserved = true;
    try {
      ({ reportsTokens: this.reportsTokens } = fromBinary(ReservedSchema, bytes));
    } catch {
      throw malformed();
    }
  }

  /** Reads a varint below 2^53. A longer one loses its high bits, but no field here is that long. */
  #varint(message: Buffer): number {
    let byte = message[this.#at++];
    if (byte !== undefined && byte < 0x80) return byte;
    let value = 0;
    let scale = 1;
    for (let count = 0; count < 10; count += 1) {
      if (byte === undefined) throw malformed();
      if (count < 7) value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
      scale *= 0x80;
      byte = message[this.#at++];
    }
    throw malformed();
  }
}

function malformed(): ServiceError {
  return new ServiceError("engine_failed", "The decode instance sent a message that can't be read.");
}
