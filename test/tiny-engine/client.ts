// Short ways to ask an engine, for tests of what it answers.
import { startSimEngine, type RunningEngine, type SimEngineOptions } from "../../services/tiny-engine/server.ts";

/** An engine whose steps take no time. */
export function startFast(options: SimEngineOptions = {}): Promise<RunningEngine> {
  return startSimEngine({ modelName: "tiny", prefillMsPerToken: 0, decodeMsPerToken: 0, ...options });
}

export interface Pair extends AsyncDisposable {
  readonly prefill: RunningEngine;
  readonly decode: RunningEngine;
}

/** A prefill and a decode engine that move KV by p2p-zmq. */
export async function pairOf<Options>(
  start: (options: Options) => Promise<RunningEngine>,
  prefillOptions: Options,
  decodeOptions: Options,
): Promise<Pair> {
  const prefill = await start({ role: "prefill", connector: "p2p-zmq", ...prefillOptions });
  const decode = await start({ role: "decode", connector: "p2p-zmq", ...decodeOptions });
  return {
    prefill,
    decode,
    async [Symbol.asyncDispose]() {
      await prefill[Symbol.asyncDispose]();
      await decode[Symbol.asyncDispose]();
    },
  };
}

export function startPair(prefill: SimEngineOptions = {}, decode: SimEngineOptions = {}): Promise<Pair> {
  return pairOf(startFast, prefill, decode);
}

export interface Answered {
  readonly status: number;
  // oxlint-disable-next-line no-explicit-any -- JSON of many shapes, looked into by assertions.
  readonly json: any;
}

export async function post(
  engine: { readonly url: string },
  path: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
  signal?: AbortSignal,
): Promise<Answered> {
  const response = await fetch(engine.url + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    ...(signal === undefined ? {} : { signal }),
  });
  return { status: response.status, json: await response.json() };
}

/** A greedy completion. */
export function complete(
  engine: { readonly url: string },
  prompt: unknown,
  more: Readonly<Record<string, unknown>> = {},
  headers: Readonly<Record<string, string>> = {},
): Promise<Answered> {
  return post(engine, "/v1/completions", { prompt, temperature: 0, max_tokens: 24, ...more }, headers);
}

export async function textOf(answer: Promise<Answered>): Promise<string> {
  const { status, json } = await answer;
  if (status !== 200) throw new Error(`${status}: ${JSON.stringify(json)}`);
  return json.choices[0].text ?? json.choices[0].message.content;
}

/** The data of every SSE event, `[DONE]` included. Ends where the connection does. */
export async function events(
  engine: { readonly url: string },
  path: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): Promise<{ status: number; events: string[]; complete: boolean }> {
  const response = await fetch(engine.url + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ ...(body as object), stream: true }),
  });
  let text = "";
  let complete = true;
  try {
    for await (const piece of response.body!.pipeThrough(new TextDecoderStream())) text += piece;
  } catch {
    complete = false;
  }
  return {
    status: response.status,
    complete,
    events: text
      .split("\n\n")
      .filter((event) => event !== "")
      .map((event) => event.replace(/^data: /, "")),
  };
}

/** The text that a stream's events add up to. */
export function streamedText(list: readonly string[]): string {
  return list
    .filter((event) => event !== "[DONE]")
    .map((event) => {
      const choice = JSON.parse(event).choices[0];
      return choice?.text ?? choice?.delta?.content ?? "";
    })
    .join("");
}

let pairCount = 0;

/** A fresh X-Request-Id for two p2p-zmq engines. */
export function pairedId(prefill: RunningEngine, decode: RunningEngine): string {
  return `___prefill_addr_${prefill.kvAddress!}___decode_addr_${decode.kvAddress!}_${(++pairCount).toString(16).padStart(32, "0")}`;
}

export function pairedHeaders({ prefill, decode }: Pair): { readonly "x-request-id": string } {
  return { "x-request-id": pairedId(prefill, decode) };
}
