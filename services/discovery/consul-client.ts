// The door to the `consul` package: what it lacks is added here and nowhere else. A broken answer is an error at once, a
// refusal carries Consul's whole text, an answer its headers, an AbortSignal ends a call. docs/adr/0009 has the figures.
import Consul from "consul";
import { EventEmitter } from "node:events";
import type {
  ClientRequest,
  IncomingHttpHeaders,
  IncomingMessage,
  OutgoingHttpHeaders,
  RequestOptions,
} from "node:http";
import { ConsulError, refusalError } from "./consul-error.ts";
import { readConsulToken, type ConsulOptions } from "./consul-settings.ts";

export interface ConsulAnswer<T> {
  readonly body: T;
  /** X-Consul-Index; undefined where there is none, as with anything that is not Consul. */
  readonly index: bigint | undefined;
  /** X-Consul-ContentHash, of queries to the agent alone. */
  readonly hash: string;
  /** The token may not see everything that there is. */
  readonly filtered: boolean;
}

/** What every call of the package takes, and its types don't mention. */
export interface CallOptions {
  readonly ctx: EventEmitter;
  readonly timeout: number;
}

export interface CallLimits {
  /** Until the last byte of the answer. Default 5000. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

type Run<T> = (consul: Consul, options: CallOptions) => Promise<T>;

export interface ConsulClient {
  /** For people: `127.0.0.1:8500`. */
  readonly address: string;
  /**
   * @param run One call of the package, with `options` among its own.
   * @throws ConsulError
   */
  ask<T>(run: Run<T>, limits?: CallLimits): Promise<ConsulAnswer<T>>;
  /**
   * The agent's own entry of a service: at once, or with `hash` as soon as the entry has another one.
   *
   * @throws ConsulError `unknown` when the agent has none
   */
  ownEntry(id: string, query: { hash?: string; wait?: string }, limits?: CallLimits): Promise<ConsulAnswer<void>>;
  /** Breaks what runs. */
  close(): void;
}

/** One call. The package ends it on the event `cancel`; the hooks below leave here what they see of it. */
class Call extends EventEmitter {
  sent: ClientRequest | undefined;
  response: Response | undefined;
}

type Response = IncomingMessage & { readonly body?: unknown };

/** Of papi, which the package extends, and of which there are no types. */
interface Papi {
  _get(request: object): Promise<Response>;
  _ext(hook: "onRequest" | "onResponse", run: (request: PapiRequest, next: () => void) => void): void;
}

interface PapiRequest {
  readonly ctx: Call;
  readonly req: RequestOptions & { readonly headers: OutgoingHttpHeaders };
  transport: { request(options: RequestOptions): ClientRequest };
  readonly res?: Response;
  readonly err?: NodeJS.ErrnoException;
  retry(): void;
}

interface PapiError extends NodeJS.ErrnoException {
  readonly isCodec?: true;
  readonly isResponse?: true;
  readonly isTimeout?: true;
}

const TIMEOUT_MS = 5_000;
/** A list of a thousand services has about two megabytes. */
const BODY_LIMIT_BYTES = 64 * 1024 * 1024;

