// Clients: streams of /v1/completions, and what became of them.
import { request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const WORDS = "the quick brown fox jumps over a lazy dog while seven small engines count every token twice".split(" ");
let sent = 0;

/** About 70 tokens, which no prefix cache knows. */
const freshPrompt = () =>
  `${++sent} ${Array.from({ length: 40 }, () => WORDS[Math.floor(Math.random() * WORDS.length)]).join(" ")}`;

/**
 * Outcomes: ok; a status that is an error; "cut", without an end; "error event"; "hung", if it had not ended after
 * `limitMs`; "left", by `leave`.
 */
export function send(url, { tokens = 20, limitMs, prompt = freshPrompt() }) {
  const startMs = performance.now();
  let finish;
  const ended = new Promise((resolve) => {
    finish = (outcome, detail = "") => {
      clearTimeout(timer);
      resolve({ outcome, detail: String(detail).slice(0, 300), ms: performance.now() - startMs });
      call.destroy();
    };
  });
  const timer = setTimeout(() => finish("hung"), limitMs);
  let text = "";
  let begin;
  const begun = new Promise((resolve) => (begin = resolve));
  const call = request(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    agent: false,
  });
  call.on("error", ({ message }) => finish("cut", message));
  call.on("response", (answer) => {
    answer.setEncoding("utf8").on("data", (piece) => {
      text += piece;
      if (text.includes('"text"')) begin();
    });
    answer.on("error", ({ message }) => finish("cut", message));
    answer.on("end", () => {
      if (answer.statusCode !== 200) finish(String(answer.statusCode), text);
      else if (/^data: \{"error"|^event: error/m.test(text)) finish("error event", text.slice(-300));
      else if (text.trimEnd().endsWith("data: [DONE]")) finish("ok");
      else finish("cut", text.slice(-300));
    });
  });
  call.end(JSON.stringify({ model: "m", prompt, max_tokens: tokens, temperature: 0, ignore_eos: true, stream: true }));
  ended.then(begin, begin);
  return { ended, begun, leave: () => finish("left") };
}

export const atOnce = (url, count, options) => Array.from({ length: count }, () => send(url, options));

/** Keeps `count` clients busy for `forMs`, then waits for the last. A client that was refused waits for 0.1 s. */
export async function steady(url, count, forMs, options) {
  const endMs = Date.now() + forMs;
  const results = [];
  const client = async () => {
    while (Date.now() < endMs) {
      const result = await send(url, options).ended;
      results.push(result);
      if (result.outcome !== "ok") await sleep(100);
    }
  };
  await Promise.all(Array.from({ length: count }, client));
  return results;
}

/** "7 ok ≤ 0.4 s, 1× 503". */
export function summary(results) {
  const outcomes = [...new Set(results.map(({ outcome }) => outcome))];
  const slowest = (some) => (Math.max(...some.map(({ ms }) => ms)) / 1000).toFixed(1);
  return outcomes
    .toSorted((a, b) => Number(b === "ok") - Number(a === "ok"))
    .map((outcome) => {
      const some = results.filter((one) => one.outcome === outcome);
      if (outcome === "ok") return `${some.length} ok ≤ ${slowest(some)} s`;
      if (outcome === "hung") return `**${some.length} hung**`;
      return `${some.length}× ${outcome}${outcome === "left" ? "" : ` ≤ ${slowest(some)} s`}`;
    })
    .join(", ");
}
