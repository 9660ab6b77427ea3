// The router's half of system.ts: its machine, and what router/leg/decode-side.ts and prefill-side.ts make of their calls.
import assert from "node:assert/strict";
import { NEW } from "../../../services/decode/protocol.ts";
import type { LegEffect, LegEvent, step } from "../../../services/router/leg/protocol.ts";
import { ERROR, TICKET } from "./explorer.ts";
import { type Add, type Attempt, hangUp, type SystemTraits, tell, type ToRouter } from "./system-world.ts";

const END = { finishReason: "stop", promptTokens: 5, completionTokens: 2 } as const;

export class RouterHalf {
  readonly #traits: SystemTraits;
  readonly #step: typeof step;

  constructor(traits: SystemTraits, machine: typeof step) {
    this.#traits = traits;
    this.#step = machine;
  }

  moves(at: Attempt, add: Add): void {
    const { router } = at;
    if (router.kind === "dead") return;
    if (at.searching) {
      add("must", "an instance is found", (w) => {
        w.searching = false;
        this.route(w, { kind: "decodeFound" });
      });
      add("must", "no instance is found", (w) => {
        w.searching = false;
        this.route(w, { kind: "decodeFailed", error: ERROR });
      });
    }
    const [word] = at.toRouter;
    if (at.calling && word !== undefined) add("must", `the router hears ${word}`, (w) => this.#hear(w, word));
    if (at.ordering && at.reply !== "none")
      add("must", `the router hears that prefill ${at.reply}`, (w) => {
        const { reply } = w;
        w.ordering = false;
        w.reply = "none";
        if (reply === "done") this.route(w, { kind: "prefillDone", ticket: TICKET });
        else this.route(w, { kind: "prefillFailed", error: ERROR, nothingSent: reply === "failed early" });
      });
    if (router.kind === "ended") return;
    if (at.calling) {
      const waits = router.kind !== "settling" && router.kind !== "prefilling";
      if (waits) add("fault", "decode is silent", (w) => this.route(w, { kind: "decodeStalled", error: ERROR }));
      if (router.kind === "settling" && router.decode === "abandoned")
        add("fault", "decode doesn't end an abandoned leg", (w) => this.route(w, { kind: "settleTimeout" }));
      for (const heard of [at.toRouter, []])
        add("fault", `the decode call breaks after ${heard.length} words`, (w) => {
          hangUp(w);
          w.calling = true;
          w.toRouter = [...heard, "broken"];
        });
    }
    if (at.ordering)
      add("fault", "prefill is late, or its call breaks", (w) => {
        w.ordering = false;
        this.route(w, { kind: "prefillFailed", error: ERROR, nothingSent: false });
      });
  }

  /** What the router's side makes of decode's word: router/leg/decode-side.ts. */
  #hear(w: Attempt, word: ToRouter): void {
    w.toRouter = w.toRouter.slice(1);
    if (word === "reserved") return this.route(w, { kind: "reserved" });
    if (word === "chunk") return this.route(w, { kind: "decodeChunk" });
    const abandoned = w.router.kind === "settling" && w.router.decode === "abandoned";
    w.calling = false;
    w.toRouter = [];
    if (word === "end") this.route(w, { kind: "decodeEnd", end: END });
    else if (word === "refused") this.route(w, { kind: "decodeRefused", error: ERROR });
    else if (word === "closed" && abandoned) this.route(w, { kind: "decodeSettled" });
    else this.route(w, { kind: "decodeFailed", error: ERROR });
  }

  /** One step of the router's machine, with its effects. */
  route(w: Attempt, event: LegEvent): void {
    if (w.router.kind === "dead") return;
    const { state, effects } = this.#step(this.#traits, w.router, event);
    w.router = state;
    for (const effect of effects) this.#afterRouter(w, effect);
    const over = state.kind === "ended" || state.kind === "settling";
    assert.equal(w.finished !== "no", over, "finished exactly when the client is served");
    const answers = event.kind === "decodeChunk" || event.kind === "decodeEnd";
    if (answers && (state.kind === "streaming" || effects.some(({ kind }) => kind === "finish"))) w.delivered = true;
  }

  #afterRouter(w: Attempt, effect: LegEffect): void {
    switch (effect.kind) {
      case "seekDecode":
        w.searching = true;
        return;
      case "endSearch":
        w.searching = false;
        return;
      case "reserve":
        assert.ok(w.decode.kind === "new" || w.decode.kind === "over", "a second decode leg under one id");
        w.decode = NEW;
        w.calling = w.serving = true;
        w.toRouter = [];
        w.toDecode = effect.ticket === undefined ? ["reserve"] : ["reserve", "start"];
        return;
      case "callPrefill":
        w.ordering = true;
        w.order = "on its way";
        return;
      case "sendStart":
        return tell(w, "start");
      case "sendAbandon":
        return tell(w, effect.nothingSent ? "deny" : "abandon");
      case "cancelPrefill":
        w.ordering = false;
        return;
      case "cutDecode":
        return hangUp(w);
      case "finish":
        assert.equal(w.finished, "no", "finished twice");
        w.finished = effect.outcome.kind;
    }
  }

  dies(w: Attempt): void {
    w.router = { kind: "dead" };
    w.searching = w.ordering = false;
    hangUp(w);
  }
}
