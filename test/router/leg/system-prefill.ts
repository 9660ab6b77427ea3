// Prefill's half of system.ts: its engine, the outcome that its instance keeps, and the KV on its way to decode.
import assert from "node:assert/strict";
import { Outcome } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { KnownOutcome } from "../../../services/decode/protocol.ts";
import { type OutcomeEvent, type stepOutcome, UNSEEN } from "../../../services/prefill/outcomes.ts";
import { TICKET } from "./explorer.ts";
import { type Add, answer, type Attempt, type SystemTraits } from "./system-world.ts";

const ENDS = {
  sent: { outcome: Outcome.SENT, ticket: TICKET.text },
  "nothing sent": { outcome: Outcome.NOTHING_SENT, ticket: "" },
  unknown: { outcome: Outcome.UNKNOWN, ticket: "" },
} as const;

export class PrefillHalf {
  readonly #traits: SystemTraits;
  readonly #step: typeof stepOutcome;

  constructor(traits: SystemTraits, machine: typeof stepOutcome) {
    this.#traits = traits;
    this.#step = machine;
  }

  moves(at: Attempt, add: Add): void {
    if (at.ask === "on its way") add("must", "prefill is asked", (w) => this.#asked(w));
    this.#kvMoves(at, add);
    if (at.order === "on its way") {
      add("must", "prefill gets the order", (w) => {
        w.order = "there";
        const verdict = this.#outcome(w, { kind: "arrived" });
        assert.ok(verdict === "run" || verdict === "refuse", "a leg that arrives runs or is refused");
        if (verdict === "run") w.work = "computing";
        else answer(w, "failed");
      });
      add("may", "prefill refuses the order", (w) => {
        w.order = "there";
        answer(w, "failed early");
      });
      if (!at.ordering) add("may", "the order is lost", (w) => void (w.order = "there"));
    }
    const end = (outcome: KnownOutcome, reply: Attempt["reply"]) => (w: Attempt) => this.#ends(w, outcome, reply);
    const lease = this.#traits.abandoned === "lease";
    if (at.work === "computing") {
      if (lease) add("must", "prefill keeps the KV", end("sent", "done"));
      else
        add("must", "prefill pushes the KV", (w) => {
          w.work = "pushing";
          w.kv = w.engine ? "on its way" : "lost";
        });
      add("may", "prefill's engine refuses", end("nothing sent", "failed early"));
      add("may", "prefill's engine fails, and it is known that nothing was sent", end("nothing sent", "failed"));
      add("may", "prefill's engine fails", end(lease ? "nothing sent" : "unknown", "failed"));
      if (!at.ordering && this.#traits.prefillCancellable)
        add("may", "prefill's engine is stopped", end(lease ? "nothing sent" : "unknown", "failed"));
    }
    if (at.work === "pushing") {
      const came = at.kv === "held" || at.kv === "freed";
      if (came) add("must", "prefill's KV is there", end("sent", "done"));
      else if (at.kv !== "on its way") add("must", "prefill's KV is not taken", end("unknown", "failed"));
      add("fault", "prefill's engine fails while it pushes", end("unknown", "failed"));
    }
    if (at.order !== "none" && !at.replaced)
      add("fault", "the prefill instance is replaced", (w) => {
        w.replaced = true;
        w.outcome = UNSEEN;
        w.order = "there";
        w.work = w.work === "none" ? "none" : "over";
        if (w.kv === "kept") w.kv = "gone";
        if (w.ask === "waits") w.ask = "unknown";
        answer(w, "failed");
      });
  }

  #ends(w: Attempt, outcome: KnownOutcome, reply: Attempt["reply"]): void {
    w.work = "over";
    if (outcome === "sent") {
      w.succeeded = true;
      if (this.#traits.abandoned === "lease") w.kv = "kept";
    }
    assert.equal(this.#outcome(w, { kind: "ended", ended: ENDS[outcome] }), "answer", "who waits is answered");
    if (w.ask === "waits") this.#answerAsk(w);
    answer(w, reply);
  }

  #asked(w: Attempt): void {
    const reply = this.#outcome(w, { kind: "asked" });
    if (reply === "wait") w.ask = "waits";
    else if (reply === "unknown") w.ask = w.replaced ? "unknown" : "nothing sent";
    else this.#answerAsk(w);
  }

  #answerAsk(w: Attempt): void {
    assert.ok(w.outcome.kind === "ended", "an outcome is told before there is one");
    const { outcome } = w.outcome.ended;
    w.ask = outcome === Outcome.SENT ? "sent" : outcome === Outcome.NOTHING_SENT ? "nothing sent" : "unknown";
  }

  #outcome(w: Attempt, event: OutcomeEvent): string {
    const { state, reply } = this.#step(w.outcome, event);
    w.outcome = state;
    return reply;
  }

  #kvMoves(at: Attempt, add: Add): void {
    if (at.kv !== "on its way") return;
    add("must", "the KV arrives", (w) => {
      w.kv = w.tombstone && this.#traits.abandoned === "release" ? "turned away" : "held";
    });
    add(at.work === "pushing" ? "fault" : "may", "the KV is lost", (w) => void (w.kv = "lost"));
  }
}
