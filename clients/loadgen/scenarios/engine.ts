// `npm run bench -- engine`: the speed of the embedded engine, and the effect of a long prompt on running answers: on
// one engine that does everything, and on a prefill and a decode engine side by side, in one run.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { defineConfig, integer, loadConfig, StartError, text } from "../../../services/common/config.ts";
import { shippedModel } from "../../../services/common/package-file.ts";
import { randomGguf, SMALL } from "../../common/random-gguf.ts";
import { renderTable } from "../../common/table.ts";
import { pssBytes, rssBytes } from "../procfs.ts";
import { processesOf, startEngine, startUp } from "../processes.ts";
import { streamRequest, type StreamResult } from "../stream-request.ts";
import { interruption, type Interruption, type InterruptionOptions } from "./interruption.ts";
import { interruptionSvg } from "./interruption-svg.ts";
import { formatMs, jsonFile, writeJson } from "./output.ts";

const engineBenchConfig = defineConfig(
  "bench engine",
  {
    rounds: integer(
      "rounds",
      "How often each figure is measured. The best counts, because other work on the machine only slows the engine down.",
      { default: 5, min: 1, max: 100 },
    ),
    streams: integer("streams", "Running answers while long prompts arrive.", { default: 4, min: 1, max: 64 }),
    prompts: integer("prompts", "Long prompts, sent one after the other.", { default: 4, min: 1, max: 100 }),
    promptTokens: integer("prompt.tokens", "Length of a long prompt.", {
      default: 1_000,
      min: 16,
      max: 1_900,
      unit: "tokens",
    }),
    svg: text("svg", "File to draw the gaps between tokens to, such as docs/prefill-interruption.svg.", {
      optional: true,
    }),
    json: jsonFile,
  },
  {
    summary: "Measures the embedded engine, and how prefill slows running answers.",
    usage: "npm run bench -- engine [--svg FILE.svg]",
  },
);

interface Limits {
  readonly atLeast?: number;
  readonly atMost?: number;
}
type Figure = ReturnType<typeof figure>;
const figure = (name: string, value: number, unit: string, limits: Limits = {}) => ({ name, value, unit, limits });

export async function runEngineBench(argv: readonly string[]): Promise<void> {
  const config = loadConfig(engineBenchConfig, { argv, env: process.env });
  const shipped = shippedModel();
  if (shipped === undefined) throw new StartError("This build ships no model to measure.");
  const folder = mkdtempSync(join(tmpdir(), "tandem-bench-engine-"));
  try {
    const small = join(folder, "small.gguf");
    writeFileSync(small, randomGguf({ ...SMALL, speaks: true }));
    const speeds = [
      await speedOf("0.9M parameters", small, config.rounds),
      await speedOf("shipped size", shipped, config.rounds),
    ];
    const { plain, tandem, engines } = await sideBySide(shipped, config);
    const figures = figuresOf(speeds, engines);
    process.stdout.write(render(figures, plain, tandem, config.promptTokens));
    if (config.svg !== undefined) {
      const panels = [
        { title: "one engine", run: plain },
        { title: "prefill and decode apart", run: tandem },
      ];
      writeFileSync(config.svg, interruptionSvg(panels, config.promptTokens));
    }
    writeJson(config.json, {
      scenario: "engine",
      settings: config.settings.all,
      speeds,
      engines,
      plain: plain.summary,
      tandem: tandem.summary,
    });
    if (figures.some(missed)) process.exitCode = 1;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function speedOf(name: string, model: string, rounds: number) {
  await using engine = await startEngine(["--model", model]);
  const generate = generator(engine.url, await printableToken(engine.url));
  /** Tokens a second of one answer, of eight at once together, and of a prompt. */
  const best = { decodeOne: 0, decodeEight: 0, prefill: 0, firstToken500Ms: Infinity };
  for (let round = 0; round < rounds; round++) {
    best.decodeOne = Math.max(best.decodeOne, tokensPerS([await generate(16, 400)]));
    const eight = await Promise.all(Array.from({ length: 8 }, () => generate(16, 200)));
    best.decodeEight = Math.max(best.decodeEight, tokensPerS(eight));
    const { ttftMs } = await generate(500, 1);
    best.firstToken500Ms = Math.min(best.firstToken500Ms, ttftMs);
    best.prefill = Math.max(best.prefill, 500 / (ttftMs / 1000));
  }
  return { name, ...best };
}

/** All tokens after the first of each answer, divided by the time in which any of them was written. */
function tokensPerS(answers: readonly StreamResult[]): number {
  const seconds = Math.max(...answers.map(({ endToEndMs, ttftMs }) => endToEndMs - ttftMs)) / 1000;
  return answers.reduce((sum, { chunks }) => sum + chunks - 1, 0) / seconds;
}

type Generate = (promptTokens: number, tokens: number) => Promise<StreamResult>;

/** Asks for answers of exactly this many tokens. The text does not matter, so it is always the same word. */
function generator(url: string, word: number): Generate {
  return async (promptTokens, tokens) => {
    const body = {
      prompt: Array.from({ length: promptTokens }, (_, at) => 10 + ((at * 37) % 900)),
      max_tokens: tokens,
      temperature: 0,
      ignore_eos: true,
      logit_bias: { [word]: 100 },
      stream: true,
      stream_options: { include_usage: true },
    };
    const result = await streamRequest({ url }, JSON.stringify(body));
    if (result.error !== undefined) throw new StartError(`a request of the benchmark failed: ${result.error}`);
    return result;
  };
}

/** A token that is text on its own, so that every token is an event with text. */
async function printableToken(url: string): Promise<number> {
  const response = await fetch(`${url}/tokenize`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt: " a", add_special_tokens: false }),
  });
  return ((await response.json()) as { tokens: number[] }).tokens.at(-1)!;
}

