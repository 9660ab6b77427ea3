// Prefill and decode instances over in-process sims, and the router's half of a leg, for the tests of both roles.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  DecodeService,
  FinishReason,
  type DecodeRequest,
  type DecodeResponse,
  type End,
} from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { DecodeRequestSchema } from "#gen/tandem/decode/v1/decode_pb.js";
import { type Clock, systemClock } from "../../services/common/clock.ts";
import { loadConfig } from "../../services/common/config.ts";
import type { Log } from "../../services/common/log.ts";
import { decodeConfig } from "../../services/decode/config.ts";
import { startDecode } from "../../services/decode/main.ts";
import type { RunningInstance } from "../../services/instance/instance.ts";
import { prefillConfig } from "../../services/prefill/config.ts";
import { startPrefill } from "../../services/prefill/main.ts";
import { dialRpc, type RpcChannel } from "../../services/rpc/channel.ts";
import { eventually } from "../support/waits.ts";
import { startSimEngine, type RunningEngine, type SimEngineOptions } from "../../services/tiny-engine/server.ts";

export const quiet: Log = { debug() {}, info() {}, warn() {}, error() {}, child: () => quiet };

export type Flags = Readonly<Record<string, string | number>>;
type ConnectorName = "p2p-zmq" | "nixl";

export interface SimInstance extends AsyncDisposable {
  readonly engine: RunningEngine;
  readonly instance: RunningInstance;
  readonly channel: RpcChannel;
}

/** What instances remember goes with the tests. */
const STATE_DIR = mkdtempSync(join(tmpdir(), "tandem-test-state-"));
process.once("exit", () => rmSync(STATE_DIR, { recursive: true, force: true }));

function argvOf(engine: RunningEngine, connector: ConnectorName, flags: Flags): string[] {
  const all: Flags = {
    "grpc.listen": "127.0.0.1:0",
    "registry.address": "",
    "engine.attach": engine.url,
    connector,
    "engine.kv_address": engine.kvAddress ?? "",
    "state.dir": STATE_DIR,
    ...flags,
  };
  return Object.entries(all).map(([key, value]) => `--${key}=${value}`);
}

async function start(
  role: "prefill" | "decode",
  connector: ConnectorName,
  flags: Flags,
  sim: SimEngineOptions,
  clock: Clock = systemClock,
): Promise<SimInstance> {
  const engine = await startSimEngine({ role, connector, decodeMsPerToken: 1, ...sim });
  const argv = argvOf(engine, connector, flags);
  const instance =
    role === "prefill"
      ? await startPrefill(loadConfig(prefillConfig, { argv, env: {} }), { log: quiet, clock })
      : await startDecode(loadConfig(decodeConfig, { argv, env: {} }), { log: quiet, clock });
  const channel = dialRpc(instance.address, { token: flags["token"] as string | undefined });
  return {
    engine,
    instance,
    channel,
    async [Symbol.asyncDispose]() {
      await channel[Symbol.asyncDispose]();
      await instance[Symbol.asyncDispose]();
      await engine[Symbol.asyncDispose]();
    },
  };
}

/** @param clock The instance's. The engine runs by its own. */
export const simPrefill = (
  connector: ConnectorName = "p2p-zmq",
  flags: Flags = {},
  sim: SimEngineOptions = {},
  clock?: Clock,
): Promise<SimInstance> => start("prefill", connector, flags, { reportCachedTokens: true, ...sim }, clock);
/** @param clock The instance's. The engine runs by its own. */
export const simDecode = (
  connector: ConnectorName = "p2p-zmq",
  flags: Flags = {},
  sim: SimEngineOptions = {},
  clock?: Clock,
): Promise<SimInstance> => start("decode", connector, flags, sim, clock);

/** A further decode instance for the same engine, as it is started after the first one was killed. */
export const successorOf = (
  { engine }: SimInstance,
  connector: ConnectorName,
  flags: Flags,
): Promise<RunningInstance> =>
  startDecode(loadConfig(decodeConfig, { argv: argvOf(engine, connector, flags), env: {} }), { log: quiet });

export const freshLegId = (): string => randomBytes(16).toString("hex");
export const IDENTITY = { id: "cmpl-public", created: 1_700_000_000, choiceIndex: 0, sampleIndex: 0 };
export const body = (fields: Record<string, unknown> = {}): string =>
  JSON.stringify({
    model: "tandem-sim",
    prompt: "The quick brown fox jumps over the lazy dog",
    max_tokens: 6,
    stream: true,
    ...fields,
  });

