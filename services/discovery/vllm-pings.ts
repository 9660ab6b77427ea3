// vLLM's own way to say "I am here": engines with P2P NCCL send a ping every 3 s to a ZeroMQ ROUTER, as a msgpack map
// of three texts. It tells that the process lives, and the addresses of its HTTP and KV, but not its health or model:
// it starts before HTTP answers, and goes on while the engine is wedged. It is not authenticated either.
// Source: vLLM 0.23.0, p2p_nccl_engine.py, ping(). zeromq is loaded only here and only when a listener opens.
import { EventEmitter } from "node:events";
import type { Router } from "zeromq";
import { type Clock, settlesWithin, systemClock, type Timer, until } from "../common/clock.ts";
import type { Log } from "../common/log.ts";

export interface PingedEngine {
  readonly role: "prefill" | "decode";
  /** host:port of its OpenAI API. */
  readonly httpAddress: string;
  /** host:port of its KV side channel, rank 0. */
  readonly kvAddress: string;
}

export interface PingListener {
  /** host:port really bound. */
  readonly address: string;
  /** The engine with this HTTP port, as soon as it has pinged; undefined after `timeoutMs`. */
  awaitPort(httpPort: number, timeoutMs: number): Promise<PingedEngine | undefined>;
  /** May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

export interface PingOptions {
  /** host:port; port 0 takes a free one. */
  readonly listen: string;
  readonly log: Log;
  readonly clock?: Clock;
  /** Default 10 s: three missed pings. */
  readonly ageMs?: number;
  /** Engines known at once; others are left out and logged. Default 256. */
  readonly limit?: number;
  /** It pinged for the first time, or under another KV address than before (then `left` came first). */
  came?(engine: PingedEngine): void;
  /** The engine stopped pinging. */
  left?(engine: PingedEngine): void;
}

interface Entry {
  readonly engine: PingedEngine;
  heardMs: number;
}

const AGE_MS = 10_000;
const SWEEP_MS = 500;
const LIMIT = 256;
/** A ping has 100 bytes. */
const LONGEST_PING_BYTES = 1_024;
// IPv4 or a name: vLLM writes IPv6 without brackets, and can't dial that itself.
const ADDRESS = /^[A-Za-z0-9.-]{1,253}:([1-9]\d{0,4})$/;

/** @throws Error when the address can't be listened on. */
export async function listenForPings(o: PingOptions): Promise<PingListener> {
  const { log, clock = systemClock, ageMs = AGE_MS, limit = LIMIT } = o;
  const [{ Router: RouterSocket }, { decode }] = await Promise.all([import("zeromq"), import("@msgpack/msgpack")]);
  const socket: Router = new RouterSocket({ linger: 0, maxMessageSize: LONGEST_PING_BYTES });
  await socket.bind(`tcp://${o.listen}`);
  const entries = new Map<string, Entry>();
  const pings = new EventEmitter<{ change: [] }>();
  let ignored = 0;
  let closed = false;

  function heard(frames: readonly Buffer[]): void {
    let engine: PingedEngine | undefined;
    try {
      engine = readPing(decode(frames.at(-1)!));
    } catch {
      // Not msgpack.
    }
    if (engine === undefined) {
      if (ignored++ === 0) log.warn("received a message that is not a vLLM ping", { address: o.listen });
      return;
    }
    const known = entries.get(engine.httpAddress);
    if (known !== undefined && known.engine.kvAddress === engine.kvAddress && known.engine.role === engine.role) {
      known.heardMs = clock.nowMs();
      return;
    }
    // Started again: its partners must not dial the old address.
    if (known !== undefined) forget(known, "it pings under another KV address");
    if (entries.size >= limit) {
      log.warn("an engine is ignored: too many engines ping", { ...engine, limit });
      return;
    }
    entries.set(engine.httpAddress, { engine, heardMs: clock.nowMs() });
    log.info("an engine pings", { ...engine });
    o.came?.(engine);
    pings.emit("change");
  }

  function forget(entry: Entry, why: string): void {
    entries.delete(entry.engine.httpAddress);
    log.info("an engine no longer pings", { ...entry.engine, why });
    o.left?.(entry.engine);
  }

  // By the clock and each for itself: an engine ages whether or not others ping, and the last of its role too.
  let timer: Timer;
  const sweep = (): void => {
    const oldest = clock.nowMs() - ageMs;
    for (const entry of [...entries.values()]) if (entry.heardMs < oldest) forget(entry, `no ping for ${ageMs} ms`);
    timer = clock.setTimer(SWEEP_MS, sweep);
  };
  timer = clock.setTimer(SWEEP_MS, sweep);

  const receiving = (async () => {
    for await (const frames of socket) heard(frames);
  })().catch((error: unknown) => {
    if (!closed) log.error("no longer receiving pings", { error });
  });

  return {
    address: socket.lastEndpoint!.replace("tcp://", ""),
    async awaitPort(httpPort, timeoutMs) {
      const find = (): PingedEngine | undefined =>
        [...entries.values()].find(({ engine }) => engine.httpAddress.endsWith(`:${httpPort}`))?.engine;
      await settlesWithin(
        clock,
        until(pings, () => find() !== undefined),
        timeoutMs,
      );
      return find();
    },
    async [Symbol.asyncDispose]() {
      if (closed) return;
      closed = true;
      timer.cancel();
      socket.close();
      await receiving;
    },
  };
}

/** Returns undefined for a message that is not a ping. Further keys are allowed: a later vLLM may send more. */
export function readPing(message: unknown): PingedEngine | undefined {
  if (typeof message !== "object" || message === null) return undefined;
  const { type, http_address: httpAddress, zmq_address: kvAddress } = message as Record<string, unknown>;
  if ((type !== "P" && type !== "D") || !isAddress(httpAddress) || !isAddress(kvAddress)) return undefined;
  return { role: type === "P" ? "prefill" : "decode", httpAddress, kvAddress };
}

function isAddress(value: unknown): value is string {
  return typeof value === "string" && Number(ADDRESS.exec(value)?.[1] ?? 65_536) < 65_536;
}
