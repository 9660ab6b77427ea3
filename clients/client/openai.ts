// The OpenAI REST API of a router, with types for the fields that Tandem itself knows; every other field is passed on
// unchanged.
import { EventSourceParserStream } from "eventsource-parser/stream";
import { connectionError, notTandem, TandemError } from "./errors.ts";
import { parse, readiness, type Readiness } from "./readiness.ts";

export interface RestCallOptions {
  /** Ends the call, which then throws the signal's reason. The router stops generating. */
  readonly signal?: AbortSignal;
  /** Such as `x-tandem-priority`; docs/reliability.md lists them all. */
  readonly headers?: Readonly<Record<string, string>>;
}

/** Fields that both kinds of requests have. */
export interface Sampling {
  readonly model: string;
  readonly max_tokens?: number | undefined;
  readonly temperature?: number | undefined;
  readonly seed?: number | undefined;
  readonly stop?: string | readonly string[];
  readonly stream_options?: { readonly include_usage?: boolean };
  /** Any other field of OpenAI's API or vLLM's. */
  readonly [field: string]: unknown;
}

export interface Message {
  readonly role: "system" | "user" | "assistant" | (string & {});
  readonly content: unknown;
}

export interface ChatRequest extends Sampling {
  readonly messages: readonly Message[];
}

export interface CompletionRequest extends Sampling {
  /** Text or token ids; each entry of a list makes one choice. */
  readonly prompt: string | readonly string[] | readonly number[] | readonly (readonly number[])[];
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
}

interface Answer<C> {
  readonly id: string;
  readonly model: string;
  readonly choices: readonly (C & { readonly index: number; readonly finish_reason: string })[];
  readonly usage: Usage;
}

interface Chunk<C> {
  readonly id: string;
  readonly model: string;
  readonly choices: readonly (C & { readonly index: number; readonly finish_reason: string | null })[];
  /** In the last chunk of a request with `stream_options: { include_usage: true }`. */
  readonly usage?: Usage | null;
}

export type Chat = Answer<{ readonly message: { readonly role: string; readonly content: string | null } }>;
export type ChatChunk = Chunk<{ readonly delta: { readonly role?: string; readonly content?: string | null } }>;
export type Completion = Answer<{ readonly text: string }>;
export type CompletionChunk = Chunk<{ readonly text: string }>;

export interface Model {
  readonly id: string;
  /** Longest prompt plus answer, in tokens. Absent if the engine doesn't report it. */
  readonly max_model_len?: number;
}

/** A streamed answer. It is read once; breaking out of the loop ends the request. */
export interface AnswerChunks<T> extends AsyncIterable<T> {
  /** `x-request-id` of the answer, for `router.getReceipt` and `tandem explain`. */
  readonly requestId: string;
}

/** All calls throw TandemError. */
export interface OpenAiClient {
  /** The models that the router lists. */
  models(options?: RestCallOptions): Promise<Model[]>;
  /** Whether the router can serve. @throws TandemError only if no router answers. */
  ready(signal?: AbortSignal): Promise<Readiness>;
  chat(body: ChatRequest, options?: RestCallOptions): Promise<Chat>;
  /** The stream throws if an answer ends with an error event, or without `[DONE]`. */
  streamChat(body: ChatRequest, options?: RestCallOptions): Promise<AnswerChunks<ChatChunk>>;
  complete(body: CompletionRequest, options?: RestCallOptions): Promise<Completion>;
  streamCompletion(body: CompletionRequest, options?: RestCallOptions): Promise<AnswerChunks<CompletionChunk>>;
}

interface ErrorBody {
  readonly error?: { readonly message?: string };
}

/** @param url URL of the router, such as `http://127.0.0.1:3000`. */
export function openAiClient(url: string, apiKey = ""): OpenAiClient {
  const authorization: Record<string, string> = apiKey === "" ? {} : { authorization: `Bearer ${apiKey}` };

  async function send(path: string, o: RestCallOptions = {}, body?: object): Promise<Response> {
    const post = { method: "POST", body: JSON.stringify(body) };
    const headers = { ...authorization, ...o.headers, ...(body && { "content-type": "application/json" }) };
    const init: RequestInit = { headers, signal: o.signal ?? null, ...(body && post) };
    return fetch(`${url}${path}`, init).catch((error: Error) => {
      throw o.signal?.aborted === true ? o.signal.reason : connectionError(url, error);
    });
  }

  async function json<T>(response: Response, signal?: AbortSignal): Promise<T> {
    const text = await response.text().catch((error: Error) => {
      throw signal?.aborted === true ? signal.reason : connectionError(url, error, true);
    });
    const { ok, status, headers } = response;
    const parsed = parse<T & ErrorBody>(text);
    if (ok && parsed !== undefined) return parsed;
    const message = parsed?.error?.message;
    if (message === undefined && (ok || status === 404)) throw notTandem(url, status);
    const retryAfter = headers.get("retry-after");
    throw new TandemError(status === 401 ? "unauthenticated" : "failed", message ?? `Status ${status}: ${text}`, {
      status,
      requestId: requestIdOf(response),
      // It may be a date.
      retryAfterS: /^\d+$/.test(retryAfter ?? "") ? Number(retryAfter) : undefined,
    });
  }

  async function answer<T>(path: string, body: Sampling, o: RestCallOptions = {}): Promise<T> {
    return json<T>(await send(path, o, { ...body, stream: false }), o.signal);
  }

  /** The events of a stream up to `[DONE]`. */
  async function* chunks<T>(response: Response, requestId: string, signal?: AbortSignal): AsyncGenerator<T> {
    try {
      const events = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
      for await (const { data } of events) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data) as T;
        const { error } = chunk as ErrorBody;
        if (error !== undefined)
          throw new TandemError("failed", error.message ?? "The answer ended with an error.", { requestId });
        yield chunk;
      }
    } catch (error) {
      if (error instanceof TandemError) throw error;
      throw signal?.aborted === true ? signal.reason : connectionError(url, error as Error, true);
    }
    throw new TandemError("broken", `The answer of ${url} ended without [DONE].`, { requestId });
  }

  async function stream<T>(path: string, body: Sampling, o: RestCallOptions = {}): Promise<AnswerChunks<T>> {
    const response = await send(path, o, { ...body, stream: true });
    if (!response.ok) return json<never>(response, o.signal);
    const requestId = requestIdOf(response) ?? "";
    return { requestId, [Symbol.asyncIterator]: () => chunks<T>(response, requestId, o.signal) };
  }

  return {
    models: async (o) => (await json<{ data: Model[] }>(await send("/v1/models", o), o?.signal)).data ?? [],
    ready: (signal) => readiness(url, signal),
    chat: (body, o) => answer("/v1/chat/completions", body, o),
    streamChat: (body, o) => stream("/v1/chat/completions", body, o),
    complete: (body, o) => answer("/v1/completions", body, o),
    streamCompletion: (body, o) => stream("/v1/completions", body, o),
  };
}

function requestIdOf(response: Response): string | undefined {
  return response.headers.get("x-request-id") ?? undefined;
}
