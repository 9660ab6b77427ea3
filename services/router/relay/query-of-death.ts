// Protects the fleet from requests whose own body makes engines fail (quarantine.ts decides which do): gives the
// instances' verdicts back, answers with the engine's own words, and refuses the same body while it is held. A body is
// known by a keyed digest of what engines get of it, so that nothing of a prompt is kept.
import { createHmac, randomBytes } from "node:crypto";
import type { Clock } from "../../common/clock.ts";
import type { Live } from "../../common/config.ts";
import { type EngineAnswer, ServiceError } from "../../common/errors.ts";
import { namesInternals } from "../../common/internal-names.ts";
import { scanObject } from "../../common/json-body.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { LegOutcome } from "../leg/protocol.ts";
import type { LegRun } from "../leg/run.ts";
import { accusedBy } from "../leg/verdict.ts";
import type { Instance, Pool, Side } from "../pool/pool.ts";
import type { RelayRequest } from "../request/request.ts";
import { Quarantine, type Hold, type QuarantineLimits } from "./quarantine.ts";

/** Fields that change only the form of the answer. */
const FORM: ReadonlySet<string> = new Set(["stream", "stream_options"]);

type Failed = Extract<LegOutcome, { kind: "failed" }>;

/** A failed attempt. */
interface Attempt {
  readonly prefill: Instance | undefined;
  readonly decode: Instance | undefined;
  readonly failed: Failed;
}

export interface QueryOfDeathOptions {
  readonly pool: Pick<Pool, "view" | "pardon">;
  readonly limits: Live<QuarantineLimits>;
  readonly metrics: Metrics;
  readonly log: Log;
  readonly clock: Clock;
}

export function watchQueries({ pool, limits, metrics, log, clock }: QueryOfDeathOptions) {
  const quarantine = new Quarantine<Attempt>(limits);
  const key = randomBytes(32);
  const digests = new WeakMap<RelayRequest, string>();
  const events = metrics.counter(
    "tandem_quarantine_events_total",
    "Request bodies that were quarantined because they make engines fail, and that were released early.",
    ["event"],
  );
  for (const event of ["added", "released"]) events.inc({ event }, 0);
  metrics.gauge("tandem_quarantined_bodies", "Request bodies in quarantine.", [], (gauge) =>
    gauge.set(quarantine.heldCount(clock.nowMs())),
  );

  function digestOf(request: RelayRequest): string {
    let digest = digests.get(request);
    if (digest === undefined) digests.set(request, (digest = hash(request, key)));
    return digest;
  }

  function released(holds: readonly Hold<Attempt>[], because: string): void {
    for (const hold of holds) {
      events.inc({ event: "released" });
      log.warn("a body was released from quarantine", { because, side: hold.side, instanceIds: hold.instanceIds });
    }
  }

  function pardon({ prefill, decode, failed: { error, side } }: Attempt): void {
    const accused = accusedBy(error.code);
    const instance = side === "prefill" ? prefill : decode;
    if (accused === "instance" && instance !== undefined) pool.pardon(instance);
    else if (accused === "pair" && prefill !== undefined && decode !== undefined) pool.pardon(prefill, decode);
  }

  /** Whether no other instance serves. It may be out itself by now, because of this failure. */
  function isAlone({ instanceId }: Instance, model: string, side: Side): boolean {
    const seen = pool.view.models.get(model)?.[side] ?? [];
    return !seen.some(({ instance, standing }) => standing.kind === "serves" && instance.instanceId !== instanceId);
  }

  return {
    /** Notes that a leg failed. Returns the error for the client if the request's own body is at fault. */
    failed(request: RelayRequest, leg: LegRun, failed: Failed): ServiceError | undefined {
      const how = causeOf(failed.error);
      const { prefill } = leg.task;
      const { decode } = leg;
      const instance = failed.side === "prefill" ? prefill : decode;
      if (how === undefined || instance === undefined) return undefined;
      const failure = {
        digest: digestOf(request),
        size: request.body.length,
        side: failed.side,
        instanceId: instance.instanceId,
        how,
        alone: isAlone(instance, request.model, failed.side),
        leg: { prefill, decode, failed },
      };
      const { decision, released: ended } = quarantine.failed(failure, clock.nowMs());
      released(ended, how === "answered" ? "other requests fail on the same instance" : "engines die without it");
      if (decision.kind === "unknown") return undefined;
      for (const attempt of decision.forgiven) pardon(attempt);
      if (decision.isNew) {
        events.inc({ event: "added" });
        const { side, instanceIds, untilMs, count } = decision.hold;
        const holdMs = Math.round(untilMs - clock.nowMs());
        log.warn("a request's own body makes engines fail; it is in quarantine", {
          requestId: request.id,
          ...{ side, how, instanceIds, holdMs, count },
        });
      }
      return queryOfDeath(answerTo(failed));
    },

    /** Notes that the two served a request. Given none: a probe. */
    succeeded(prefill: Instance | undefined, decode: Instance | undefined, request?: RelayRequest): void {
      const nowMs = clock.nowMs();
      const digest = request !== undefined && quarantine.isWatching(nowMs) ? digestOf(request) : undefined;
      const ids = prefill === undefined ? [] : [prefill.instanceId];
      if (decode !== undefined) ids.push(decode.instanceId);
      const hold = quarantine.succeeded(ids, request?.body.length ?? 0, digest, nowMs);
      if (hold !== undefined) released([hold], "it succeeded");
    },

    /** The error for a request whose body is in quarantine. */
    refusal(request: RelayRequest): ServiceError | undefined {
      const nowMs = clock.nowMs();
      if (!quarantine.isWatching(nowMs)) return undefined;
      const hold = quarantine.holdOn(digestOf(request), nowMs);
      if (hold === undefined) return undefined;
      const { instanceIds, side, sinceMs, untilMs } = hold;
      const where = instanceIds.length === 1 ? `the ${side} engine` : `${instanceIds.length} ${side} engines`;
      const since = `${seconds(nowMs - sinceMs)} ago, and for another ${seconds(untilMs - nowMs)}`;
      const text = `The request was not run: the same body made ${where} fail, and was quarantined ${since}.`;
      return queryOfDeath(answerTo(hold.leg.failed), text);
    },
  };
}

