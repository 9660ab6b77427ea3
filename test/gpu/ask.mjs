// Requests of the GPU run and what is measured of them. No packages.

/** Reproducible: the same prompts for every server. */
export function randomIds(seed, count) {
  let state = seed * 2_654_435_761 + 1;
  return Array.from({ length: count }, () => 10 + ((state = (state * 1_103_515_245 + 12_345) % 2_147_483_648) % 230));
}

/** First token's text and log probability. */
export async function firstToken(url, model, prompt) {
  const answer = await post(url, "/v1/completions", { model, prompt, max_tokens: 1, temperature: 0, logprobs: 1 });
  const [choice] = (await json(answer)).choices;
  return { token: choice.logprobs.tokens[0], logprob: choice.logprobs.token_logprobs[0] };
}

export function post(url, path, body, signal) {
  return fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

export async function json(answer) {
  const text = await answer.text();
  if (answer.status !== 200) throw new Error(`${answer.status}: ${text.slice(0, 300)}`);
  return JSON.parse(text);
}

/** `work` on each of `items`, `count` at once. */
export async function eachOf(items, count, work) {
  const results = [];
  let next = 0;
  await Promise.all(
    Array.from({ length: count }, async () => {
      while (next < items.length) {
        const index = next++;
        results[index] = await work(items[index], index);
      }
    }),
  );
  return results;
}

/** Two lists of first tokens: how many are equal, and how far their log probabilities are apart. */
export function compare(answers, expected) {
  const deltas = answers.map(({ logprob }, index) => Math.abs(logprob - expected[index].logprob)).sort((a, b) => a - b);
  return {
    equal: answers.filter(({ token }, index) => token === expected[index].token).length,
    of: answers.length,
    p50: quantile(deltas, 0.5),
    max: deltas.at(-1) ?? 0,
  };
}

export const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))] ?? NaN;

/** How often each word comes. */
export const tally = (words) => words.reduce((counts, word) => ({ ...counts, [word]: (counts[word] ?? 0) + 1 }), {});

/** One streamed request: milliseconds to the first token, between tokens, and its tokens. */
export async function timedStream(url, body) {
  const startMs = performance.now();
  const answer = await post(url, "/v1/completions", { ...body, stream: true, stream_options: { include_usage: true } });
  if (answer.status !== 200) return { failed: answer.status };
  const stamps = [];
  let rest = "";
  for await (const bytes of answer.body) {
    rest += Buffer.from(bytes).toString("latin1");
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) if (/"text":"(?:[^"\\]|\\.)+"/.test(event)) stamps.push(performance.now());
    if (events.some((event) => event.includes('"error":{'))) return { failed: "stream" };
  }
  const gaps = stamps.slice(1).map((stamp, index) => stamp - stamps[index]);
  return { ttftMs: stamps[0] - startMs, gaps, tpotMs: (stamps.at(-1) - stamps[0]) / Math.max(1, stamps.length - 1) };
}

/** Poisson arrivals at `rate` a second. */
export async function load(url, model, { rate, count, promptTokens, maxTokens }) {
  let seed = 7;
  const random = () => (seed = (seed * 16_807) % 2_147_483_647) / 2_147_483_647;
  const runs = [];
  for (let index = 0; index < count; index++) {
    runs.push(
      timedStream(url, {
        model,
        prompt: randomIds(1_000 + index, promptTokens),
        max_tokens: maxTokens,
        temperature: 0,
        ignore_eos: true,
      }).catch((error) => ({ failed: error.message })),
    );
    await new Promise((done) => setTimeout(done, (-Math.log(1 - random()) / rate) * 1_000));
  }
  const ended = await Promise.all(runs);
  const good = ended.filter(({ failed }) => failed === undefined);
  const sorted = (values) => values.sort((a, b) => a - b);
  const [ttft, tpot, itl] = [
    sorted(good.map(({ ttftMs }) => ttftMs)),
    sorted(good.map(({ tpotMs }) => tpotMs)),
    sorted(good.flatMap(({ gaps }) => gaps)),
  ];
  const round = (value) => Math.round(value * 10) / 10;
  return {
    rate,
    of: count,
    failed: ended.length - good.length,
    ttftP50: round(quantile(ttft, 0.5)),
    ttftP99: round(quantile(ttft, 0.99)),
    tpotP50: round(quantile(tpot, 0.5)),
    tpotP99: round(quantile(tpot, 0.99)),
    itlP99: round(quantile(itl, 0.99)),
    itlMax: round(itl.at(-1) ?? NaN),
    good: good.filter(({ ttftMs, tpotMs }) => ttftMs < 500 && tpotMs < 25).length,
  };
}
