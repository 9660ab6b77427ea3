// The steps of the GPU run on one pair: right answers, clients that leave, engines that die.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { request } from "node:http";
import { compare, eachOf, firstToken, json, post, randomIds, tally } from "./ask.mjs";
import { step } from "./report.mjs";
import { below, doctor, instances, until } from "./servers.mjs";
import { LENGTHS, OUT, PROMPTS, rehearsal, TOKEN } from "./settings.mjs";

// A first token further off than this is not noise: 0.12 was the most where all was well, 0.27 the least where it wasn't.
const TOLERANCE = 0.2;

const engineOf = (instance) => below(instance.info.pid).filter(({ args }) => !args.startsWith("/bin/sh"));
/** What computes: vLLM's engine core names itself; its compilers and trackers, which come after it, don't matter. */
const coreOf = (instance) => {
  const family = engineOf(instance);
  return (family.find(({ args }) => args.includes("EngineCore")) ?? family.at(-1)).pid;
};
/** Bytes that a GPU's links have sent since the driver was loaded; undefined where nobody tells. */
function linkBytes() {
  try {
    const said = execFileSync("nvidia-smi", ["nvlink", "-gt", "d", "-i", "0"], { encoding: "utf8" });
    return [...said.matchAll(/Tx: (\d+) KiB/g)].reduce((sum, [, kib]) => sum + Number(kib) * 1024, 0);
  } catch {
    return undefined;
  }
}

