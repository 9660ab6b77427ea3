// Decode's half of system.ts: its machine, its engine, and how it settles KV (settle.ts).
import assert from "node:assert/strict";
import type { Reserve, Start } from "#gen/tandem/decode/v1/decode_pb.js";
import type { DecodeEffect, DecodeEvent, DecodeState, KnownOutcome } from "../../../services/decode/protocol.ts";
import { ERROR, TICKET } from "./explorer.ts";
import {
  type Add,
  type Attempt,
  book,
  type Kind,
  type Machines,
  quit,
  say,
  type SystemTraits,
  type ToDecode,
} from "./system-world.ts";

const REFUSAL_LIMIT = 1;
const RESERVE: DecodeEvent = { kind: "reserve", reserve: {} as Reserve };
const BEGIN: DecodeEvent = { kind: "start", start: { ticket: TICKET.text } as Start };

export class DecodeHalf {
  readonly #traits: SystemTraits;
  readonly #machines: Pick<Machines, "decode" | "settlement">;

  constructor(traits: SystemTraits, machines: Pick<Machines, "decode" | "settlement">) {
    this.#traits = traits;
    this.#machines = machines;
  }

  moves(at: Attempt, add: Add): void {
    const serve = (kind: Kind, name: string, event: DecodeEvent): void => add(kind, name, (w) => this.#serve(w, event));
    const [word] = at.toDecode;
    if (word !== undefined) {
      add("must", `decode hears ${word}`, (w) => this.#obey(w, word));
      if (word !== "break" && at.toDecode.includes("break"))
        add("must", "decode hears of the break alone", (w) => this.#obey(w, "break"));
      if (word === "reserve" && at.refusals < REFUSAL_LIMIT)
        add("must", "decode refuses", (w) => {
          w.refusals++;
          this.#serve(w, RESERVE);
          this.#serve(w, { kind: "refused" });
          say(w, "refused");
          quit(w);
        });
    }
    const { kind } = at.decode;
    if (kind === "reserved") {
      serve("may", "the hold expires", { kind: "holdExpired" });
      serve("fault", "the router is silent", { kind: "callerSilent" });
      serve("fault", "the caller half-closes", { kind: "halfClosed" });
    }
    if (kind === "reserved" || kind === "running") {
      // Of a caller that is not our router.
      serve("fault", "the caller reserves twice", RESERVE);
      serve("fault", "the caller sends garbage", { kind: "garbled", cause: ERROR });
    }
    if (kind === "running") {
      serve("fault", "the caller starts twice", BEGIN);
      serve("fault", "the caller half-closes", { kind: "halfClosed" });
      serve("fault", "the router is silent", { kind: "callerSilent" });
    }
    if (kind === "new" && at.serving) {
      serve("fault", "the caller starts what it did not reserve", BEGIN);
      serve("fault", "the caller abandons what it did not reserve", { kind: "abandon", nothingSent: false });
      serve("fault", "the caller half-closes", { kind: "halfClosed" });
      serve("fault", "the caller sends garbage", { kind: "garbled", cause: ERROR });
    }
    if (kind !== "new") serve("fault", "the instance stops", { kind: "stopping" });
    if (word === "start" && kind === "reserved")
      add("fault", "the ticket doesn't fit", (w) => {
        this.#obey(w, "start");
        w.job = "none";
        this.#serve(w, { kind: "notStarted", error: ERROR });
      });
    this.#jobMoves(at, add);
    this.#settlementMoves(at, add);
    if (at.engine && kind !== "new") add("fault", "the decode engine is replaced", (w) => this.#engineDies(w));
  }

  #jobMoves(at: Attempt, add: Add): void {
    const fail = (w: Attempt, untouched: boolean): void => {
      w.job = "none";
      this.#serve(w, { kind: "answerFailed", error: ERROR, untouched });
    };
    if (at.job === "none") return;
    if (at.job === "waits") {
      const ready = at.kv === "held" || at.kv === "kept" || this.#traits.unpaired === true;
      if (!ready) add("must", "the engine finds no KV", (w) => fail(w, false));
      else
        add("must", "the engine takes the KV", (w) => {
          w.job = "took";
          if (w.kv === "held") w.kv = "taken";
          assert.ok(w.settlement === "none", "the KV of a settled leg is taken");
        });
      add("fault", "the engine fails before it looks for the KV", (w) => fail(w, true));
    }
    if (at.job === "took")
      add("must", "the engine shows a token", (w) => {
        w.job = "answers";
        this.#serve(w, { kind: "tookKv" });
        if (w.job === "answers") say(w, "chunk");
      });
    if (at.job === "answers")
      add("must", "the engine ends its answer", (w) => {
        w.job = "none";
        say(w, "end");
        this.#serve(w, { kind: "answerEnded" });
      });
    if (at.job === "took" && at.decode.kind === "discarding")
      add("may", "the engine ends its answer without a token", (w) => {
        w.job = "none";
        this.#serve(w, { kind: "answerEnded" });
      });
    add("fault", "the engine fails", (w) => fail(w, false));
    if (at.decode.kind === "running")
      add("fault", "the engine forgets it", (w) => this.#serve(w, { kind: "stuck", error: ERROR }));
  }

  #obey(w: Attempt, word: ToDecode): void {
    w.toDecode = word === "break" ? [] : w.toDecode.slice(1);
    if (word === "break") {
      w.serving = false;
      this.#serve(w, { kind: "callBroken" });
    } else if (word === "reserve") {
      this.#serve(w, RESERVE);
      assert.equal(w.decode.kind, "reserved", "a granted slot is held");
      say(w, "reserved");
    } else if (word === "start") this.#serve(w, BEGIN);
    else this.#serve(w, { kind: "abandon", nothingSent: word === "deny" });
  }

  /** One step of decode's machine, with its effects. */
  #serve(w: Attempt, event: DecodeEvent): void {
    const from = w.decode;
    const before = from.kind;
    const { state, effects } = this.#machines.decode(this.#traits, w.decode, event);
    w.decode = state;
    this.#checkObeyed(from, event, state);
    assert.equal(
      effects.some(({ kind }) => kind === "discard"),
      state.kind === "discarding" && before !== "discarding",
      "an answer that is discarded is read on",
    );
    const mayDrain = event.kind === "notStarted" || (event.kind === "answerFailed" && event.untouched);
    for (const effect of effects) this.#afterDecode(w, effect, mayDrain);
    const { kind } = state;
    const forgot = effects.some((effect) => effect.kind === "forget");
    if (before !== "new" && event.kind !== "refused")
      assert.equal(forgot, kind === "over" && before !== "over", "its slot is free exactly when it is over");
    if (kind === "settling") assert.notEqual(w.settlement, "none", "nothing settles it");
    const runs = kind === "running" || kind === "discarding";
    assert.equal(w.job !== "none", runs, "the engine has the request exactly while the leg runs");
    if (kind === "discarding" || kind === "settling" || kind === "over")
      assert.ok(!w.serving || event.kind === "refused", "the call stays open");
  }

  #checkObeyed(from: DecodeState, event: DecodeEvent, to: DecodeState): void {
    if (from.kind === "over" || from.kind === "settling") {
      const ends = from.kind === "settling" && event.kind === "settled";
      return assert.equal(to.kind, ends ? "over" : from.kind, "what is over stays so");
    }
    const goesOn = to.kind === "new" || to.kind === "reserved" || to.kind === "running";
    const tookKv = from.kind === "running" && from.tookKv;
    if (tookKv) assert.ok(goesOn || to.kind === "over", "KV that was taken is settled");
    const alwaysObeyed = ["garbled", "callBroken", "holdExpired", "abandon", "engineChanged", "notStarted"];
    const isMisused =
      (event.kind === "reserve" && from.kind !== "new") ||
      (event.kind === "start" && from.kind !== "reserved") ||
      ((event.kind === "halfClosed" || event.kind === "callerSilent") && from.kind !== "running");
    const ends = [...alwaysObeyed, "stuck", "stopping", "answerEnded", "answerFailed"].includes(event.kind);
    if (isMisused || ends) assert.ok(!goesOn, `${event.kind} is obeyed`);
    else if (from.kind === "running") assert.equal(to.kind, "running", `${event.kind} ends no answer`);
    if (from.kind === "discarding" && (event.kind === "tookKv" || event.kind === "stopping"))
      assert.notEqual(to.kind, "discarding", `${event.kind} ends what is discarded`);
    if (event.kind === "engineChanged" || (event.kind === "abandon" && event.nothingSent && from.kind === "reserved"))
      assert.equal(to.kind, "over", "nothing is settled where nothing is");
    const mustDrain = from.kind === "running" && !tookKv && this.#traits.abandoned === "drain";
    if (mustDrain && !goesOn && ["stuck", "abandon", "callBroken", "garbled", "reserve", "start"].includes(event.kind))
      assert.equal(to.kind, "discarding", "KV that only the engine can drop is taken first");
  }

  #afterDecode(w: Attempt, effect: DecodeEffect, mayDrain: boolean): void {
    switch (effect.kind) {
      case "run":
        assert.ok(w.succeeded || this.#traits.unpaired === true, "start without prefill success");
        w.job = "waits";
        return;
      case "discard":
        assert.ok(w.job === "waits" || w.job === "took", "an answer goes on for nothing");
        return;
      case "stopRun":
        assert.notEqual(w.job, "none", "a run is stopped that is over");
        w.job = "none";
        return;
      case "settle":
        this.#settle(w, effect.ticket, effect.maybeTaken);
        // What may be freed is not booked: an engine restarts for debt.
        if (mayDrain && w.engine && this.#traits.abandoned === "drain")
          assert.equal(w.settlement, "frees", "KV that could be drained is booked");
        return;
      case "endCall":
        say(w, "closed");
        return quit(w);
      case "failCall":
        say(w, "failed");
        return quit(w);
      default:
    }
  }

  #settle(w: Attempt, ticket: string | undefined, maybeTaken: boolean): void {
    assert.equal(w.settlement, "none", "it is settled twice");
    if (ticket === undefined) assert.ok(!maybeTaken, "KV is taken by an engine that was not asked");
    w.maybeTaken = maybeTaken;
    // As settle.ts does: a lease and a dead engine need nothing.
    if (this.#traits.abandoned === "lease" || !w.engine) w.settlement = "done";
    else if (ticket !== undefined) this.#decide(w, "sent");
    else {
      w.settlement = "asks";
      w.ask = "on its way";
    }
  }

  #decide(w: Attempt, outcome: KnownOutcome): void {
    w.ask = "none";
    const wanted = this.#machines.settlement(this.#traits, outcome, w.maybeTaken);
    assert.equal(wanted === "nothing", outcome === "nothing sent", "settled exactly where KV may be");
    const freed = this.#traits.abandoned === "release" || (outcome === "sent" && !w.maybeTaken);
    if (wanted !== "nothing") assert.equal(wanted, freed ? "free" : "book", "booked exactly where nothing frees");
    if (wanted === "book") book(w);
    else w.settlement = wanted === "free" ? "frees" : "done";
  }

  #settlementMoves(at: Attempt, add: Add): void {
    if (at.ask === "on its way" || at.ask === "waits")
      add("fault", "the question to prefill is lost", (w) => void (w.ask = "unknown"));
    const { ask } = at;
    if (ask === "sent" || ask === "nothing sent" || ask === "unknown")
      add("must", `decode hears that ${ask}`, (w) => this.#decide(w, ask));
    if (at.settlement === "frees") {
      add("must", "the engine frees the KV", (w) => {
        if (this.#traits.abandoned === "drain") assert.equal(w.kv, "held", "a drain waits for KV that isn't there");
        if (w.kv === "held") w.kv = "freed";
        w.tombstone = true;
        w.settlement = "done";
      });
      add("fault", "the engine doesn't free the KV", book);
    }
    if (at.settlement === "done" && at.decode.kind === "settling")
      add("must", "it is settled", (w) => this.#serve(w, { kind: "settled" }));
  }

  #engineDies(w: Attempt): void {
    w.engine = false;
    w.debt = false;
    if (w.kv === "held" || w.kv === "on its way") w.kv = "gone";
    const ran = w.job !== "none";
    w.job = "none";
    if (w.decode.kind === "settling") w.settlement = "done";
    w.ask = "none";
    if (ran) this.#serve(w, { kind: "answerFailed", error: ERROR, untouched: true });
    else if (w.decode.kind === "reserved") this.#serve(w, { kind: "engineChanged" });
  }

  dies(w: Attempt): void {
    if (w.decode.kind === "new" && !w.serving) return;
    w.engine = w.debt = w.serving = false;
    if (w.kv === "held" || w.kv === "on its way") w.kv = "gone";
    w.job = w.settlement = w.ask = "none";
    w.decode = { kind: "over" };
    w.toDecode = [];
    if (w.calling) w.toRouter = [...w.toRouter, "broken"];
  }
}
