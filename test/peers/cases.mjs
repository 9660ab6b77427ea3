// The faults. Each case sends eight clients at once, half of which meet the faulty engine, and then eight more while the
// fault stands.
import { setTimeout as sleep } from "node:timers/promises";
import { atOnce, send, steady, summary } from "./clients.mjs";

const LIMIT_MS = 12_000;
/** Where an engine stalls while /health says 200. */
const STALL_LIMIT_MS = 40_000;
/** After which prompts are being computed, and none is done. */
const MID_PREFILL_MS = 120;
/** After which an engine that was killed is gone; shorter than any poll. */
const GONE_MS = 200;
/** Streams of 2 s. */
const LONG = 200;
const REPAIR_LIMIT_MS = 20_000;
const SETTLE_MS = 3_000;
const REFUSE = { kind: "refuse", status: 500 };

const of = (fleet, role) => fleet.engines().filter((one) => one.role === role);
const [first, both] = [(fleet, role) => of(fleet, role)[0], of];
const ended = (calls) => Promise.all(calls.map((call) => call.ended));
const streaming = (calls) => Promise.all(calls.map((call) => call.begun));

/** What becomes of eight requests, when `strike` happens before them. */
async function onArrival(fleet, strike, limitMs = LIMIT_MS) {
  await strike();
  await sleep(GONE_MS);
  return ended(atOnce(fleet.url, 8, { limitMs }));
}

async function inPrefill(fleet, strike, limitMs = LIMIT_MS) {
  const calls = atOnce(fleet.url, 8, { limitMs });
  await sleep(MID_PREFILL_MS);
  await strike();
  return ended(calls);
}

async function inStream(fleet, strike, limitMs = LIMIT_MS) {
  const calls = atOnce(fleet.url, 8, { limitMs, tokens: LONG });
  await streaming(calls);
  await strike();
  return ended(calls);
}

/** Seconds from `repair` until eight of eight are answered. */
async function untilAllOk(fleet, repair) {
  await repair();
  const startMs = performance.now();
  while (performance.now() - startMs < REPAIR_LIMIT_MS) {
    const results = await ended(atOnce(fleet.url, 8, { limitMs: LIMIT_MS }));
    const atMs = Math.min(...results.map(({ ms }) => ms));
    if (results.every(({ outcome }) => outcome === "ok"))
      return `${((performance.now() - startMs - atMs) / 1000).toFixed(1)} s`;
    await sleep(100);
  }
  return `> ${REPAIR_LIMIT_MS / 1000} s`;
}

/** KV and work that nobody will take, after a while. */
async function leftovers(fleet) {
  await sleep(SETTLE_MS);
  const states = (await fleet.states()).filter((state) => state !== undefined);
  const sum = (count) => states.reduce((total, state) => total + count(state), 0);
  const [orphans, busy] = [sum((state) => state.kv_orphans), sum((state) => state.running + state.waiting)];
  return [...(orphans > 0 ? [`${orphans} KV orphans`] : []), ...(busy > 0 ? [`${busy} still run in engines`] : [])];
}

async function leave(calls, ready) {
  await ready;
  for (const call of calls) call.leave();
  return ended(calls);
}