/** `reference` and `noise`: a plain vLLM's first tokens, and how far they are apart when it computes them together. */
export async function pairSteps(pair, reference, noise) {
  const cores = async () =>
    Object.fromEntries((await instances(pair.url, TOKEN)).map((one) => [one.info.role, coreOf(one)]));
  const answers = async (limitMs) => {
    await until(
      "it serves again",
      async () =>
        (await pair.serving()) &&
        (await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 2 })).status === 200,
      limitMs,
      pair,
    );
  };
  await step("correct", async () => {
    const sentBefore = linkBytes();
    const alone = compare(await eachOf(PROMPTS, 1, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    const together = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    // The same prompts again: what prefill has cached must reach decode as well.
    const again = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(pair.url, "m", prompt)), reference);
    const worst = Math.max(alone.max, together.max, again.max);
    return {
      ok: worst <= TOLERANCE,
      worst,
      noise: noise.max,
      withinNoise: worst <= noise.max,
      alone,
      together,
      again,
      linkBytes: linkBytes() - sentBefore || undefined,
    };
  });
  await step("shapes", async () => {
    const chat = await json(
      await post(pair.url, "/v1/chat/completions", {
        model: "m",
        messages: [{ role: "user", content: "hello" }],
        max_tokens: 8,
      }),
    ).catch((error) => String(error));
    const stream = await (
      await post(pair.url, "/v1/completions", { model: "m", prompt: "hello", max_tokens: 8, stream: true })
    ).text();
    const several = await json(
      await post(pair.url, "/v1/completions", {
        model: "m",
        prompt: ["one", "two"],
        n: 2,
        temperature: 1,
        max_tokens: 4,
      }),
    );
    const seen = {
      chat: chat.choices?.[0]?.finish_reason ?? chat,
      streamEnds: stream.endsWith("data: [DONE]\n\n"),
      choices: several.choices.length,
    };
    return { ok: /^(stop|length)$/.test(seen.chat) && seen.streamEnds && seen.choices === 4, ...seen };
  });
  await step("doctor", async () => {
    const found = await doctor(pair.url, TOKEN, `${OUT}/doctor.json`);
    const probes = found.filter(({ finding }) => finding.check === "probe").map(({ finding }) => finding.message);
    return {
      ok: probes.length > 0 && !found.some(({ finding }) => /ERROR/.test(finding.level)),
      bad: found.filter(({ finding }) => /ERROR|WARNING/.test(finding.level)).map(({ finding }) => finding),
      probes,
    };
  });
  if (!rehearsal) {
    await step("kv_moved_by_nccl", async () => {
      const log = readFileSync(pair.log, "utf8")
        .split("\n")
        .filter((line) => /ncclCommInitRank|P2pNcclEngine init|NCCL INFO/.test(line));
      return {
        ok: log.some((line) => line.includes("ncclCommInitRank Success")),
        lines: log.length,
        sample: log.slice(0, 5).map((line) => line.slice(0, 300)),
      };
    });
  }
  await step("cancelled_between_legs", async () => {
    const before = await cores();
    await Promise.all(
      Array.from({ length: 40 }, async (_, index) => {
        const gone = new AbortController();
        setTimeout(() => gone.abort(), index * 10);
        await post(
          pair.url,
          "/v1/completions",
          { model: "m", prompt: randomIds(5_000 + index, LENGTHS.at(-1)), max_tokens: 200 },
          gone.signal,
        )
          .then((answer) => answer.text())
          .catch(() => {});
      }),
    );
    const goneMs = performance.now();
    const empty = async () =>
      (await instances(pair.url, TOKEN)).every(
        ({ load, legs }) => (load.kvOrphans ?? 0) === 0 && (load.running ?? 0) === 0 && (legs ?? 0) === 0,
      );
    await until("no orphan is left", empty, 60_000);
    const settledMs = Math.round(performance.now() - goneMs);
    const after = await cores();
    await answers(60_000);
    return {
      ok: JSON.stringify(after) === JSON.stringify(before),
      settledMs,
      cores: { before, after },
      loads: (await instances(pair.url, TOKEN)).map(({ info, load }) => [info.role, load]),
    };
  });
  for (const [name, role] of [
    ["prefill_killed", "PREFILL"],
    ["decode_killed", "DECODE"],
    ["decode_killed_in_prefill", "DECODE"],
  ]) {
    await step(name, async () => {
      const victim = (await instances(pair.url, TOKEN)).find(({ info }) => info.role.endsWith(role));
      const core = coreOf(victim);
      const began = Array.from({ length: 8 }, async (_, index) => {
        const answer = await post(pair.url, "/v1/completions", {
          model: "m",
          prompt: randomIds(9_000 + index, LENGTHS.at(-1)),
          max_tokens: 400,
          ignore_eos: true,
          stream: true,
        }).catch(String);
        return answer;
      });
      // Decode is hurt while it writes, or while prefill sends to it, which takes less than 0.1 s; prefill as soon as the
      // requests are on their way.
      if (name === "decode_killed") await Promise.race(began);
      else if (role === "DECODE") await new Promise((go) => setTimeout(go, 30));
      const killedMs = performance.now();
      process.kill(core, "SIGKILL");
      const ends = await Promise.all(
        began.map(async (one) => {
          const answer = await one;
          const text = typeof answer === "string" ? answer : await answer.text().catch(String);
          const how =
            answer.status !== 200
              ? `status ${answer.status}`
              : /"error":\{/.test(text)
                ? "error event"
                : text.endsWith("data: [DONE]\n\n")
                  ? "answer"
                  : "BROKEN";
          return { how, ms: performance.now() - killedMs };
        }),
      );
      await answers(600_000);
      const ms = ends
        .filter(({ how }) => how !== "answer")
        .map(({ ms: one }) => Math.round(one))
        .sort((a, b) => a - b);
      return {
        ok: !ends.some(({ how }) => how === "BROKEN"),
        ends: tally(ends.map(({ how }) => how)),
        brokenEndedMs: ms,
        allEndedMs: Math.round(Math.max(...ends.map(({ ms: one }) => one))),
        servesAgainMs: Math.round(performance.now() - killedMs),
        core: { before: core, after: (await cores())[victim.info.role] },
      };
    });
  }
  if (!rehearsal) {
    // A leg whose KV never comes, behind Tandem's back: the engine waits for it for ever, and everybody with it.
    await step("decode_starved", async () => {
      const victim = (await instances(pair.url, TOKEN)).find(({ info }) => info.role.endsWith("DECODE"));
      const socketPath = engineOf(victim)
        .map(({ args }) => /--uds (\S+)/.exec(args)?.[1])
        .find((found) => found !== undefined);
      const id = `___prefill_addr_127.0.0.1:9___decode_addr_${victim.info.kvAddress}_${"0".repeat(32)}`;
      const headers = { "content-type": "application/json", "x-request-id": id };
      request({ socketPath, method: "POST", path: "/v1/completions", headers })
        .on("error", () => {})
        .end(JSON.stringify({ model: "m", prompt: randomIds(1, 300), max_tokens: 4 }));
      await new Promise((done) => setTimeout(done, 1_000));
      const core = coreOf(victim);
      const starvedMs = performance.now();
      const ends = await eachOf(
        Array.from({ length: 8 }, (_, index) => randomIds(20_000 + index, 500)),
        8,
        async (prompt) => {
          const { status } = await post(pair.url, "/v1/completions", { model: "m", prompt, max_tokens: 50 });
          return { status, ms: performance.now() - starvedMs };
        },
      );
      await answers(600_000);
      const after = (await cores())[victim.info.role];
      return {
        ok: after !== core,
        statuses: tally(ends.map(({ status }) => status)),
        allEndedMs: Math.round(Math.max(...ends.map(({ ms }) => ms))),
        servesAgainMs: Math.round(performance.now() - starvedMs),
        core: { before: core, after },
      };
    });
  }
}
