// Holds the layout of style.md: who imports whom, which folder is the door to which package, names, sizes.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { moduleUrl } from "./support/script.ts";

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));

interface Imports {
  filesUnder(folder: string): string[];
  importsOf(file: string): Import[];
}

const { filesUnder, importsOf } = (await import(moduleUrl("scripts/imports.mjs"))) as Imports;
const isCode = (file: string): boolean => /\.(ts|mjs|cjs)$/.test(file);
const textOf = (file: string): string => readFileSync(join(ROOT, file), "utf8");

/** A module that `file` imports, from the repository's root or as the name of a package; also by a lazy import(). */
interface Import {
  readonly file: string;
  readonly target: string;
  readonly lazy: boolean;
  readonly typeOnly: boolean;
}

const sources = [...filesUnder("services"), ...filesUnder("clients")].filter(isCode);
const imports = sources.flatMap(importsOf);

/** What may not be is a list that must be empty: a failure shows the whole of it. */
const none = (faults: readonly string[]): void => assert.deepEqual(faults, []);
const show = ({ file, target }: Import): string => `${file} imports ${target}`;

/** Folders from the left to the right of style.md 2: each may import from those of a later layer, and from itself. */
const LAYERS: readonly (readonly string[])[] = [
  ["clients"],
  ["services/router", "services/prefill", "services/decode"],
  // What prefill and decode share.
  ["services/instance"],
  ["services/kv", "services/discovery", "services/engine", "services/tiny-engine"],
  ["services/rpc"],
  ["services/common"],
];

/** Inside the router, from what is wired to what was asked. */
const ROUTER_LAYERS: readonly (readonly string[])[] = [
  ["services/router/main.ts"],
  ["services/router/rest", "services/router/control"],
  // What rest and control share: one request, whoever asked.
  ["services/router/serving"],
  ["services/router/relay"],
  ["services/router/probe"],
  ["services/router/leg"],
  ["services/router/placement"],
  ["services/router/admission", "services/router/pool", "services/router/registry"],
  ["services/router/request"],
  // Types of its sections are everywhere.
  ["services/router/config.ts"],
];

/** Policies are pure: figures in, a choice out. */
const POLICY_FILES = ["services/router/placement/policies.ts"];

const within = (path: string, folder: string): boolean => path === folder || path.startsWith(`${folder}/`);

function placeIn(layers: readonly (readonly string[])[], path: string): { layer: number; folder: string } | undefined {
  for (const [layer, folders] of layers.entries()) {
    const folder = folders.find((candidate) => within(path, candidate));
    if (folder !== undefined) return { layer, folder };
  }
  return undefined;
}

function pointsLeft(layers: readonly (readonly string[])[], { file, target }: Import): boolean {
  const [from, to] = [placeIn(layers, file), placeIn(layers, target)];
  if (from === undefined || to === undefined || from.folder === to.folder) return false;
  return to.layer <= from.layer;
}

