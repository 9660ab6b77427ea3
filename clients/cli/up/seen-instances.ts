// Which instances the router sees, told as they change. A Connect stream read with node:http alone: `tandem up` stays
// small and quick, and the client library (80 ms to load) is left to `tandem status`.
// Framing: a flag byte, the length in 4 bytes, JSON. https://connectrpc.com/docs/protocol#streaming-rpcs
import { request } from "node:http";

/** The part of tandem.router.v1.Instance that `up` needs, as protobuf's JSON spells it: zero values are left out. */
export interface SeenInstance {
  readonly info?: {
    readonly instanceId?: string;
    readonly role?: string;
    readonly model?: string;
    readonly pid?: number;
    readonly grpcAddress?: string;
    readonly kvAddress?: string;
    readonly engine?: string;
    readonly engineVersion?: string;
  };
  readonly load?: { readonly state?: string; readonly reason?: string };
  readonly eligible?: boolean;
  readonly reason?: string;
}

export interface WatchOptions {
  /** Such as `http://127.0.0.1:3000`. */
  readonly url: string;
  /** Join token. */
  readonly token: string;
  /** Called at once when the router answers, and after every change. */
  onInstances(instances: readonly SeenInstance[]): void;
  readonly stop: AbortSignal;
}

/** While the router is starting, nothing tells when its port opens: asking again is cheap, waiting is not. */
const RETRY_MS = 15;
/** An answer that is no stream of instances comes from another server, which will not change soon. */
const RETRY_STRANGER_MS = 250;
const MESSAGE_LIMIT_BYTES = 8 * 1024 * 1024;
const END_STREAM_FLAG = 0b10;

/** Watches until `stop`, again and again when the router goes and comes. */
export function watchSeenInstances(options: WatchOptions): void {
  if (options.stop.aborted) return;
  const body = Buffer.from("\0\0\0\0\x02{}", "latin1");
  let timer: NodeJS.Timeout | undefined;
  let ended = false;
  const again = (afterMs: number): void => {
    if (ended || options.stop.aborted) return;
    ended = true;
    timer = setTimeout(() => {
      options.stop.removeEventListener("abort", onStop);
      watchSeenInstances(options);
    }, afterMs);
  };
  const call = request(
    new URL("/tandem.router.v1.RouterService/WatchInstances", options.url),
    {
      method: "POST",
      agent: false,
      headers: {
        "content-type": "application/connect+json",
        "connect-protocol-version": "1",
        "content-length": body.length,
        authorization: `Bearer ${options.token}`,
      },
    },
    (response) => {
      if (response.statusCode !== 200 || response.headers["content-type"] !== "application/connect+json") {
        response.resume();
        response.on("close", () => again(RETRY_STRANGER_MS));
        return;
      }
      let rest: Buffer = Buffer.alloc(0);
      response.on("data", (piece: Buffer) => {
        rest = rest.length === 0 ? piece : Buffer.concat([rest, piece]);
        rest = takeMessages(rest, options.onInstances);
        if (rest.length > MESSAGE_LIMIT_BYTES) response.destroy();
      });
      response.on("error", () => {}); // `close` follows.
      response.on("close", () => again(RETRY_MS));
    },
  );
  const onStop = (): void => {
    clearTimeout(timer);
    call.destroy();
  };
  options.stop.addEventListener("abort", onStop, { once: true });
  call.on("error", () => again(RETRY_MS));
  call.end(body);
}

/** Hands on each whole message and returns what is left. */
export function takeMessages(bytes: Buffer, onInstances: WatchOptions["onInstances"]): Buffer {
  let at = 0;
  while (bytes.length - at >= 5) {
    const flags = bytes[at]!;
    const length = bytes.readUInt32BE(at + 1);
    if (bytes.length - at - 5 < length) break;
    if ((flags & END_STREAM_FLAG) === 0) {
      const message = JSON.parse(bytes.toString("utf8", at + 5, at + 5 + length)) as { instances?: SeenInstance[] };
      onInstances(message.instances ?? []);
    }
    at += 5 + length;
  }
  return bytes.subarray(at);
}
