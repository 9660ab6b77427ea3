// A probe is a tiny request of the router's own through one pair, over the same legs as users' requests and in the same
// order. It finds out whether the pair works and whether decode really answers from the KV that prefill sent. Prefill
// computes the whole prompt and writes one token that no client sees. Decode's first token is compared with that token
// by log probability and not by text, because on a GPU numbers differ a little with the batch, and ties fall either
// way. Seen on vLLM 0.23, bfloat16: 0.12 at most if all is well, 0.27 and more if decode answers from KV that it never
// loaded. Prompts are random token ids, so that a cache hit can't hide a failed transfer.
import { randomInt } from "node:crypto";
import { ServiceError } from "../../common/errors.ts";
import { traitsOf } from "../../kv/index.ts";
import type { Books, LegContext } from "../leg/context.ts";
import { Paces } from "../leg/paces.ts";
import { LegRun, type LegOwner } from "../leg/run.ts";
import type { Instance, ProbeFailure } from "../pool/pool.ts";
import { LegDraft } from "../request/receipt.ts";
import type { RelayRequest } from "../request/request.ts";

export type ProbeResult =
  | { readonly kind: "right"; readonly worstDelta: number; readonly ms: number }
  /** The probe succeeded, but can't be judged because the engines report no log probabilities. */
  | { readonly kind: "unjudged"; readonly ms: number }
  | { readonly kind: "failed"; readonly failure: ProbeFailure; readonly text: string };