describe("imports", () => {
  it("point from the services to what they stand on, never back and never sideways", () => {
    // The CLI starts the services: by a lazy import of their main.ts, and of nothing else of them. Clients share rpc,
    // discovery and common, and the lists of what can be chosen.
    const isCliStart = ({ file, target, lazy }: Import): boolean =>
      (lazy && within(file, "clients/cli") && /^services\/[a-z-]+\/main\.ts$/.test(target)) ||
      // A benchmark of parts of the router imports what it measures.
      /^clients\/loadgen\/scenarios\/(files|fleet)\.ts$/.test(file);
    none(imports.filter((one) => pointsLeft(LAYERS, one) && !isCliStart(one)).map(show));
    const lists = ["services/kv/index.ts", "services/engine/engine.ts"];
    // Random models for benchmarks are written with the tables by which they are read.
    const format = ["services/tiny-engine/llama/gguf.ts", "services/tiny-engine/llama/bpe.ts"];
    // What chaos asks of engines, by the words in which they are told to fail.
    const faults = "services/tiny-engine/faults.ts";
    const shared = ["services/common", "services/rpc", "services/discovery", "clients", ...lists, ...format, faults];
    const clients = imports.filter(({ file, target }) => within(file, "clients") && /^(services|test)\//.test(target));
    none(clients.filter((one) => !isCliStart(one) && !shared.some((folder) => within(one.target, folder))).map(show));
  });

  it("have a place for every folder of services", () => {
    const folders = new Set(
      sources.filter((file) => file.startsWith("services/")).map((file) => file.split("/").slice(0, 2).join("/")),
    );
    none([...folders].filter((folder) => placeIn(LAYERS, folder) === undefined));
  });

  it("point from main to rest and control, to relay, to leg and probe, to placement, to admission and pool inside the router", () => {
    none(imports.filter((one) => pointsLeft(ROUTER_LAYERS, one)).map(show));
  });

  it("have a layer for every file of the router", () => {
    const files = sources.filter((file) => within(file, "services/router"));
    none(files.filter((file) => placeIn(ROUTER_LAYERS, file) === undefined));
  });

  it("never go in a circle, of types neither", () => {
    const circles: string[] = [];
    const finished = new Set<string>();
    const visit = (file: string, path: readonly string[]): void => {
      if (path.includes(file)) circles.push([...path.slice(path.indexOf(file)), file].join(" -> "));
      if (path.includes(file) || finished.has(file)) return;
      for (const { target } of imports.filter((one) => one.file === file)) visit(target, [...path, file]);
      finished.add(file);
    };
    for (const file of sources) visit(file, []);
    none(circles);
  });

  it("leave policy and kv pure: no I/O, no packages", () => {
    const pure = imports.filter(({ file }) => POLICY_FILES.includes(file) || within(file, "services/kv"));
    none(
      pure
        .filter(({ target, typeOnly }) => {
          const own = [...POLICY_FILES, "services/kv", "services/common/errors.ts", "services/common/json-body.ts"];
          return (
            !typeOnly &&
            !own.some((folder) => within(target, folder)) &&
            !["node:buffer", "node:assert/strict"].includes(target)
          );
        })
        .map(show),
    );
  });

  it("leave the embedded engine a program of its own, which knows nothing of Tandem but its common parts", () => {
    const engine = imports.filter(
      ({ file, target }) => within(file, "services/tiny-engine") && /^(services|clients|#gen)/.test(target),
    );
    none(
      engine
        .filter(({ target }) => !within(target, "services/tiny-engine") && !within(target, "services/common"))
        .map(show),
    );
  });

  it("never reach into the tests, and only go to files that exist", () => {
    none(imports.filter(({ target }) => target.startsWith("test/")).map(show));
    const relative = imports.filter(({ target }) => /^(services|clients)\//.test(target));
    none(relative.filter(({ target }) => !existsSync(join(ROOT, target))).map(show));
  });

  it("bring the consul package into a process only when Consul is asked for", () => {
    const atOnce = imports.filter(({ lazy, typeOnly }) => !lazy && !typeOnly);
    const loadedBy = (start: string): Set<string> => {
      const loaded = new Set([start]);
      for (const importer of loaded) for (const { file, target } of atOnce) if (file === importer) loaded.add(target);
      return loaded;
    };
    const starts = sources.filter((file) => file.endsWith("/main.ts"));
    none(starts.filter((file) => loadedBy(file).has("consul")));
    assert.ok(loadedBy("services/discovery/consul.ts").has("consul"), "the file that they load when asked has it");
  });

  it("enter each package by its doors only", () => {
    const doors: Record<string, readonly string[]> = {
      express: ["services/router/rest"],
      "@grpc/grpc-js": ["services/rpc"],
      "@connectrpc/connect": ["services/rpc", "clients"],
      "@connectrpc/connect-node": ["services/rpc", "clients"],
      consul: ["services/discovery"],
      "@huggingface/jinja": ["services/tiny-engine/llama/chat/compile-template.ts"],
      "eventsource-parser": ["services/common/openai-stream.ts", "clients/client/openai.ts"],
      zeromq: ["services/tiny-engine", "services/discovery/vllm-pings.ts"],
      "@msgpack/msgpack": ["services/discovery/vllm-pings.ts", "services/tiny-engine/stand-in.ts"],
      // The declaration of a type that Node has and its types don't export.
      "undici-types": ["services/rpc/headers-init.d.ts"],
      "prom-client": ["services/common/metrics.ts"],
      yaml: ["services/common/config-file.ts"],
      // Messages are everywhere; this says that no other package is.
      "@bufbuild/protobuf": ["services", "clients"],
    };
    const packageOf = (target: string): string =>
      target
        .split("/")
        .slice(0, target.startsWith("@") ? 2 : 1)
        .join("/");
    const outside = imports.filter(({ target }) => !/^(node:|services\/|clients\/|test\/|#gen\/)/.test(target));
    none(outside.filter(({ file, target }) => !doors[packageOf(target)]?.some((door) => within(file, door))).map(show));
  });
});

describe("time", () => {
  /** Not a method: a socket's own timeout is another thing. */
  const READS = /(?<![.\w])(performance\.now|Date\.now|setTimeout|setInterval)\b|node:timers\/promises/;

  it("is taken from common/clock.ts, so that tests move it", () => {
    const own: Record<string, string> = {
      "services/common/clock.ts": "the clock itself",
      "services/common/event-loop.ts": "how late the real event loop is",
      "services/common/guardian.ts": "ends real processes",
      "services/common/lifecycle.ts": "ends this process",
      "services/common/open-files.ts": "looks at the real process",
      "services/common/watchdog.ts": "beats while the real event loop turns",
      "services/common/watchdog-thread.ts": "counts real turns",
      "services/router/rest/page-assets.ts": "runs in a browser",
      // Dates for people and other hosts.
      "services/discovery/consul.ts": "a date in the status",
      "services/instance/instance.ts": "a date in Info",
      "services/router/registry/router-registry.ts": "a date in Consul and the status",
      "services/router/rest/app.ts": "a date in the API",
      "services/router/serving/serving.ts": "a date in answers and receipts",
      "services/rpc/grpc-call.ts": "the deadlines of grpc-js are dates",
      "services/rpc/tls.ts": "a certificate expires on a date",
    };
    const reading = sources.filter(
      (file) =>
        // The embedded engine is a program of its own.
        within(file, "services") &&
        !within(file, "services/tiny-engine") &&
        READS.test(textOf(file).replaceAll(/^\s*(\/\/|\*|\/\*).*$/gm, "")),
    );
    none(reading.filter((file) => own[file] === undefined));
    none(Object.keys(own).filter((file) => !reading.includes(file)));
  });
});

describe("files", () => {
  const all = [...sources, ...filesUnder("scripts"), ...filesUnder("test")].filter(isCode);

  it("have at most 400 lines", () => {
    none(
      all
        .map((file) => ({ file, lines: textOf(file).split("\n").length - 1 }))
        .filter(({ lines }) => lines > 400)
        .map(({ file, lines }) => `${file}: ${lines}`),
    );
  });

  it("have kebab-case names, and none of them is called utils or helpers", () => {
    none(all.filter((file) => !file.split("/").every((part) => /^[a-z0-9]+([-.][a-z0-9]+)*$/.test(part))));
    none(all.filter((file) => /(^|[/-])(utils?|helpers?|misc)([./-]|$)/.test(file)));
  });

  it("give an exported name one meaning in the whole repository", () => {
    // The embedded engine is a program of its own.
    const exported = sources
      .filter((file) => !within(file, "services/tiny-engine"))
      .flatMap((file) => {
        const declared = /^export (?:async )?(?:function\*?|class|interface|type|const|let) ([A-Za-z_$][\w$]*)/gm;
        return [...textOf(file).matchAll(declared)].map(([, name]) => ({ name: name!, file }));
      });
    const twice = exported.filter(({ name, file }) => exported.some((one) => one.name === name && one.file !== file));
    none(twice.map(({ name, file }) => `${name} in ${file}`));
  });

  it("change no object's type from outside: no Object.create, no Object.assign on what has one", () => {
    const allowed = [
      "services/common/metrics.ts", // prom-client takes `collect` after its constructor only.
      "services/rpc/server.ts", // grpc-js has no other way to leave its keepalive out.
    ];
    const changing = sources.filter((file) => /\bObject\.(create|assign)\(/.test(textOf(file)));
    none(changing.filter((file) => !allowed.includes(file) && !within(file, "services/tiny-engine")));
  });

  it("are in plain English: none of the wordings that readers stumble over", () => {
    // docs/glossary.md has the words for these things.
    const banned = [
      /(?<!\b[Tt]here )(?<!\bif there )\bis no (?!longer|more\b|such\b)[a-z]/,
      /\b(nobody|whoever)\b/i,
      /\b(stand|stands|stood|standing) still\b/,
      /\bfor so (many|long|much)\b/,
      /\blet in\b|\blets in\b|\bleave to run\b/,
      /otherwise than planned|in one piece|all the same\b|blotted|trying on\b/,
      /\b(comes|came) through\b/,
      /\bkeepers?\b/i,
      /\bnot heard\b/,
      // A canary is a staged rollout elsewhere. Settings that are gone may name it.
      /\bcanar(y|ies)\b(?!\.(every|timeout)_ms)(?!: "give --no-probes)/i,
    ];
    const written = [
      ...all,
      ...filesUnder("proto"),
      ...filesUnder("docs"),
      "README.md",
      "CONTRIBUTING.md",
      "SECURITY.md",
    ];
    const read = written.filter(
      (file) =>
        /\.(ts|mjs|cjs|proto|md)$/.test(file) && !/^(test|docs\/adr)\//.test(file) && file !== "docs/glossary.md",
    );
    none(
      read.flatMap((file) =>
        textOf(file)
          .split("\n")
          .filter((line) => banned.some((pattern) => pattern.test(line)))
          .map((line) => `${file}: ${line.trim()}`),
      ),
    );
  });

  it("leave nothing to do", () => {
    // In brackets, so that this line is not one of them.
    const mark = /\b(TO[D]O|FIX[M]E|XX[X])\b/;
    none(
      [...all, ...filesUnder("proto"), ...filesUnder("docs")].filter(
        (file) => /\.(ts|mjs|cjs|proto|md)$/.test(file) && mark.test(textOf(file)),
      ),
    );
  });
});

describe("the repository", () => {
  it("pins its dependencies to exact versions", () => {
    const manifest = JSON.parse(textOf("package.json")) as Record<string, Record<string, string> | undefined>;
    const ranges = ["dependencies", "devDependencies", "optionalDependencies"].flatMap((kind) =>
      Object.entries(manifest[kind] ?? {}),
    );
    none(
      ranges
        .filter(([, version]) => !/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version))
        .map(([name, version]) => `${name} ${version}`),
    );
  });

  it("names only files and folders that exist in its README and in CONTRIBUTING", () => {
    const named = ["README.md", "CONTRIBUTING.md"].flatMap((file) =>
      [...textOf(file).matchAll(/`((?:services|clients|scripts|test|proto|docs|models)\/[\w./-]*)`/g)].map(
        ([, path]) => path!,
      ),
    );
    assert.ok(named.length > 20);
    none(named.filter((path) => !path.includes("NAME") && !existsSync(join(ROOT, path))));
  });

  it("tells in every decision what was chosen, what was measured and what would change our mind", () => {
    const records = filesUnder("docs/adr").filter((file) => file.endsWith(".md") && !file.endsWith("README.md"));
    none(records.filter((file) => !/\/\d{4}-[a-z0-9-]+\.md$/.test(file)));
    const sections = ["Context", "Choice", "Measured", "What would change our mind"];
    none(
      records.flatMap((file) =>
        sections
          .filter((section) => !textOf(file).includes(`\n## ${section}\n`))
          .map((section) => `${file} has no "${section}"`),
      ),
    );
    const numbers = records.map((file) => /(\d{4})-[^/]*$/.exec(file)![1]!);
    none(numbers.filter((number, index) => numbers.indexOf(number) !== index));
  });
});
