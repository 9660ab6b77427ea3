// PrefillService: one leg is one request to the engine, whose one token is dropped and whose KV cache is transferred.
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  Outcome,
  PrefillService,
  type PrefillRequest,
  type PrefillResponseSchema,
} from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError, ServiceError } from "../common/errors.ts";
import { onceAborted } from "../common/lifecycle.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { engineFailure, refusalOf } from "../engine/engine-error.ts";
import { neverReached } from "../engine/http.ts";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { admitLeg, estimatePromptTokens } from "../instance/leg-request.ts";
import type { EngineRequest, LegSpec } from "../kv/connector.ts";
import { KV_ADDRESS } from "../kv/p2p.ts";
import { defineService, type CallContext } from "../rpc/service.ts";
import type { PrefillConfig } from "./config.ts";
import { Outcomes, type PrefillOutcome } from "./outcomes.ts";
import { Partners } from "./partners.ts";
import { PromptAccount } from "./prompt-account.ts";
import { PromptPace } from "./prompt-pace.ts";

type Answer = MessageInitShape<typeof PrefillResponseSchema>;
type LegEnd = PrefillOutcome & ({ readonly answer: Answer } | { readonly error: ServiceError });

interface Leg {
  readonly engine: LiveEngine;
  readonly spec: LegSpec;
  readonly request: EngineRequest;
}

/** A prefill engine answers with one token and at most some KV parameters. */
const ANSWER_LIMIT_BYTES = 16 * 1024 * 1024;

