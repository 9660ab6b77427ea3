// Consul's HTTP API over node:http, as far as Tandem uses it. docs/adr/0007 says why not the `consul` package.
// Source: https://developer.hashicorp.com/consul/api-docs
import { Agent, request as httpRequest, type IncomingMessage, type RequestOptions } from "node:http";
import { readConsulToken, type ConsulOptions } from "./consul-settings.ts";

export interface ConsulAnswer {
  /** 200 or 404; everything else is a ConsulError. */
  readonly status: number;
  /** X-Consul-Index; 0 where there is none. */
  readonly index: bigint;
  /** X-Consul-ContentHash, of queries to the agent alone. */
  readonly hash: string;
  /** The token may not see everything that there is. */
  readonly filtered: boolean;
  readonly body: Buffer;
  json(): unknown;
}

export interface ConsulCall {
  readonly query?: Readonly<Record<string, string>>;
  readonly body?: unknown;
  /** Until the last byte of the answer. Default 5000. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

export interface ConsulClient {
  /** For people: `127.0.0.1:8500`. */
  readonly address: string;
  /** @throws ConsulError */
  get(path: string, call?: ConsulCall): Promise<ConsulAnswer>;
  /** @throws ConsulError */
  put(path: string, call?: ConsulCall): Promise<ConsulAnswer>;
  /** Breaks what runs. */
  close(): void;
}

/**
 * `away`: no agent answers, or it has no leader to ask. `denied`: the token may not do this; `policy` is the rule that
 * would allow it. `refused`: anything else that Consul says no to.
 */
export class ConsulError extends Error {
  override readonly name = "ConsulError";
  readonly kind: "away" | "denied" | "refused";
  readonly policy: string | undefined;

  constructor(kind: ConsulError["kind"], message: string, o: { policy?: string | undefined; cause?: unknown } = {}) {
    super(message, { cause: o.cause });
    this.kind = kind;
    this.policy = o.policy;
  }
}

const TIMEOUT_MS = 5_000;
/** A list of a thousand services has about two megabytes. */
const BODY_LIMIT_BYTES = 64 * 1024 * 1024;

