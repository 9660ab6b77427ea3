// Wraps the `consul` package and adds the features it lacks, here and nowhere else. A broken answer is an error at
// once, a refusal carries Consul's whole text, an answer its headers, an AbortSignal ends a call. docs/adr/0009 has the
// figures.
import Consul from "consul";
import { EventEmitter } from "node:events";
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage, RequestOptions } from "node:http";
import { ConsulError, refusalError } from "./consul-error.ts";
import { consulServer, readConsulToken, type ConsulConfig } from "./consul-settings.ts";

/** What every call of the package takes, and its types don't mention. */
export interface ConsulCallOptions {
  readonly ctx: EventEmitter;
  readonly timeout: number;
}

export interface CallLimits {
  /** Until the last byte of the answer. Default 5000. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

interface Answer<T> {
  readonly body: T;
  readonly headers: IncomingHttpHeaders;
}

/** One call of the package, with `options` among its own. */
type Run<T> = (consul: Consul, options: ConsulCallOptions) => Promise<T>;

type Response = IncomingMessage & { readonly body?: unknown };

/** One call. The package ends it on the event `cancel`; the hooks leave here what they see of it. */
class Call extends EventEmitter {
  sent: ClientRequest | undefined;
  response: Response | undefined;
}

/** Of papi, which the package extends, and which has no types. */
interface Papi {
  _get(request: object): Promise<Response>;
  _ext(hook: "onRequest" | "onResponse", run: (request: PapiRequest, next: () => void) => void): void;
}

interface PapiRequest {
  readonly ctx: Call;
  readonly req: RequestOptions & { readonly headers: Record<string, string> };
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

export class ConsulClient {
  readonly #config: ConsulConfig;
  readonly #consul: Consul;
  #token: string;

  /** @throws ConfigError for an address that is not one, or a file that can't be read */
  constructor(config: ConsulConfig) {
    this.#config = config;
    this.#token = readConsulToken(config);
    this.#consul = new Consul(consulServer(config) as object);
    const papi = this.#consul as unknown as Papi;
    papi._ext("onRequest", (request, next) => {
      const { ctx, req, transport } = request;
      // No resolver knows the brackets of an IPv6 address.
      if (req.hostname) req.hostname = req.hostname.replace(/^\[|\]$/g, "");
      if (config.httpAuth !== "") req.auth = config.httpAuth;
      if (this.#token !== "") req.headers["x-consul-token"] = this.#token;
      request.transport = { request: (options) => (ctx.sent = guarded(transport.request(options))) };
      next();
    });
    papi._ext("onResponse", (request, next) => {
      const { ctx, res, err } = request;
      // An idle connection that the agent closed at the moment it was used: nothing was read, ask again.
      if (err?.code === "ECONNRESET" && res === undefined && ctx.sent!.reusedSocket) return request.retry();
      ctx.response = res;
      next();
    });
  }

  /** @throws ConsulError */
  async ask<T>(run: Run<T>, limits: CallLimits = {}): Promise<Answer<T>> {
    try {
      return await this.#askOnce(run, limits);
    } catch (error) {
      // A token file is written anew when its token is: look whether it was.
      const before = this.#token;
      if ((error as ConsulError).kind === "denied") this.#token = readConsulToken(this.#config);
      if (this.#token === before) throw error;
      return this.#askOnce(run, limits);
    }
  }

  /**
   * The content hash of the agent's own entry of a service: at once, or as soon as it is not `query.hash` any more.
   *
   * @throws ConsulError `unknown` when the agent has no such service
   */
  async ownEntry(id: string, query: { hash?: string; wait?: string }, limits?: CallLimits): Promise<string> {
    const entry = { path: "/agent/service/{id}", params: { id }, query };
    const { headers } = await this.ask((papi, call) => (papi as unknown as Papi)._get({ ...entry, ...call }), limits);
    return String(headers["x-consul-contenthash"] ?? "");
  }

  /** Whether everyone who reaches the agent may register services. @throws ConsulError if it doesn't say */
  async isOpen(limits?: CallLimits): Promise<boolean> {
    const self = { path: "/acl/token/self" };
    try {
      await this.ask((papi, call) => (papi as unknown as Papi)._get({ ...self, ...call }), limits);
      return false;
    } catch (error) {
      if (/ACL support disabled/i.test((error as Error).message)) return true;
      if ((error as ConsulError).kind === "away") throw error;
      return false; // It asks for a token, or denies this one.
    }
  }

  /** Aborts running calls. */
  close(): void {
    this.#consul.destroy();
  }

  async #askOnce<T>(run: Run<T>, { timeoutMs = TIMEOUT_MS, signal }: CallLimits): Promise<Answer<T>> {
    const ctx = new Call();
    const cancel = (): boolean => ctx.emit("cancel");
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      signal?.throwIfAborted();
      const body = await run(this.#consul, { ctx, timeout: timeoutMs });
      return { body, headers: ctx.response!.headers };
    } catch (error) {
      const { isResponse, isCodec, isTimeout, message, code } = error as PapiError;
      if (isResponse) throw refusalError(ctx.response!.statusCode!, textOf(ctx.response!));
      if (isCodec) throw new ConsulError("refused", "Consul's answer is not JSON: is this its HTTP port?");
      // papi puts the name of the call first. Nothing follows when several addresses were tried.
      const said = message.replace(/^consul: ([\w.]+: )?/, "") || code;
      const why = isTimeout ? `no answer within ${timeoutMs} ms` : said;
      throw new ConsulError("away", `Consul at ${this.#config.address} does not answer: ${why}`, { cause: error });
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }
}

/** papi waits for the end of an answer, which one that breaks off doesn't have, and takes an answer of any size. */
function guarded(sent: ClientRequest): ClientRequest {
  let bytes = 0;
  return sent.once("response", (response) => {
    response.once("error", (error) => sent.emit("error", error));
    response.on("data", (piece: Buffer) => {
      bytes += piece.length;
      if (bytes > BODY_LIMIT_BYTES) sent.destroy(new Error(`an answer of more than ${BODY_LIMIT_BYTES} bytes`));
    });
  });
}

/** The whole of it, where the package's own message leaves out a long one. */
function textOf({ body = "" }: Response): string {
  const text = typeof body === "string" || Buffer.isBuffer(body) ? body.toString() : JSON.stringify(body);
  return text.trim().slice(0, 500);
}