/** @throws ConfigError when the token file can't be read */
export function consulClient(o: ConsulOptions): ConsulClient {
  let token = readConsulToken(o);
  const options = {
    host: o.host.includes(":") ? `[${o.host}]` : o.host,
    port: o.port,
    secure: o.tls !== undefined,
    defaults: o.datacenter === "" ? {} : { dc: o.datacenter },
    // For node:http and node:tls: papi passes them on, and the package's types don't know it.
    ...(o.socketPath === undefined ? {} : { socketPath: o.socketPath }),
    ...o.tls,
  };
  const consul = new Consul(options);
  const papi = consul as unknown as Papi;

  papi._ext("onRequest", (request, next) => {
    const { ctx, req, transport } = request;
    // Without the brackets that an IPv6 address has in papi's URL, and that no resolver knows.
    if (o.socketPath === undefined) req.hostname = o.host;
    if (o.auth !== "") req.auth = o.auth;
    if (token !== "") req.headers["x-consul-token"] = token;
    request.transport = {
      request(sendOptions) {
        const sent = transport.request(sendOptions);
        ctx.sent = sent;
        sent.once("response", (response) => failWithAnswer(sent, response));
        return sent;
      },
    };
    next();
  });
  papi._ext("onResponse", (request, next) => {
    const { ctx, res, err } = request;
    // An idle connection that the agent closed at the moment it was used: nothing was read, ask again.
    if (err?.code === "ECONNRESET" && res === undefined && ctx.sent?.reusedSocket === true) return request.retry();
    ctx.response = res;
    next();
  });

  async function askOnce<T>(run: Run<T>, { timeoutMs = TIMEOUT_MS, signal }: CallLimits): Promise<ConsulAnswer<T>> {
    const ctx = new Call();
    const cancel = (): boolean => ctx.emit("cancel");
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      signal?.throwIfAborted();
      const body = await run(consul, { ctx, timeout: timeoutMs });
      return answerOf(body, ctx.response!.headers);
    } catch (error) {
      throw failureOf(error as PapiError, ctx.response, `Consul at ${o.shown} does not answer`, timeoutMs);
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }

  async function ask<T>(run: Run<T>, limits: CallLimits = {}): Promise<ConsulAnswer<T>> {
    try {
      return await askOnce(run, limits);
    } catch (error) {
      // A token file is written anew when its token is: look whether it was.
      if ((error as ConsulError).kind !== "denied" || o.tokenFile === undefined) throw error;
      const before = token;
      token = readConsulToken(o);
      if (token === before) throw error;
      return askOnce(run, limits);
    }
  }

  return {
    address: o.shown,
    ask,
    ownEntry: (id, query, limits) =>
      ask(async (_, call) => {
        await papi._get({ path: "/agent/service/{id}", params: { id }, query, ...call });
      }, limits),
    close: () => consul.destroy(),
  };
}

/** papi waits for the end of an answer, which one that breaks off has not, and takes an answer of any size. */
function failWithAnswer(sent: ClientRequest, response: IncomingMessage): void {
  let bytes = 0;
  response.once("error", (error) => sent.emit("error", error));
  response.on("data", (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > BODY_LIMIT_BYTES) sent.destroy(new Error(`an answer of more than ${BODY_LIMIT_BYTES} bytes`));
  });
}

function answerOf<T>(body: T, headers: IncomingHttpHeaders): ConsulAnswer<T> {
  const header = (name: string): string => String(headers[name] ?? "");
  const index = header("x-consul-index");
  return {
    body,
    index: /^\d+$/.test(index) ? BigInt(index) : undefined,
    hash: header("x-consul-contenthash"),
    filtered: header("x-consul-results-filtered-by-acls") === "true",
  };
}

/** The class and the whole text of what went wrong: the package's own message leaves out a long body. */
function failureOf(error: PapiError, response: Response | undefined, silence: string, timeoutMs: number): ConsulError {
  if (error.isResponse === true) {
    const { body = "" } = response!;
    const text = typeof body === "string" || Buffer.isBuffer(body) ? body.toString() : JSON.stringify(body);
    return refusalError(response!.statusCode!, text.trim().slice(0, 500));
  }
  if (error.isCodec === true)
    return new ConsulError("refused", "Consul's answer is not JSON: is this its HTTP port?", { cause: error });
  // Several addresses were tried when there is no message. papi puts the name of the call before the one there is.
  const message = error.message.replace(/^consul: ([\w.]+: )?/, "") || error.code;
  const because = error.isTimeout === true ? `no answer within ${timeoutMs} ms` : message;
  return new ConsulError("away", `${silence}: ${because}`, { cause: error });
}