/** @throws ConfigError when a certificate or token file can't be read */
export async function consulClient(o: ConsulOptions): Promise<ConsulClient> {
  const secure = o.tls === undefined ? undefined : await import("node:https");
  const agent = secure === undefined ? new Agent({ keepAlive: true }) : new secure.Agent({ keepAlive: true, ...o.tls });
  const send = secure?.request ?? httpRequest;
  const where: RequestOptions =
    o.socketPath === undefined ? { host: o.host, port: o.port } : { socketPath: o.socketPath };
  let token = readConsulToken(o);

  function once(method: string, path: string, call: ConsulCall): Promise<ConsulAnswer> {
    return new Promise((resolve, reject) => {
      const query = new URLSearchParams(call.query);
      if (o.datacenter !== "") query.set("dc", o.datacenter);
      const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
      const headers: Record<string, string | number> = { accept: "application/json" };
      if (token !== "") headers["x-consul-token"] = token;
      if (body !== undefined) headers["content-type"] = "application/json";
      if (method === "PUT") headers["content-length"] = body?.length ?? 0;
      const req = send({
        ...where,
        agent,
        method,
        path: `${path}${query.size === 0 ? "" : `?${query}`}`,
        headers,
        ...(o.auth === "" ? {} : { auth: o.auth }),
      });
      const timeoutMs = call.timeoutMs ?? TIMEOUT_MS;
      const timer = setTimeout(() => req.destroy(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
      const onAbort = (): void => void req.destroy(new Error("no longer wanted"));
      const settle = (then: () => void): void => {
        clearTimeout(timer);
        call.signal?.removeEventListener("abort", onAbort);
        then();
      };
      const fail = (cause: Error): void => {
        // An idle connection that the agent closed at the moment we used it: nothing was read, ask again.
        if (
          req.reusedSocket &&
          (cause as NodeJS.ErrnoException).code === "ECONNRESET" &&
          call.signal?.aborted !== true
        ) {
          settle(() => resolve(once(method, path, call)));
          return;
        }
        settle(() =>
          reject(new ConsulError("away", `Consul at ${o.shown} does not answer: ${causeText(cause)}`, { cause })),
        );
      };
      req.on("error", fail);
      req.on("response", (res: IncomingMessage) => {
        const pieces: Buffer[] = [];
        let bytes = 0;
        res.on("data", (piece: Buffer) => {
          pieces.push(piece);
          bytes += piece.length;
          if (bytes > BODY_LIMIT_BYTES) req.destroy(new Error(`an answer of more than ${BODY_LIMIT_BYTES} bytes`));
        });
        // A connection that breaks in the middle of an answer shows here and nowhere else.
        res.on("error", fail);
        res.on("end", () =>
          settle(() => {
            try {
              resolve(answerOf(res, Buffer.concat(pieces)));
            } catch (error) {
              reject(error as Error);
            }
          }),
        );
      });
      call.signal?.addEventListener("abort", onAbort, { once: true });
      if (call.signal?.aborted) onAbort();
      req.end(body);
    });
  }

  async function call(method: string, path: string, what: ConsulCall = {}): Promise<ConsulAnswer> {
    try {
      return await once(method, path, what);
    } catch (error) {
      // A token file is written anew when its token is: look whether it was.
      if (!(error instanceof ConsulError) || error.kind !== "denied" || o.tokenFile === undefined) throw error;
      const before = token;
      token = readConsulToken(o);
      if (token === before) throw error;
      return once(method, path, what);
    }
  }

  return {
    address: o.shown,
    get: (path, what) => call("GET", path, what),
    put: (path, what) => call("PUT", path, what),
    close: () => agent.destroy(),
  };
}

function answerOf(res: IncomingMessage, body: Buffer): ConsulAnswer {
  const status = res.statusCode!;
  const text = (): string => body.toString().trim().slice(0, 500);
  if (status !== 200 && status !== 404) {
    if (status === 403 || /permission denied|acl not found/i.test(text())) throw deniedError(text());
    const kind = status >= 500 ? "away" : "refused";
    throw new ConsulError(kind, `Consul answers ${status}: ${text() || "no reason given"}`);
  }
  const header = (name: string): string => String(res.headers[name] ?? "");
  const index = header("x-consul-index");
  return {
    status,
    index: /^\d+$/.test(index) ? BigInt(index) : 0n,
    hash: header("x-consul-contenthash"),
    filtered: header("x-consul-results-filtered-by-acls") === "true",
    body,
    json() {
      try {
        return JSON.parse(body.toString()) as unknown;
      } catch (cause) {
        throw new ConsulError("refused", "Consul's answer is not JSON: is this its HTTP port?", { cause });
      }
    },
  };
}

/**
 * From Consul's own words, such as: Permission denied: token with AccessorID '...' lacks permission 'service:write' on
 * "tandem-decode".
 */
export function deniedError(text: string): ConsulError {
  if (/acl not found/i.test(text)) {
    return new ConsulError(
      "denied",
      "Consul doesn't know the token (ACL not found): it was deleted, or belongs to another cluster.",
    );
  }
  const lack = /lacks permission '([a-z]+):([a-z]+)'(?: on "([^"]*)")?/.exec(text);
  if (lack === null) return new ConsulError("denied", `Consul denies permission: ${text || "no reason given"}`);
  const [, resource, access, name = ""] = lack;
  const policy = `${resource} "${name}" { policy = "${access}" }`;
  return new ConsulError(
    "denied",
    `The Consul token lacks the policy ${policy} (docs/consul.md lists what Tandem needs).`,
    { policy },
  );
}

function causeText(cause: Error): string {
  const { code, message } = cause as NodeJS.ErrnoException;
  // Several addresses were tried, and the error of all of them together has no message.
  return message !== "" ? message : (code ?? cause.name);
}
