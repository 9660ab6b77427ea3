// Every condition, effect and order of the runner of a leg is broken in turn, in a copy of its source, and at least one
// scenario has to go another way. A part that could go without notice would be one that nothing needs, or a promise that
// nothing checks.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { LegRun } from "../../../services/router/leg/run.ts";
import { type Scenario, scenarios } from "./run-scenarios.ts";

const SUBJECT = new URL("../../../services/router/leg/run.ts", import.meta.url);

type Operator = readonly [name: string, pattern: RegExp, change: (match: RegExpExecArray) => readonly string[]];

/** A line that calls something, or assigns something. */
const CALL = String.raw`(?:for \([^\n]*\) )?(?:this|books)[.\w#]*\([^\n]*\);`;
const ASSIGNMENT = String.raw`(?:this|draft)[.\w#\[\]]* \+?= [^\n]*;`;

const OPERATORS: readonly Operator[] = [
  [
    "condition",
    /\bif \(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)/g,
    ({ 1: condition }) => ["if (false)", "if (true)", ...conjuncts(condition!).map((rest) => `if (${rest})`)],
  ],
  ["comparison", / ([!=])==(?= )/g, ({ 1: sign }) => [sign === "!" ? " ===" : " !=="]],
  ["case", /^ +case "(\w+)":/gm, ({ 0: line, 1: name }) => [line.replace(`"${name}"`, `"${name}!"`)]],
  ["statement", new RegExp(`(?<=^ +)(?:${CALL}|${ASSIGNMENT})`, "gm"), () => [";"]],
  ["effect", /(?<=^ +return )this\.#\w+\.\w+\(.*\);/gm, () => [";"]],
  [
    "order",
    // Two assignments may stand either way.
    new RegExp(String.raw`(?<=^( +))(?:(${CALL})\n\1(${CALL}|${ASSIGNMENT})|(${ASSIGNMENT})\n\1(${CALL}))$`, "gm"),
    ({ 1: indent, 2: call, 3: after, 4: first = call, 5: second = after }) => [`${second}\n${indent}${first}`],
  ],
  [
    "order",
    /(this\.#toBooks\(.*)\n([^]*?)(for .* this\.#toOwner\(.*)/g,
    ({ 1: books, 2: between, 3: owner }) => [`${owner}\n${between}${books}`],
  ],
  [
    "choice",
    / \? ([^\n:?]+(?:\([^()]*\))?)\s: ("[^"]*"|[^\n;,:)]+)/g,
    ({ 1: yes, 2: no }) => [` && false ? ${yes} : ${no}`, ` || true ? ${yes} : ${no}`],
  ],
  ["default", / \?\? ("\w*"|[\w.#]+)/g, ({ 1: other }) => ["", ` && ${other}`]],
  ["text", /\$\{[^{}]+\}/g, () => [""]],
  ["text", /(?<=[=:?] )"[^"\n]* [^"\n]*"|ms`/g, ({ 0: text }) => [text.startsWith('"') ? '""' : "`"]],
  [
    "side",
    /(?<=\(|=== |\.)("?)(prefill|decode)\b\1(?!:)/g,
    ({ 1: quote, 2: side }) => [`${quote}${side === "prefill" ? "decode" : "prefill"}${quote}`],
  ],
  [
    "figure",
    / (\+=|-|\+|>) (?=[\w#.]+)/g,
    ({ 1: sign }) => [{ "+=": " -= ", "-": " + ", "+": " - ", ">": " >= " }[sign!]!],
  ],
  ["figure", /(?<= )(0|1)(?=;|\)| )/g, ({ 1: digit }) => [digit === "0" ? "1" : "2"]],
  ["argument", /, (?:tokens|undefined|end|effects|event|verdict|pair)(?=\))/g, () => [", 0"]],
  ["start", /(?<!=)= (false|undefined);/g, () => ["= true;"]],
];

function conjuncts(condition: string): string[] {
  const all = condition.split(" && ");
  return all.length === 1 ? [] : all.map((_one, index) => all.filter((_other, at) => at !== index).join(" && "));
}

/** Mutants that do what the original does, by name, and why. A mutant that is noticed or gone may not stand here. */
const EQUIVALENT: Readonly<Record<string, string>> = {
  "order, #take: this.#state = state; this.#times.note(before, event, this.#context.clock.nowMs());":
    "The times are noted by the state before the event.",
  "order, #take: this.#times.note(before, event, this.#context.clock.nowMs()); for (const effect of effects) this.#toInstances(effect);":
    "Instances do not answer within a call, so nothing reads the times meanwhile.",
  "order, #finish: this.#context.metrics.completed(draft, request.stream); this.#context.paces.of(this.#decode.on!).answered(draft.transferMs + draft.decodeMs, completionTokens);":
    "The metrics and the paces know nothing of each other.",
};

interface Mutant {
  readonly name: string;
  readonly text: string;
}

function mutantsOf(source: string): Mutant[] {
  const body = source.indexOf("export class ");
  const all = new Map<string, Mutant>();
  for (const [operator, pattern, change] of OPERATORS) {
    for (const match of matches(source, pattern)) {
      const line = source.slice(source.lastIndexOf("\n", match.index) + 1, match.index);
      if (match.index < body || /^ *\/?\*/.test(line)) continue;
      for (const changed of change(match)) {
        const text = source.slice(0, match.index) + changed + source.slice(match.index + match[0].length);
        if (text !== source && !all.has(text)) all.set(text, { name: nameOf(source, operator, match, changed), text });
      }
    }
  }
  return [...all.values()];
}

/** Also those that overlap. */
function* matches(source: string, pattern: RegExp): Generator<RegExpExecArray> {
  pattern.lastIndex = 0;
  for (let match = pattern.exec(source); match !== null; match = pattern.exec(source)) {
    pattern.lastIndex = match.index + 1;
    yield match;
  }
}

/** "default, #release: ... end?.verdict ?? "none" ...: -> nothing": by method, so that a name outlives changes elsewhere. */
function nameOf(source: string, operator: string, { 0: matched, index }: RegExpExecArray, changed: string): string {
  const before = source.slice(0, index);
  const [method] = [...before.matchAll(/^ {2}(?:get )?(#?\w+)\(.*\{$/gm)].map(([, name]) => name).slice(-1);
  const line = source.slice(before.lastIndexOf("\n") + 1, source.indexOf("\n", index + matched.length)).trim();
  const said = (text: string): string => text.trim().replaceAll(/\s+/g, " ") || "nothing";
  const what = matched.length > 12 ? said(matched) : `${line}: ${said(matched)}`;
  return `${operator}, ${method}: ${what}${operator === "order" ? "" : ` -> ${said(changed)}`}`;
}

/**
 * One module with all mutants, each in a function of its own, because a module costs more than the rest of a mutant. Its
 * imports hold in another folder, and a mutant can't go on forever.
 */
function moduleOf(source: string, mutants: readonly Mutant[]): string {
  const body = source.indexOf("/** The owner gets");
  const imports = source
    .slice(0, body)
    .replaceAll(/ from "(\.[^"]+)"/g, (_all, path: string) => ` from "${new URL(path, SUBJECT).href}"`);
  const functions = mutants.map(({ text }) => {
    const own = text
      .slice(body)
      .replaceAll(/^export /gm, "")
      .replace("#take(event: LegEvent): void {", '$& if (++turns > 1e6) throw new Error("It never ends.");');
    return `() => {\nlet turns = 0;\n${own}\nreturn LegRun;\n}`;
  });
  return `${imports}\nexport const mutants = [${functions.join(",\n")}];\n`;
}

function transcriptOf(life: Scenario, Run: typeof LegRun): string {
  try {
    return life.transcript(Run);
  } catch (error) {
    return `thrown: ${(error as Error).message}`;
  }
}

describe("the runner of a leg without one of its parts", () => {
  let folder: string;
  before(() => (folder = mkdtempSync(join(tmpdir(), "tandem-mutants-"))));
  after(() => rmSync(folder, { recursive: true }));

  it("goes another way in a scenario, for each part", async function () {
    this.timeout(120_000);
    const lives = scenarios();
    const original: (string | undefined)[] = [];
    const isNoticed = (Run: typeof LegRun): boolean =>
      lives.some((life, index) => (original[index] ??= life.transcript(LegRun)) !== transcriptOf(life, Run));
    const source = readFileSync(fileURLToPath(SUBJECT), "utf8");
    const all = mutantsOf(source);
    assert.ok(all.length > 200, `only ${all.length} mutants`);
    const file = join(folder, "run.mts");
    writeFileSync(file, moduleOf(source, all));
    const { mutants } = (await import(pathToFileURL(file).href)) as { mutants: (() => typeof LegRun)[] };
    const names = new Set(all.map(({ name }) => name));
    const faults = Object.keys(EQUIVALENT).filter((name) => !names.has(name));
    for (const [index, { name }] of all.entries()) {
      const noticed = isNoticed(mutants[index]!());
      if (!noticed && EQUIVALENT[name] === undefined) faults.push(name);
      if (noticed && EQUIVALENT[name] !== undefined) faults.push(`${name}: noticed, and said to be equivalent`);
    }
    assert.deepEqual(faults, []);
    this.test!.title += ` (${all.length} mutants, ${lives.length} scenarios)`;
  });
});