export type QueryWatch = ReturnType<typeof watchQueries>;

/** How the engine failed; undefined if the failure is not the engine's, or may be another's. */
function causeOf({ code, engineAnswer }: ServiceError): "answered" | "died" | undefined {
  if (code !== "engine_failed" && code !== "kv_transfer_failed") return undefined;
  if (engineAnswer !== undefined) return "answered";
  // KV that doesn't arrive has many causes.
  return code === "engine_failed" ? "died" : undefined;
}

interface Said {
  readonly status: number;
  readonly message: string;
  readonly type: string;
}

/** The answer of the engine as its client would have got it, or words for an engine that gave none. */
function answerTo({ error: { engineAnswer }, side }: Failed): Said {
  const died = { status: 500, message: `The ${side} engine failed on the request.`, type: "InternalServerError" };
  return engineAnswer === undefined ? died : (read(engineAnswer) ?? died);
}

/** An instance keeps internal names out of it. One that lies is not believed. */
function read({ status, body }: EngineAnswer): Said | undefined {
  if (!Number.isInteger(status) || status < 500 || status > 599 || namesInternals(body)) return undefined;
  try {
    const { message, type } = (JSON.parse(body) as { error: Partial<Said> }).error;
    return typeof message === "string" && typeof type === "string" ? { status, message, type } : undefined;
  } catch {
    return undefined;
  }
}

function queryOfDeath({ status, message: words, type }: Said, more = ""): ServiceError {
  const message = more === "" ? words : `${words} (${more})`;
  const body = JSON.stringify({ error: { message, type, param: null, code: status } });
  return new ServiceError("query_of_death", message, { engineAnswer: { status, body } });
}

function seconds(ms: number): string {
  return `${Math.max(1, Math.round(ms / 1_000))} s`;
}

/** A digest of all that engines get of a request, but the form of the answer. Formatting between the fields is left out. */
function hash({ path, model, body }: RelayRequest, key: Buffer): string {
  const digest = createHmac("sha256", key).update(`${path}\n${model}\n`);
  const members = scanObject(body)
    .filter((member) => !FORM.has(member.key) && member.key !== "model")
    .sort((a, b) => (a.key < b.key ? -1 : 1));
  for (const { key: name, valueStart, valueEnd } of members) {
    digest.update(`${name.length} ${name} ${valueEnd - valueStart} `);
    digest.update(body.subarray(valueStart, valueEnd));
  }
  return digest.digest("base64");
}
