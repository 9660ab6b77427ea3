// Every guard of the protocol is dropped in turn, in a copy of its source, and the search has to notice each one. A guard
// that could go without notice would be one that nothing holds up, or a promise that nothing checks.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { CONNECTORS } from "../../../services/kv/index.ts";
import type { LegTraits, step } from "../../../services/router/leg/protocol.ts";
import { explore } from "./explorer.ts";

const SOURCE = readFileSync(
  fileURLToPath(new URL("../../../services/router/leg/protocol.ts", import.meta.url)),
  "utf8",
);

interface Mutant {
  readonly name: string;
  readonly text: string;
}

/**
 * Each way to break one guard: its condition always or never met, its case gone, its effect left out, its choice turned,
 * and a leg cut that should be told, or told that should be cut.
 */
const OPERATORS: readonly (readonly [string, RegExp, (match: RegExpExecArray) => readonly string[]])[] = [
  [
    "condition",
    /if \((.*)\) (?=return|\{|effects)/g,
    ({ 1: condition }) => [`if (false as boolean && (${condition})) `, `if (true as boolean || (${condition})) `],
  ],
  [
    "case",
    /^ {2,6}case "(?!idle|ended)(\w+)":/gm,
    ({ 0: line, 1: name }) => [line.replace(`"${name}"`, `"${name}!" as never`)],
  ],
  [
    "effect",
    /\{ kind: "(?:cutDecode|endSearch|cancelPrefill)" \}(?:, )?|(?<!function )abandon\([^()]*\)(?:, )?|\{ kind: "(?:sendStart|callPrefill|reserve|seekDecode)"[^}]*\}/g,
    () => [""],
  ],
  ["finish", /finish\((?:outcome|CANCELLED)\)(?=\])/g, () => [""]],
  ["choice", /(?<=\n.*)(\w[\w. =!]*) \? ("?[\w]+"?) : ("?[\w]+"?)(?=;|\))/g, ({ 2: yes, 3: no }) => [yes!, no!]],
  [
    "claim",
    /(?<!function )(?:abandon|left)\((true|false|event\.nothingSent|nothingSent), /g,
    ({ 0: text, 1: said }) => [text.replace(said!, "true"), text.replace(said!, "false")],
  ],
  [
    "end",
    /return (?:cut|left\(false, |left\(true, |left\(event\.nothingSent, )\(?(CANCELLED|outcome|failed\(.*\))\);/g,
    ({ 0: text, 1: outcome }) => [text.includes("cut") ? `return left(false, ${outcome});` : `return cut(${outcome});`],
  ],
];

/**
 * Mutants that do what the original does, by name. Each says why, and a mutant that is noticed may not stand here.
 */
const EQUIVALENT: Readonly<Record<string, string>> = {};

function mutants(): Mutant[] {
  const all: Mutant[] = [];
  const body = SOURCE.indexOf("export function step");
  for (const [operator, pattern, change] of OPERATORS) {
    for (const match of SOURCE.matchAll(pattern) as Iterable<RegExpExecArray>) {
      if (match.index < body) continue;
      const line = SOURCE.slice(0, match.index).split("\n").length;
      const from = SOURCE.split("\n")[line - 1]!.trim();
      for (const text of change(match)) {
        if (text === match[0]) continue;
        all.push({
          name: `${operator}, ${from} -> ${text.trim() || "nothing"}`,
          text: SOURCE.slice(0, match.index) + text + SOURCE.slice(match.index + match[0].length),
        });
      }
    }
  }
  return all;
}

const traits: LegTraits[] = Object.values(CONNECTORS).flatMap((connector) =>
  connector.traits.servesUnpaired ? [connector.traits, { ...connector.traits, unpaired: true }] : [connector.traits],
);
traits.push({ decodeFirst: true, prefillCancellable: true }, { decodeFirst: false, prefillCancellable: false });

/** What the search says of it; undefined where it finds nothing. */
function fault(machine: typeof step): string | undefined {
  try {
    for (const one of traits) explore(one, machine);
  } catch (error) {
    return (error as Error).message;
  }
  return undefined;
}

describe("the protocol of the two legs without one of its guards", () => {
  let folder: string;
  before(() => (folder = mkdtempSync(join(tmpdir(), "tandem-mutants-"))));
  after(() => rmSync(folder, { recursive: true }));

  it("is noticed by the search, for each guard", async function () {
    this.timeout(60_000);
    const all = mutants();
    assert.ok(all.length > 50, `only ${all.length} mutants`);
    const survivors: string[] = [];
    for (const [index, { name, text }] of all.entries()) {
      const file = join(folder, `legs-${index}.mts`);
      // It imports types only.
      writeFileSync(file, text);
      const mutant = (await import(pathToFileURL(file).href)) as { step: typeof step };
      const found = fault(mutant.step);
      if (found === undefined && EQUIVALENT[name] === undefined) survivors.push(name);
      if (found !== undefined && EQUIVALENT[name] !== undefined)
        survivors.push(`${name}: noticed, and said to be equivalent`);
    }
    assert.deepEqual(survivors, []);
    this.test!.title += ` (${all.length} mutants)`;
  });
});
