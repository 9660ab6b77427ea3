// Whether an engine works: not only that it was started or that its port is open, but that it answers real requests.
import { type Clock, pause } from "../common/clock.ts";
import { OWN_ENGINE_KINDS, type EngineFacts, type EngineKind } from "./engine.ts";
import type { EngineHttp } from "./http.ts";
import { readBlockSize, readKvCache } from "./metrics-text.ts";

const CALL_TIMEOUT_MS = 5_000;
/** For the trial completion, which may compile kernels. */
const COMPLETION_TIMEOUT_MS = 120_000;

export interface ReadinessCheck {
  /** Undefined: found out. */
  readonly kind: EngineKind | undefined;
  /** Served name that must be listed. Empty: the first one listed. */
  readonly model: string;
  /** Whether a request of no pair may be sent. With P2P it would kill the engine. */
  readonly servesUnpaired: boolean;
  /** From the start until it works. */
  readonly startTimeoutMs: number;
}

/** Waiting longer won't help. */
export class WrongEngine extends Error {}

/**
 * Resolves with the engine's facts when it works.
 *
 * @param onWait Called with each failed check's error before the next try.
 * @throws WrongEngine; after `startTimeoutMs` an Error that names the failed check; or the signal's reason.
 */
export async function untilReady(
  http: EngineHttp,
  check: ReadinessCheck,
  clock: Clock,
  signal: AbortSignal,
  onWait: (error: Error) => void = () => {},
): Promise<EngineFacts> {
  const deadlineMs = clock.nowMs() + check.startTimeoutMs;
  for (let waitMs = 25; ; waitMs = Math.min(250, waitMs * 1.3)) {
    try {
      return await checkReady(http, check);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof WrongEngine || clock.nowMs() > deadlineMs) throw error;
      onWait(error as Error);
    }
    await pause(clock, waitMs, signal);
  }
}

async function checkReady(http: EngineHttp, check: ReadinessCheck): Promise<EngineFacts> {
  await ask(http, "/health");
  const listed = JSON.parse(await ask(http, "/v1/models")) as {
    data?: { id?: string; root?: string | null; max_model_len?: number }[];
  };
  const models = listed.data ?? [];
  const model = check.model === "" ? models[0] : models.find(({ id }) => id === check.model);
  if (model?.id === undefined) {
    const names = models.map(({ id }) => id).join(", ") || "no model";
    throw new WrongEngine(check.model === "" ? "it lists no model" : `it serves ${names}, not ${check.model}`);
  }
  const { version = "" } = JSON.parse(await ask(http, "/version")) as { version?: string };
  const metrics = await ask(http, "/metrics");
  if (check.servesUnpaired) {
    const body = { model: model.id, prompt: "1", max_tokens: 1, temperature: 0 };
    await ask(http, "/v1/completions", Buffer.from(JSON.stringify(body)), COMPLETION_TIMEOUT_MS);
  }
  const kvCache = readKvCache(metrics);
  const kind = check.kind ?? (await kindOf(http));
  return {
    kind,
    version,
    model: model.id,
    maxModelLen: model.max_model_len ?? 0,
    blockSize: readBlockSize(metrics),
    ...(kvCache.tokens > 0 ? { kvCacheTokens: kvCache.tokens } : {}),
    ...(kvCache.bytes > 0 ? { kvCacheBytes: kvCache.bytes } : {}),
    // The engines that ship with Tandem have one rank. vLLM says how many in its output, if it was started here.
    ...(kind === "vllm" ? {} : { tpSize: 1 }),
    ...(typeof model.root === "string" ? { modelRoot: model.root } : {}),
  };
}

/** The kind of an attached engine, which Tandem's own tell. */
async function kindOf(http: EngineHttp): Promise<EngineKind> {
  const { status, body } = await http.get("/sim/kind", CALL_TIMEOUT_MS);
  const told = status === 200 ? body.toString() : "";
  return OWN_ENGINE_KINDS.find((kind) => told === JSON.stringify({ kind })) ?? "vllm";
}

/** The text of a 200 answer to a GET or, with a body, a POST. */
async function ask(http: EngineHttp, path: string, body?: Buffer, timeoutMs = CALL_TIMEOUT_MS): Promise<string> {
  const method = body === undefined ? "GET" : "POST";
  const answer = await http.fetch({ method, path, body, repeatable: true }, { timeoutMs });
  const text = answer.body.toString("utf8");
  if (answer.status === 200) return text;
  if (answer.status === 401 || answer.status === 403)
    throw new WrongEngine(`${path} answers ${answer.status}: give its key with --engine.api_key`);
  throw new Error(`${method} ${path} answers ${answer.status}${text === "" ? "" : `: ${text.slice(0, 300)}`}`);
}
