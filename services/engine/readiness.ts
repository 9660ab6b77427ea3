// Whether an engine works: not only that it was started or that its port is open, but that it answers real requests.
import type { EngineFacts, EngineKind } from "./engine.ts";
import type { EngineHttp } from "./http.ts";
import { readBlockSize } from "./metrics-text.ts";

export interface ReadinessCheck {
  readonly kind: EngineKind | undefined;
  /** Served name that must be listed. Empty: the first one listed. */
  readonly model: string;
  /** Whether a request of no pair may be sent. With P2P it would kill the engine. */
  readonly servesUnpaired: boolean;
  /** For each of the calls. */
  readonly timeoutMs: number;
  /** For the trial completion, which may compile kernels. */
  readonly completionTimeoutMs: number;
}

/** Returns the engine's facts. @throws Error that names the failed check. */
export async function checkReady(http: EngineHttp, check: ReadinessCheck): Promise<EngineFacts> {
  const { timeoutMs } = check;
  const health = await http.fetch({ method: "GET", path: "/health", repeatable: true }, { timeoutMs });
  if (health.status !== 200) throw new Error(`/health answers ${health.status}`);
  const listed = await get<{ data?: { id?: string; root?: string | null; max_model_len?: number }[] }>(
    http,
    "/v1/models",
    timeoutMs,
  );
  const models = listed.data ?? [];
  const model = check.model === "" ? models[0] : models.find((candidate) => candidate.id === check.model);
  if (model?.id === undefined) {
    const names = models.map((candidate) => candidate.id).join(", ");
    throw new WrongEngine(
      check.model === "" ? "it lists no model" : `it serves ${names === "" ? "no model" : names}, not ${check.model}`,
    );
  }
  const version = (await get<{ version?: string }>(http, "/version", timeoutMs)).version ?? "";
  const metrics = await http.fetch({ method: "GET", path: "/metrics", repeatable: true }, { timeoutMs });
  if (metrics.status !== 200) throw new Error(`/metrics answers ${metrics.status}`);
  if (check.servesUnpaired) await completeOnce(http, model.id, check.completionTimeoutMs);
  const kind = check.kind ?? (await guessKind(http, timeoutMs));
  return {
    kind,
    version,
    model: model.id,
    maxModelLen: model.max_model_len ?? 0,
    blockSize: readBlockSize(metrics.body.toString("utf8")),
    // The engines that ship with Tandem have one rank. vLLM says how many in its output, if it was started here.
    ...(kind === "vllm" ? {} : { tpSize: 1 }),
    ...(typeof model.root === "string" ? { modelRoot: model.root } : {}),
  };
}

/** Waiting longer won't help. */
export class WrongEngine extends Error {}

async function get<T>(http: EngineHttp, path: string, timeoutMs: number): Promise<T> {
  const answer = await http.fetch({ method: "GET", path, repeatable: true }, { timeoutMs });
  if (answer.status === 401 || answer.status === 403)
    throw new WrongEngine(`${path} answers ${answer.status}: give its key with --engine.api_key`);
  if (answer.status !== 200) throw new Error(`${path} answers ${answer.status}`);
  return JSON.parse(answer.body.toString("utf8")) as T;
}

async function completeOnce(http: EngineHttp, model: string, timeoutMs: number): Promise<void> {
  const body = Buffer.from(JSON.stringify({ model, prompt: "1", max_tokens: 1, temperature: 0 }));
  const answer = await http.fetch({ method: "POST", path: "/v1/completions", body, repeatable: true }, { timeoutMs });
  if (answer.status !== 200) {
    throw new Error(`a completion of one token answers ${answer.status}: ${answer.body.toString("utf8", 0, 300)}`);
  }
}

// An attached engine doesn't report its kind; only the sim has this path.
async function guessKind(http: EngineHttp, timeoutMs: number): Promise<EngineKind> {
  const answer = await http.fetch({ method: "GET", path: "/sim/state", repeatable: true }, { timeoutMs });
  return answer.status === 200 ? "sim" : "vllm";
}
