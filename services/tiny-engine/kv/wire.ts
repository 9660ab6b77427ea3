// The KV messages between two engines, ZeroMQ multipart: type, transfer id, then parts that depend on the type.
//
// | type    | way               | rest                                        | meaning                                   |
// |---------|-------------------|---------------------------------------------|-------------------------------------------|
// | RESERVE | prefill -> decode | JSON KvHeader                               | may I send you this? id: the request's    |
// | GRANT   | decode -> prefill | none                                        | yes, a slot is kept for `lease_ms`        |
// | REFUSE  | either            | JSON Refusal                                | no, and why; nothing is kept              |
// | BLOCK   | both              | (8-byte head, payload), one or more pairs   | head: block index and crc32, big-endian   |
// | COMMIT  | prefill -> decode | none                                        | all blocks were sent                      |
// | ACK     | decode -> prefill | none                                        | complete, and every checksum is right     |
// | RELEASE | any -> decode     | none                                        | drop the KV held under this id            |
// | HELLO   | decode -> prefill | JSON { engine_id }                          | nixl handshake                            |
// | FACTS   | prefill -> decode | JSON Facts                                  | answer to HELLO                           |
// | PULL    | decode -> prefill | JSON { block_ids }                          | nixl read; answered by BLOCKs and END     |
// | END     | prefill -> decode | none                                        | no more blocks                            |
// | DONE    | decode -> prefill | none; id: the prefill's request id          | nixl notification: you may free them      |
import { crc32 } from "node:zlib";

export type Frame = string | Buffer;

export interface KvHeader {
  readonly model_hash: string;
  readonly block_size: number;
  readonly bytes_per_token: number;
  readonly token_count: number;
  /** Layout of a block's bytes. */
  readonly layout: string;
  /** Identifies the prompt; for the sim, prompt and weights together. */
  readonly prompt_hash: string;
}

export interface Refusal {
  readonly reason:
    | "wrong_model"
    | "wrong_shape"
    | "no_slots"
    | "duplicate_id"
    | "settled"
    | "unknown_id"
    | "missing_blocks"
    | "bad_checksum"
    | "bad_message";
  readonly message: string;
}

export interface KvMessage {
  readonly type: string;
  readonly id: string;
  readonly rest: readonly Buffer[];
}

/** Null for a message too short to be one. */
export function parseMessage(frames: readonly Buffer[]): KvMessage | null {
  if (frames.length < 2) return null;
  return { type: frames[0]!.toString("latin1"), id: frames[1]!.toString("utf8"), rest: frames.slice(2) };
}

/** Enough blocks per message to make its cost negligible, few enough to interleave messages of other requests. */
const BLOCKS_PER_MESSAGE = 32;

export interface Block {
  readonly index: number;
  readonly payload: Buffer;
  readonly intact: boolean;
}

/**
 * @param corrupt Corrupts the payload of block 0 after its checksum was computed.
 * @param from Index of the first of `blocks`.
 */
export function* blockMessages(id: string, blocks: Iterable<Buffer>, corrupt: boolean, from = 0): Generator<Frame[]> {
  let message: Frame[] = ["BLOCK", id];
  let index = from;
  for (const payload of blocks) {
    const head = Buffer.allocUnsafe(8);
    head.writeUInt32BE(index, 0);
    head.writeUInt32BE(crc32(payload), 4);
    if (corrupt && index === 0) payload[0]! ^= 0xff;
    message.push(head, payload);
    index++;
    if ((index - from) % BLOCKS_PER_MESSAGE === 0) {
      yield message;
      message = ["BLOCK", id];
    }
  }
  if (message.length > 2) yield message;
}

/** Null if the frames are not pairs of head and payload. */
export function parseBlocks(rest: readonly Buffer[]): Block[] | null {
  const blocks: Block[] = [];
  for (let at = 0; at < rest.length; at += 2) {
    const head = rest[at]!;
    const payload = rest[at + 1];
    if (head.length !== 8 || payload === undefined) return null;
    blocks.push({ index: head.readUInt32BE(0), payload, intact: crc32(payload) === head.readUInt32BE(4) });
  }
  return blocks;
}

/** Null if it is not a JSON object. */
export function parseJson(frame: Buffer | undefined): Record<string, unknown> | null {
  try {
    const value: unknown = JSON.parse(frame?.toString("utf8") ?? "");
    return typeof value === "object" && value !== null && !Array.isArray(value)
      ? (value as Record<string, unknown>)
      : null;
  } catch {
    return null;
  }
}