/** Each `run` gives the results; `repair` ends the fault, after which is measured; `victims`: engines that end by the fault. */
const each = {
  "no fault": { run: (f) => onArrival(f, async () => {}) },
  "P killed in mid-prefill": { victims: 1, run: (f) => inPrefill(f, () => f.kill(first(f, "prefill"))) },
  "D killed in mid-stream": { victims: 1, run: (f) => inStream(f, () => f.kill(first(f, "decode"))) },
  "D killed while P prefills": { victims: 1, run: (f) => inPrefill(f, () => f.kill(first(f, "decode"))) },
  "D dead on arrival": { victims: 1, run: (f) => onArrival(f, () => f.kill(first(f, "decode"))) },
  "P dead on arrival": { victims: 1, run: (f) => onArrival(f, () => f.kill(first(f, "prefill"))) },
  "one P answers 500": { run: (f) => onArrival(f, () => f.fail(first(f, "prefill"), REFUSE)) },
  "one D answers 500": { run: (f) => onArrival(f, () => f.fail(first(f, "decode"), REFUSE)) },
  "all P answer 500": {
    run: (f) => onArrival(f, () => Promise.all(both(f, "prefill").map((one) => f.fail(one, REFUSE)))),
    repair: (f) => Promise.all(both(f, "prefill").map((one) => f.heal(one))),
  },
  "all P dead": {
    victims: 2,
    run: (f) => onArrival(f, () => both(f, "prefill").forEach((one) => f.kill(one))),
    repair: (f) => f.restart(),
  },
  "one D never answers (stopped)": { run: (f) => onArrival(f, () => f.kill(first(f, "decode"), "SIGSTOP")) },
  "one P never answers (stopped)": { run: (f) => onArrival(f, () => f.kill(first(f, "prefill"), "SIGSTOP")) },
  "one D accepts and stalls, /health 200": {
    run: (f) => onArrival(f, () => f.fail(first(f, "decode"), { kind: "hang" }), STALL_LIMIT_MS),
  },
  "one P accepts and stalls, /health 200": {
    run: (f) => onArrival(f, () => f.fail(first(f, "prefill"), { kind: "hang" }), STALL_LIMIT_MS),
  },
  "D stalls in mid-stream, /health 200": {
    run: (f) => inStream(f, () => f.fail(first(f, "decode"), { kind: "hang" }), STALL_LIMIT_MS),
  },
  "clients leave in prefill": {
    run: (f) => leave(atOnce(f.url, 8, { limitMs: LIMIT_MS, tokens: LONG }), sleep(MID_PREFILL_MS)),
  },
  "clients leave in mid-stream": {
    run: (f) => {
      const calls = atOnce(f.url, 8, { limitMs: LIMIT_MS, tokens: LONG * 5 });
      return leave(calls, streaming(calls));
    },
  },
  "engine of one D drains and ends, 8 steady clients": {
    victims: 1,
    run: async (f) => {
      const load = steady(f.url, 8, 6_000, { limitMs: LIMIT_MS });
      await sleep(1_500);
      f.kill(first(f, "decode"), "SIGTERM");
      return load;
    },
  },
  "D killed under 24 steady clients": {
    victims: 1,
    run: async (f) => {
      const load = steady(f.url, 24, 6_000, { limitMs: LIMIT_MS });
      await sleep(1_500);
      f.kill(first(f, "decode"));
      return load;
    },
  },
  "one poisonous body beside eight": {
    run: async (f) => {
      const poison = send(f.url, { limitMs: LIMIT_MS, prompt: "a poison pill in a long text" });
      const results = await ended(atOnce(f.url, 8, { limitMs: LIMIT_MS }));
      const { outcome } = await poison.ended;
      return [...results, { outcome: `${outcome} (the poison)`, ms: (await poison.ended).ms }];
    },
  },
};
export const CASES = Object.entries(each).map(([name, one]) => ({ name, victims: 0, ...one }));

/** Strikes, and says in a cell what was seen. `results` are the raw ones. */
export async function play({ run, repair, victims }, fleet) {
  const before = fleet.engines().map(({ pid }) => pid);
  const results = await run(fleet);
  const next = await ended(atOnce(fleet.url, 8, { limitMs: LIMIT_MS }));
  const notes = [summary(results), `next ${summary(next)}`];
  if (repair !== undefined) notes.push(`all ok ${await untilAllOk(fleet, () => repair(fleet))} after repair`);
  notes.push(...(await leftovers(fleet)));
  const now = new Set(fleet.engines().map(({ pid }) => pid));
  const gone = before.filter((pid) => !now.has(pid)).length - victims;
  if (gone > 0 && fleet.name === "tandem-launched") notes.push(`**${gone} other engines restarted**`);
  return { cell: notes.join("; "), results: [...results, ...next] };
}
