// The prefill side of one attempt: one order with its own bound. The bound also applies while the leg settles, because a
// prefill that can't be cancelled goes on after the answer was given up.
import type { Deadline } from "../../common/deadlines.ts";
import type { ServiceError } from "../../common/errors.ts";
import type { Instance } from "../pool/pool.ts";
import { estimateTokens } from "../request/request.ts";
import { prefillBoundMs, setUpMs, stalled, strainMs, timeLeftMs, waitFor, type Wait } from "./bounds.ts";
import type { LegContext, LegTask, SideOwner } from "./context.ts";
import type { PrefillAnswer, PrefillListener, RemotePrefill } from "./instance-link.ts";
import { fromInstance, sentNothing } from "./verdict.ts";

interface Running {
  readonly prefill: Instance;
  readonly remote: RemotePrefill;
  readonly due: Deadline;
  /** Tokens of this prompt and of those before it. */
  readonly tokens: number;
  readonly sinceMs: number;
  /** Extra time for the first transfer of the two. */
  readonly firstMs: number;
}

export class PrefillSide implements PrefillListener {
  /** Log probability of the token that prefill wrote, if its engine reports it. */
  firstLogprob: number | undefined;
  readonly #context: LegContext;
  readonly #task: LegTask;
  readonly #owner: SideOwner;
  #running: Running | undefined;

  constructor(context: LegContext, task: LegTask, owner: SideOwner) {
    this.#context = context;
    this.#task = task;
    this.#owner = owner;
  }

  call(): void {
    const { request, draft, promptIndex, decode } = this.#task;
    const { limits, clock, deadlines, linkTo, books } = this.#context;
    const prefill = this.#task.prefill!;
    const nowMs = clock.nowMs();
    const waitingTokens = (prefill.load?.queuedTokens ?? 0) + prefill.placedTokens;
    // After a load report since the reservation, the prompt may no longer be among the waiting tokens.
    const tokens = Math.max(waitingTokens, estimateTokens(request));
    // If decode is already picked, prefill pushes its KV there within this call.
    const firstMs = decode === undefined ? 0 : setUpMs(books, prefill, decode);
    const boundMs = prefillBoundMs(limits.current, prefill, tokens) + firstMs + strainMs(this.#context, prefill);
    const remote = linkTo(prefill).prefill(
      {
        legId: draft.legId,
        path: request.path,
        body: request.body,
        promptIndex,
        // Decode gets the same two addresses.
        prefillKvAddress: decode === undefined ? "" : prefill.info.kvAddress,
        decodeKvAddress: decode?.info.kvAddress ?? "",
        timeoutMs: timeLeftMs(request, nowMs),
      },
      this,
    );
    const due = deadlines.at(nowMs + boundMs, () => this.#late(boundMs));
    this.#running = { prefill, remote, tokens, due, sinceMs: nowMs, firstMs };
  }

  /** Undefined while no order runs. */
  get wait(): Wait | undefined {
    const running = this.#running;
    return running === undefined ? undefined : waitFor(this.#context, "prefill", running.prefill, running);
  }

  cancel(): void {
    this.#over()?.remote.cancel();
  }

  onDone({ ticket, promptTokens, kvBytes, firstLogprob }: PrefillAnswer): void {
    const { draft } = this.#task;
    const { prefill, tokens, firstMs } = this.#over()!;
    const { cachedTokens } = ticket;
    this.firstLogprob = firstLogprob;
    draft.promptTokens = promptTokens;
    if (cachedTokens !== undefined) draft.cachedTokens = cachedTokens;
    if (kvBytes !== undefined) {
      draft.kvBytes = kvBytes;
      this.#context.metrics.kvBytes(kvBytes);
    }
    this.#owner.dispatch({ kind: "prefillDone", ticket });
    const { books, paces, clock } = this.#context;
    const pace = paces.of(prefill);
    const { prefillMs } = draft;
    pace.movedAtMs = clock.nowMs();
    if (firstMs === 0 && prefill.tokensPerMs > 0) pace.cameFirst(prefillMs - tokens / prefill.tokensPerMs);
    // Cached tokens cost nothing, and would make the instance look faster than it is.
    if (cachedTokens !== undefined && cachedTokens * 2 >= promptTokens) return;
    books.prefilled(prefill, tokens, prefillMs);
    pace.prefilled(tokens, prefillMs);
  }

  onFailed(failure: ServiceError): void {
    this.#over();
    this.#failed(fromInstance(failure, "prefill"));
  }

  #late(boundMs: number): void {
    this.cancel();
    this.#failed(stalled("prefill", boundMs, this.#owner.where()));
  }

  #failed(error: ServiceError): void {
    this.#owner.dispatch({ kind: "prefillFailed", error, nothingSent: sentNothing(error) });
  }

  #over(): Running | undefined {
    const running = this.#running;
    this.#running = undefined;
    running?.due.cancel();
    return running;
  }
}
