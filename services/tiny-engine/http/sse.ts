// Writes SSE events as uvicorn does, one chunk each. The chunk framing is done here and not by Node,
// which takes four socket writes a chunk: with thousands of streams that is most of a step's time.
import type { ServerResponse } from "node:http";
import { head } from "./exchange.ts";

export const DONE = "data: [DONE]\n\n";

export class SseWriter {
  readonly #res: ServerResponse;
  readonly #onBytes: (count: number) => void;
  /** The client reads more slowly than tokens arrive: nothing is written until `onDrain`. */
  blocked = false;

  /** @param onBytes Told how many bytes each write handed to the connection. */
  constructor(res: ServerResponse, onDrain: () => void, onBytes: (count: number) => void) {
    this.#res = res;
    this.#onBytes = onBytes;
    head(res, 200, [["content-type", "text/event-stream; charset=utf-8"]], [["transfer-encoding", "chunked"]]);
    res.chunkedEncoding = false;
    // uvicorn sends the head at once, long before the first token.
    res.flushHeaders();
    res.on("drain", () => {
      this.blocked = false;
      onDrain();
    });
  }

  /** @param events One event, or several that are sent together; each becomes its own chunk. */
  write(...events: readonly string[]): void {
    let frames = "";
    for (const event of events) frames += frame(event);
    this.#send(frames);
  }

  end(): void {
    this.#send("0\r\n\r\n");
    this.#res.end();
  }

  /** Writes half of an event, then breaks the connection. */
  breakOff(event: string): void {
    const frames = frame(event);
    this.#res.write(frames.slice(0, frames.length >> 1), () => this.#res.destroy());
  }

  #send(frames: string): void {
    if (this.#res.destroyed) return;
    this.#onBytes(Buffer.byteLength(frames));
    if (!this.#res.write(frames, "utf8")) this.blocked = true;
  }
}

function frame(event: string): string {
  return `${Buffer.byteLength(event).toString(16)}\r\n${event}\r\n`;
}
