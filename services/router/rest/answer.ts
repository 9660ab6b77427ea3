// An answer on its way to one client, streamed or whole. The token path: `write` passes bytes on, and nothing else
// happens per token. A client that reads too slowly is paced, and disconnected if it reads next to nothing: it holds a KV
// slot. A minimum rate rather than "no byte at all": a client that takes one byte a second would keep its slot for as
// long as it likes.
import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import { type Clock, systemClock, type Timer } from "../../common/clock.ts";
import type { AnswerSink } from "../relay/relay.ts";
import { ANSWER_HEADERS } from "../serving/headers.ts";
import { errorEvent, writeError } from "./errors.ts";

const DONE = Buffer.from("data: [DONE]\n\n");

export interface Answer {
  readonly sink: AnswerSink;
  /** The whole answer is there. */
  end(): void;
  /** The answer failed: with its own status before the first byte, else with an error event. Returns the status. */
  fail(error: unknown): number;
  /** Bytes of body written so far. */
  readonly bodyBytes: number;
}

export interface AnswerOptions {
  /** Bytes that may wait for the client before its stream is paced. At least 16 KiB, Node's own mark. */
  readonly bufferBytes: number;
  /** A client that reads next to nothing for this long while bytes wait for it is disconnected. */
  readonly stallMs: number;
  /** Default: the system's. */
  readonly clock?: Clock;
  /** Headers of the answer; asked when they are written. */
  headers(): Record<string, string>;
  /** The first bytes are about to be written. */
  onStart(): void;
  /** The client was cut. */
  onStall(): void;
}

export function streamAnswer(res: ServerResponse, o: AnswerOptions): Answer {
  const { bufferBytes } = o;
  const reader = readerOf(res, o);
  let bodyBytes = 0;
  let blocked = false;

  const sink: AnswerSink = {
    onDrain: undefined,
    start() {
      if (res.headersSent) return;
      o.onStart();
      res.writeHead(200, {
        "content-type": "text/event-stream; charset=utf-8",
        [ANSWER_HEADERS.caching.name]: "no-cache",
        // nginx would hold the events back to fill its buffers.
        [ANSWER_HEADERS.buffering.name]: "no",
        ...o.headers(),
      });
      res.on("drain", onDrain);
    },
    write(bytes) {
      bodyBytes += bytes.length;
      if (res.write(bytes)) return true;
      if (res.writableLength < bufferBytes) return true;
      blocked = true;
      reader.start();
      return false;
    },
  };

  function onDrain(): void {
    if (!blocked) return;
    blocked = false;
    reader.stop();
    sink.onDrain?.();
  }

  function finish(last: Buffer): void {
    if (res.destroyed || res.writableEnded) return;
    bodyBytes += last.length;
    reader.start(); // Until the response is closed.
    res.end(last);
  }

  return {
    sink,
    end() {
      sink.start();
      finish(DONE);
    },
    fail(error) {
      if (!res.headersSent) return writeError(res, error, o.headers());
      finish(Buffer.concat([Buffer.from(errorEvent(error)), DONE]));
      return res.statusCode;
    },
    get bodyBytes() {
      return bodyBytes;
    },
  };
}

/** Holds a non-streaming answer until it is complete, so that a failure keeps its status to the end. */
export function wholeAnswer(res: ServerResponse, o: AnswerOptions): Answer {
  const pieces: Buffer[] = [];
  let bodyBytes = 0;
  return {
    sink: {
      onDrain: undefined,
      start() {},
      write(bytes) {
        pieces.push(bytes);
        return true;
      },
    },
    end() {
      if (res.headersSent || res.destroyed) return;
      const body = pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces);
      bodyBytes = body.length;
      o.onStart();
      res.writeHead(200, { "content-type": "application/json", ...o.headers(), "content-length": body.length });
      readerOf(res, o).start();
      res.end(body);
    },
    fail: (error) => writeError(res, error, o.headers()),
    get bodyBytes() {
      return bodyBytes;
    },
  };
}

/** Runs only while the client holds us up: a stream may be quiet for as long as the engine thinks. */
function readerOf(res: ServerResponse, { stallMs, clock = systemClock, onStall }: AnswerOptions): ReaderWatch {
  const watch = watchReader(() => takenBytes(res), {
    stallMs,
    clock,
    onStall() {
      onStall();
      res.destroy();
    },
  });
  res.once("close", () => watch.stop());
  return watch;
}

/** The text of a slow model has five times as much. */
const LEAST_BYTES_PER_S = 128;

export interface ReaderWatch {
  /** Bytes wait for the client from now on. Called again while it runs, it has no effect. */
  start(): void;
  /** None wait any more. */
  stop(): void;
}

/**
 * @param takenBytes Bytes that the client's connection has taken so far.
 * @param onStall Called once, after `stallMs` in which the connection took less than the least rate.
 */
export function watchReader(
  takenBytes: () => number,
  { stallMs, clock, onStall }: { readonly stallMs: number; readonly clock: Clock; onStall(): void },
): ReaderWatch {
  const leastBytes = Math.max(1, (LEAST_BYTES_PER_S * stallMs) / 1_000);
  let timer: Timer | undefined;
  const arm = (): void => {
    const before = takenBytes();
    timer = clock.setTimer(stallMs, () => {
      timer = undefined;
      if (takenBytes() - before < leastBytes) onStall();
      else arm();
    });
  };
  return {
    start() {
      if (timer === undefined) arm();
    },
    stop() {
      timer?.cancel();
      timer = undefined;
    },
  };
}

/** The parts of a socket that Node keeps to itself, as in Node 20 to 24. Its public figures count whole writes only. */
interface Inside {
  readonly _bytesDispatched?: number;
  readonly _handle?: { readonly writeQueueSize?: number } | null;
}

/** Bytes that the kernel has taken for the response's connection. */
export function takenBytes({ socket }: Pick<ServerResponse, "socket">): number {
  const { _bytesDispatched: given = 0, _handle } = (socket ?? {}) as Socket & Inside;
  return given - (_handle?.writeQueueSize ?? 0);
}