export interface PairLeg {
  readonly legId: string;
  readonly path: string;
  readonly body: string;
}

export function leg(fields: Record<string, unknown> = {}, path = "/v1/completions"): PairLeg {
  return { legId: freshLegId(), path, body: body(fields) };
}

export function prefillLeg(
  prefill: SimInstance,
  decode: SimInstance | undefined,
  { legId, path, body: text }: PairLeg,
  o: { signal?: AbortSignal } = {},
) {
  return prefill.channel
    .client(PrefillService)
    .prefill({ legId, path, body: text, decodeKvAddress: decode?.instance.info().kvAddress ?? "" }, o);
}

/** One Decode call: what the router sends and hears, step by step. */
export function openDecode(decode: SimInstance, o: { signal?: AbortSignal } = {}): DecodeCall {
  return new DecodeCall(decode.channel, o);
}

export class DecodeCall {
  readonly #queue: MessageInitShape<typeof DecodeRequestSchema>[] = [];
  #wake: (() => void) | undefined;
  #ended = false;
  readonly #answers: AsyncIterator<DecodeResponse>;

  constructor(channel: RpcChannel, o: { signal?: AbortSignal }) {
    this.#answers = channel.client(DecodeService).decode(this.#requests(), o)[Symbol.asyncIterator]();
  }

  async *#requests(): AsyncGenerator<MessageInitShape<typeof DecodeRequestSchema>> {
    for (;;) {
      while (this.#queue.length > 0) yield this.#queue.shift()!;
      if (this.#ended) return;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  send(step: DecodeRequest["step"] | MessageInitShape<typeof DecodeRequestSchema>["step"]): void {
    this.#queue.push({ step } as MessageInitShape<typeof DecodeRequestSchema>);
    this.#wake?.();
  }

  halfClose(): void {
    this.#ended = true;
    this.#wake?.();
  }

  reserve(pair: PairLeg, prefill: SimInstance | undefined, extra: Record<string, unknown> = {}): void {
    this.send({
      case: "reserve",
      value: {
        ...pair,
        identity: IDENTITY,
        prefillKvAddress: prefill?.instance.info().kvAddress ?? "",
        prefillGrpcAddress: prefill?.instance.address ?? "",
        prefillInstanceId: prefill?.instance.info().instanceId ?? "",
        ...extra,
      },
    } as never);
  }

  start(ticket = "", cachedTokens?: number): void {
    this.send({ case: "start", value: { ticket, ...(cachedTokens === undefined ? {} : { cachedTokens }) } } as never);
  }

  abandon(nothingSent = false): void {
    this.send({ case: "abandon", value: { reason: "test", nothingSent } } as never);
  }

  /** The next message. Undefined: the call ended well. Throws its ServiceError. */
  async next(): Promise<DecodeResponse | undefined> {
    const { done, value } = await this.#answers.next();
    return done === true ? undefined : value;
  }

  /** Until the end. */
  async rest(): Promise<{ events: string; tokens: number; end: End | undefined; messages: number }> {
    let events = "";
    let tokens = 0;
    let end: End | undefined;
    let messages = 0;
    for (let message = await this.next(); message !== undefined; message = await this.next()) {
      messages++;
      events += message.events;
      tokens += message.tokenCount;
      if (message.end !== undefined) end = message.end;
    }
    this.halfClose();
    return { events, tokens, end, messages };
  }
}

export const refusal =
  (code: string) =>
  (error: unknown): boolean =>
    (error as { code?: string }).code === code;

/** A call whose reservation stands. */
export async function reserved(
  decode: SimInstance,
  prefill: SimInstance | undefined,
  pair: PairLeg,
  extra?: Record<string, unknown>,
): Promise<DecodeCall> {
  const call = openDecode(decode);
  call.reserve(pair, prefill, extra);
  assert.ok((await call.next())!.reserved !== undefined);
  return call;
}

/** Until nothing is left of any leg: no slot, no reservation, no KV. */
export async function settled(decode: SimInstance): Promise<void> {
  await eventually("everything is settled", () => {
    const load = decode.instance.load();
    const counts = load.running + load.reserved + load.kvOrphans + load.queuedTokens;
    return (
      counts === 0 && load.freeSlots === decode.instance.info().slotLimit && decode.engine.state().kv_held.length === 0
    );
  });
}

export { FinishReason };