export function prefillService(parts: InstanceParts, limits: PrefillConfig["outcomes"]): RoleService {
  const { connector, status, log, clock } = parts;
  const { traits } = connector;
  const outcomes = new Outcomes(limits, clock);
  const running = new Set<AbortController>();
  const account = new PromptAccount(clock);
  const pace = new PromptPace(clock);
  const lost = (decodeKvAddress: string): void => {
    log.error("a decode engine died with KV on its way to it, which may wedge this prefill engine", {
      decodeKvAddress,
    });
    parts.supervisor.look();
  };
  const partners = traits.wedgedByPartner ? new Partners({ clock, lost }) : undefined;

  async function prefill(request: PrefillRequest, { signal: gone }: CallContext): Promise<Answer> {
    const { legId, decodeKvAddress } = request;
    if (KV_ADDRESS.test(decodeKvAddress) && (await partners?.isClosed(decodeKvAddress)))
      throw new ServiceError("kv_transfer_failed", "The decode engine is gone, so no KV was sent to it.");
    const { engine, spec } = admitLeg(parts, "prefill", request, 0);
    const leg = { engine, spec, request: connector.prefillRequest(spec) };
    if (outcomes.has(legId)) {
      throw new ServiceError("leg_id_reused", "The leg id was used before. Retry with a fresh one.");
    }
    const queuedTokens = estimatePromptTokens(spec);
    status.count({ running: 1, queuedTokens });
    const leaving = new AbortController();
    running.add(leaving);
    const legEnded = partners?.legBegan(decodeKvAddress);
    const work = run(leg, leaving.signal).finally(() => {
      legEnded?.();
      running.delete(leaving);
      status.count({ running: -1, queuedTokens: -queuedTokens });
    });
    // From here on the id counts as used, however the leg ends.
    outcomes.add(
      legId,
      work.then((ended) => finalOutcome(engine, ended)),
    );
    // The engine's run and the caller's answer part here: a caller that leaves does not end a leg that can't be ended,
    // and the leg's outcome is kept for the decode instance to ask for.
    const ended = await Promise.race([work, onceAborted(gone)]);
    if (ended === undefined) {
      if (traits.prefillCancellable) leaving.abort(new ServiceError("cancelled", "The caller left."));
      throw asServiceError(gone.reason);
    }
    if ("error" in ended) throw ended.error;
    return ended.answer;
  }

  /** The caller has its answer by now; what was sent may take a moment longer to find out. Never rejects. */
  async function finalOutcome(engine: LiveEngine, { outcome, ticket }: LegEnd): Promise<PrefillOutcome> {
    // Where KV can be released without knowing whether any came, it need not be known.
    const matters = outcome === Outcome.UNKNOWN && traits.abandoned === "drain";
    if (!matters || !(await account.computedNothing(engine))) return { outcome, ticket };
    return { outcome: Outcome.NOTHING_SENT, ticket };
  }

  /** Never rejects. */
  async function run({ engine, spec, request }: Leg, leaving: AbortSignal): Promise<LegEnd> {
    const startedMs = clock.nowMs();
    const { legId, prefillKvAddress, decodeKvAddress } = spec;
    // With a lease nothing is pushed: any KV that was kept frees itself and needs no settling.
    let outcome = traits.abandoned === "lease" ? Outcome.NOTHING_SENT : Outcome.UNKNOWN;
    let answeredTokens = 0;
    let computedTokens = 0;
    account.began();
    pace.began();
    try {
      const answered = await engine.http
        .fetch(
          { method: "POST", ...request, repeatable: !traits.pairedId },
          { limitBytes: ANSWER_LIMIT_BYTES, signal: leaving },
        )
        .catch((cause: Error) => {
          if (cause instanceof ServiceError) throw cause;
          parts.supervisor.suspect(engine);
          if (!neverReached(cause)) throw engineFailure("prefill", cause);
          outcome = Outcome.NOTHING_SENT;
          throw new ServiceError("instance_unavailable", "The instance's engine is gone.", { cause });
        });
      if (answered.status !== 200) {
        const internal = [request.headers["x-request-id"] ?? "", legId, prefillKvAddress, decodeKvAddress];
        const refusal = refusalOf(answered.status, answered.body, { leg: "prefill", internal });
        if (refusal.code === "engine_failed") parts.supervisor.suspect(engine);
        // A refused request never ran; one that failed may have pushed some layers, as far as is known here.
        else if (refusal.code !== "kv_transfer_failed") outcome = Outcome.NOTHING_SENT;
        throw refusal;
      }
      const parsed = JSON.parse(answered.body.toString("utf8")) as EngineAnswer;
      const ticket = connector.ticket(parsed);
      const figures = figuresOf(parsed);
      answeredTokens = figures.promptTokens;
      const engineMs = clock.nowMs() - startedMs;
      computedTokens = answeredTokens - (figures.cachedTokens ?? 0);
      const answer = { ticket, ...figures, engineMs };
      outcome = Outcome.SENT;
      return { outcome, ticket, answer };
    } catch (error) {
      return {
        outcome,
        ticket: "",
        error: error instanceof ServiceError ? error : engineFailure("prefill", error as Error),
      };
    } finally {
      account.ended(answeredTokens);
      pace.ended(computedTokens);
      log.debug("prefill leg ended", { legId, outcome: Outcome[outcome], ms: clock.nowMs() - startedMs });
    }
  }

  return {
    rpc: defineService(
      PrefillService,
      {
        prefill,
        async getOutcome({ legId }, { signal }) {
          const ended = await Promise.race([outcomes.of(legId), onceAborted(signal)]);
          if (signal.aborted) throw asServiceError(signal.reason);
          if (ended === undefined) throw new ServiceError("not_found", "This instance doesn't know the leg.");
          return ended;
        },
      },
      { access: "token" },
    ),
    engineWork: () => ({ partnerIsGone: partners?.anyGone ?? false, legTokensPerMs: pace.tokensPerMs }),
    engineChanged: (live) => account.engineChanged(live),
    abortLegs() {
      const error = new ServiceError("instance_unavailable", "The instance is stopping.");
      partners?.[Symbol.dispose]();
      for (const leaving of running) leaving.abort(error);
    },
  };
}

/** The part of vLLM's answer that is read. Only Tandem's own engines report `kv_bytes`. */
interface EngineAnswer {
  readonly kv_transfer_params?: { readonly kv_bytes?: unknown } | null;
  readonly usage?: {
    readonly prompt_tokens?: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
  };
  readonly choices?: readonly { readonly logprobs?: { readonly token_logprobs?: readonly unknown[] } | null }[];
}

function figuresOf({
  usage,
  kv_transfer_params: kv,
  choices,
}: EngineAnswer): Answer & { readonly promptTokens: number } {
  const cachedTokens = usage?.prompt_tokens_details?.cached_tokens;
  const kvBytes = kv?.kv_bytes;
  // Only in the answer to a request that asked for logprobs, as a probe does.
  const firstLogprob = choices?.[0]?.logprobs?.token_logprobs?.[0];
  return {
    promptTokens: usage?.prompt_tokens ?? 0,
    ...(typeof cachedTokens === "number" ? { cachedTokens } : {}),
    ...(Number.isSafeInteger(kvBytes) ? { kvBytes: BigInt(kvBytes as number) } : {}),
    ...(typeof firstLogprob === "number" ? { firstLogprob } : {}),
  };
}