export interface ProbeOptions {
  /** One prompt may look right by chance: garbage from a small model is sometimes close to the right answer. */
  readonly prompts: number;
  /** Timeout for all prompts together. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
}

export type Prober = ReturnType<typeof createProber>;

/** Longer than a KV block, so that KV moves. */
const PROMPT_TOKENS = 160;
/** Range of ids that every vocabulary has, above the special tokens of most. */
const TOKEN_IDS = [10, 240] as const;
const TOLERANCE = 0.2;
const TOLERANCE_FLOAT32 = 0.01;

/** @param context The context of users' legs. */
export function createProber(context: LegContext) {
  const { clock, limits, deadlines } = context;
  const live = new Set<LegRun>();
  // The sender books a probe's result once. Users' figures exclude probes.
  const books: Books = {
    legStarted: (instance, tokens) => context.books.legStarted(instance, tokens),
    legEnded: (instance) => context.books.legEnded(instance, "none"),
    outrun() {},
    pairEnded() {},
    isWarm: (prefill, decode) => context.books.isWarm(prefill, decode),
    prefilled() {},
  };
  const paces = new Paces();
  const metrics: LegContext["metrics"] = { leg() {}, completed() {}, kvBytes() {}, interTokenMs() {} };

  /** The difference between the two log probabilities; undefined if an engine doesn't report its own. */
  function once(
    prefill: Instance,
    decode: Instance,
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<number | undefined> {
    const traits = traitsOf(prefill.info.connector)!;
    const draft = new LegDraft(0);
    const request = requestThrough(prefill, decode, draft.legId);
    return new Promise((resolve, reject) => {
      const answer: Buffer[] = [];
      const owner: LegOwner = {
        began() {},
        deliver(events) {
          answer.push(Buffer.from(events));
          return true;
        },
        findDecode(found, refusal) {
          if (refusal === undefined) found.decodeFound(decode);
          else found.noDecode(refusal);
        },
        endSearch() {},
        finished(ended, outcome) {
          late.cancel();
          signal?.removeEventListener("abort", onAbort);
          if (outcome.kind === "completed") resolve(deltaOf(ended.prefillLogprob, Buffer.concat(answer)));
          else reject(outcome.kind === "failed" ? outcome.error : givenUp);
        },
      };
      const prefillTimeoutMs = Math.min(limits.current.prefillTimeoutMs, timeoutMs);
      let givenUp = new ServiceError("cancelled", "The probe was given up.");
      const leg = new LegRun(
        {
          ...context,
          books,
          paces,
          metrics,
          limits: { current: { ...limits.current, prefillTimeoutMs, prefillSlack: 0 } },
        },
        {
          request,
          draft,
          promptIndex: undefined,
          sampleIndex: 0,
          traits,
          prefill,
          decode: traits.decodeFirst ? decode : undefined,
        },
        owner,
      );
      const onAbort = (): void => leg.unwanted();
      const late = deadlines.at(clock.nowMs() + timeoutMs, () => {
        const where = leg.where();
        givenUp = new ServiceError(
          "leg_stalled",
          `The probe did not end within ${(timeoutMs / 1_000).toFixed(1)} s (${where}).`,
        );
        leg.unwanted();
      });
      signal?.addEventListener("abort", onAbort, { once: true });
      live.add(leg);
      leg.begin();
    });
  }

  return {
    /** Never rejects. Books only the legs of the two; the caller books the result. */
    async probe(
      prefill: Instance,
      decode: Instance,
      { prompts, timeoutMs, signal }: ProbeOptions,
    ): Promise<ProbeResult> {
      const startMs = clock.nowMs();
      let worstDelta: number | undefined;
      try {
        for (let count = 0; count < prompts; count += 1) {
          const leftMs = Math.max(1, startMs + timeoutMs - clock.nowMs());
          const delta = await once(prefill, decode, leftMs, signal);
          if (delta !== undefined) worstDelta = Math.max(worstDelta ?? 0, delta);
        }
      } catch (thrown) {
        const { code, message } = thrown as ServiceError;
        const failure = code === "leg_stalled" ? "late" : "refused";
        return { kind: "failed", failure, text: `The last probe failed: ${message}` };
      }
      const ms = clock.nowMs() - startMs;
      if (worstDelta === undefined) return { kind: "unjudged", ms };
      const exact = decode.info.dtype === "float32" && prefill.info.dtype === "float32";
      const tolerance = exact ? TOLERANCE_FLOAT32 : TOLERANCE;
      if (worstDelta <= tolerance) return { kind: "right", worstDelta, ms };
      const text =
        `Decode's first token is off by ${worstDelta.toFixed(3)} in log probability (up to ${tolerance} is noise): ` +
        "it does not answer from the KV it was sent.";
      return { kind: "failed", failure: "wrong", text };
    },
    /** Legs of probes through the two that have not ended, settling of KV included. */
    unsettled(prefill: Instance, decode: Instance): number {
      let count = 0;
      for (const leg of live) {
        if (leg.ended) live.delete(leg);
        // A leg without a decode instance yet counts for every pair of its prefill instance.
        else if (leg.task.prefill === prefill && (leg.decode === undefined || leg.decode === decode)) count += 1;
      }
      return count;
    },
  };
}

function requestThrough(prefill: Instance, decode: Instance, legId: string): RelayRequest {
  const longest = Math.min(...[prefill, decode].map(({ info }) => info.maxModelLen || Infinity));
  const length = Math.max(1, Math.min(PROMPT_TOKENS, Math.floor(longest / 2)));
  const prompt = Array.from({ length }, () => randomInt(...TOKEN_IDS));
  const { model } = prefill.info;
  return {
    id: `probe-${legId}`,
    path: "/v1/completions",
    model,
    body: Buffer.from(JSON.stringify({ model, prompt, max_tokens: 1, temperature: 0, logprobs: 1 })),
    stream: false,
    choices: 1,
    maxTokens: 1,
    prompts: 1,
    promptIsList: false,
    includeUsage: false,
    createdUnixS: 1,
    probe: true,
  };
}

function deltaOf(own: number | undefined, answer: Buffer): number | undefined {
  type Answer = { choices?: { logprobs?: { token_logprobs?: unknown[] } | null }[] };
  try {
    const first = (JSON.parse(answer.toString()) as Answer).choices?.[0]?.logprobs?.token_logprobs?.[0];
    return own === undefined || typeof first !== "number" ? undefined : Math.abs(own - first);
  } catch {
    return undefined;
  }
}
