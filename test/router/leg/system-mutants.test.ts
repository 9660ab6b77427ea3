// Every guard and every effect of decode's machine, of the settlement and of prefill's outcome is dropped or turned, in a
// copy of the source, and the search of system.ts has to notice each one.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { CONNECTORS } from "../../../services/kv/index.ts";
import { exploreSystem } from "./system-search.ts";
import { MACHINES } from "./system.ts";
import type { Machines } from "./system-world.ts";

type Operator = readonly [name: string, pattern: RegExp, change: (match: RegExpExecArray) => readonly string[]];

const OPERATORS: readonly Operator[] = [
  [
    "condition",
    /if \((.*)\) (?=return)/g,
    ({ 1: condition }) => [`if (false as boolean && (${condition})) `, `if (true as boolean || (${condition})) `],
  ],
  ["case", /^ {4}case "(\w+)":/gm, ({ 0: line, 1: name }) => [line.replace(`"${name}"`, `"${name}!" as never`)]],
  [
    "effect",
    /, (?:FORGET|STOP_RUN|END_CALL|ASK|fail\([^()]*\)|misuse\(event\)|\{ kind: "(?:discard|run)"[^}]*\})/g,
    () => [""],
  ],
  ["effect", /\[STOP_RUN, /g, () => ["["]],
  ["choice", / \? ([^:?]+) : ([^:?;]+);/g, ({ 1: yes, 2: no }) => [` ? ${yes} : ${yes};`, ` ? ${no} : ${no};`]],
  [
    "claim",
    /(tookKv|maybeTaken)(?:: (?:true|false))(?= [},])/g,
    ({ 0: text, 1: name }) => [`${name}: ${!text.includes("true")}`],
  ],
  ["claim", /failed\(state, (false|!event\.untouched)/g, () => ["failed(state, true", "failed(state, false"]],
  ["claim", /failed\(started, true/g, () => ["failed(started, false"]],
  [
    "claim",
    /reply: "(run|refuse|wait|unknown|answer)"/g,
    ({ 1: said }) => [`reply: "${said === "wait" ? "unknown" : "wait"}" as never`],
  ],
  ["state", /state: SHUT/g, () => ["state"]],
];

/** Mutants that do what the original does, by name, and why. A mutant that is noticed may not stand here. */
const EQUIVALENT: Readonly<Record<string, string>> = {};

interface Subject {
  readonly file: string;
  /** The mutated part begins here. */
  readonly from: string;
  readonly least: number;
  machines(module: Mutated): Machines;
}

interface Mutated {
  readonly stepDecode: Machines["decode"];
  readonly settlementOf: Machines["settlement"];
  readonly stepOutcome: Machines["outcome"];
}

const SUBJECTS: readonly Subject[] = [
  {
    file: "services/decode/protocol.ts",
    from: "const ASK",
    least: 50,
    machines: ({ stepDecode, settlementOf }) => ({ ...MACHINES, decode: stepDecode, settlement: settlementOf }),
  },
  {
    file: "services/prefill/outcomes.ts",
    from: "export function stepOutcome",
    least: 8,
    machines: ({ stepOutcome }) => ({ ...MACHINES, outcome: stepOutcome }),
  },
];

function mutantsOf(source: string, from: number, to: number): { readonly name: string; readonly text: string }[] {
  return OPERATORS.flatMap(([operator, pattern, change]) =>
    [...(source.matchAll(pattern) as Iterable<RegExpExecArray>)]
      .filter(({ index }) => index >= from && index < to)
      .flatMap((match) =>
        change(match)
          .filter((text) => text !== match[0])
          .map((text) => ({
            name: `${operator}, ${lineAt(source, match.index)} -> ${text.trim() || `without ${match[0].trim()}`}`,
            text: source.slice(0, match.index) + text + source.slice(match.index + match[0].length),
          })),
      ),
  );
}

function lineAt(source: string, index: number): string {
  const start = source.lastIndexOf("\n", index) + 1;
  return `${source.slice(0, index).split("\n").length}: ${source.slice(start, source.indexOf("\n", index + 1)).trim()}`;
}

const SMALLEST_FIRST = [CONNECTORS.nixl, CONNECTORS["p2p-nccl"], CONNECTORS["p2p-zmq"]];

function isNoticed(machines: Machines): boolean {
  try {
    for (const { traits } of SMALLEST_FIRST) exploreSystem(traits, machines, { faults: 1, stops: 1 });
  } catch {
    return true;
  }
  return false;
}

describe("the rest of the protocol without one of its guards", () => {
  let folder: string;
  before(() => (folder = mkdtempSync(join(tmpdir(), "tandem-mutants-"))));
  after(() => rmSync(folder, { recursive: true }));

  for (const { file, from, least, machines } of SUBJECTS) {
    it(`is noticed by the search, for each guard of ${file}`, async function () {
      this.timeout(240_000);
      const source = readFileSync(fileURLToPath(new URL(`../../../${file}`, import.meta.url)), "utf8");
      const end = source.indexOf("interface Entry");
      const all = mutantsOf(source, source.indexOf(from), end < 0 ? source.length : end);
      assert.ok(all.length >= least, `only ${all.length} mutants`);
      const survivors: string[] = [];
      for (const [index, { name, text }] of all.entries()) {
        const copy = join(folder, `${file.replaceAll("/", "-")}-${index}.mts`);
        // It imports types only.
        writeFileSync(copy, text);
        const noticed = isNoticed(machines((await import(pathToFileURL(copy).href)) as Mutated));
        if (!noticed && EQUIVALENT[name] === undefined) survivors.push(name);
        if (noticed && EQUIVALENT[name] !== undefined) survivors.push(`${name}: noticed, and said to be equivalent`);
      }
      assert.deepEqual(survivors, []);
      this.test!.title += ` (${all.length} mutants)`;
    });
  }
});