async function sideBySide(model: string, options: InterruptionOptions) {
  await using engine = await startEngine(["--model", model]);
  await using up = await startUp(["--model", model]);
  const engines = processesOf(up.run)
    .filter(({ name }) => name.endsWith(" engine"))
    .map(({ name, pid }) => ({ name, pid, freshRssBytes: rssBytes(pid) }));
  const word = await printableToken(engine.url);
  const [alone, apart] = [generator(engine.url, word), generator(up.url, word)];
  // One unmeasured run of each, which compiles code and opens connections.
  for (const generate of [alone, apart]) await interruption({ ...options, prompts: 1 }, generate);
  return {
    plain: await interruption(options, alone),
    tandem: await interruption(options, apart),
    engines: engines.map((one) => ({ ...one, rssBytes: rssBytes(one.pid), pssBytes: pssBytes(one.pid) })),
  };
}

type Speed = Awaited<ReturnType<typeof speedOf>>;
type EngineMemory = Awaited<ReturnType<typeof sideBySide>>["engines"][number];

function figuresOf(speeds: readonly Speed[], engines: readonly EngineMemory[]): Figure[] {
  const decodeTarget = [3_000, 1_000];
  return [
    ...speeds.flatMap(({ name, ...of }, index) => [
      figure(`decode, ${name}, one answer`, of.decodeOne, "tokens/s", { atLeast: decodeTarget[index]! }),
      figure(`decode, ${name}, eight at once`, of.decodeEight, "tokens/s"),
      // The target was set for the small model.
      figure(`prefill, ${name}`, of.prefill, "tokens/s", index === 0 ? { atLeast: 3_000 } : {}),
      figure(`first token of 500, ${name}`, of.firstToken500Ms, "ms", { atMost: 300 }),
    ]),
    ...engines.flatMap(({ name, ...of }) => [
      figure(`resident memory, ${name}, before the first request`, of.freshRssBytes / 1e6, "MB", { atMost: 80 }),
      figure(`resident memory, ${name}, after all of them, KV included`, of.rssBytes / 1e6, "MB"),
      figure("the same without memory shared with other processes", of.pssBytes / 1e6, "MB"),
    ]),
  ];
}

function missed({ value, limits: { atLeast = -Infinity, atMost = Infinity } }: Figure): boolean {
  return value < atLeast || value > atMost;
}

function targetText({ limits: { atLeast, atMost } }: Figure): string {
  return atLeast !== undefined ? `at least ${atLeast}` : atMost !== undefined ? `at most ${atMost}` : "";
}

function render(figures: readonly Figure[], plain: Interruption, tandem: Interruption, promptTokens: number): string {
  const rows = (["before", "during"] as const).flatMap((when) =>
    (["p50", "p99", "max"] as const).map((share) => ({
      name: `${when === "before" ? "undisturbed" : `while ${promptTokens} tokens are prefilled`}, ${share}`,
      plain: plain.summary[when][share],
      tandem: tandem.summary[when][share],
    })),
  );
  return `${[
    renderTable(figures, [
      { title: "", cell: (row) => row.name },
      { title: "", align: "right", cell: (row) => row.value.toFixed(row.value < 1000 ? 1 : 0) },
      { title: "", cell: (row) => row.unit },
      { title: "target", cell: (row) => `${targetText(row)}${missed(row) ? "  MISSED" : ""}` },
    ]),
    "",
    `Gaps between the tokens of running answers, milliseconds; one engine needs ${formatMs(plain.prefillMs)} ms for the prompt, Tandem ${formatMs(tandem.prefillMs)} ms`,
    "",
    renderTable(rows, [
      { title: "", cell: (row) => row.name },
      { title: "one engine", align: "right", cell: (row) => formatMs(row.plain) },
      { title: "prefill and decode apart", align: "right", cell: (row) => formatMs(row.tandem) },
    ]),
  ].join("\n")}\n`;
}
