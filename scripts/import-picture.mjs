// docs/images/imports.svg: the folders of services/ and clients/, and which imports which. Graphviz does the layout;
// the same code gives the same bytes.
import { instance } from "@viz-js/viz";
import { filesUnder, importsOf } from "./imports.mjs";

const CONTRACTS = "proto";
/** Left out, because everything uses messages and Node. */
const COMMON_PACKAGES = /^(node:|@bufbuild\/protobuf)/;

export async function importPicture() {
  const viz = await instance();
  return viz.renderString(graphOf(edgesBetweenFolders()), { format: "svg" }).replace(/^[\s\S]*?(?=<svg)/, "");
}

/** The box of a file: a folder of the router (its top files share a box), a folder of services/, or all of clients/. */
function folderOf(path) {
  if (path.startsWith("#gen/")) return CONTRACTS;
  const [top, service, inner, file] = path.split("/");
  if (top === "clients") return top;
  if (service === "router") return file === undefined ? "router/main.ts ..." : `router/${inner}`;
  return service;
}

function edgesBetweenFolders() {
  const folders = new Map();
  for (const file of ["services", "clients"].flatMap(filesUnder).filter((name) => /(?<!\.d)\.ts$/.test(name))) {
    const from = folderOf(file);
    if (!folders.has(from)) folders.set(from, { imports: new Set(), starts: new Set(), packages: new Set() });
    const { imports, starts, packages } = folders.get(from);
    for (const { target, lazy, typeOnly } of importsOf(file)) {
      if (!/^(services|clients|#gen)\//.test(target)) {
        if (!COMMON_PACKAGES.test(target)) packages.add(/^(@[^/]+\/)?[^/]+/.exec(target)[0]);
      } else if (folderOf(target) !== from) (lazy && !typeOnly ? starts : imports).add(folderOf(target));
    }
  }
  folders.set(CONTRACTS, { imports: new Set(), starts: new Set(), packages: new Set() });
  return folders;
}

/** Writes Graphviz' language. @param folders By name: imports, started programs and npm packages. */
export function graphOf(folders) {
  const reach = (from, seen = new Set()) => {
    for (const next of folders.get(from).imports) if (!seen.has(next)) reach(next, seen.add(next));
    return seen;
  };
  const reached = new Map([...folders.keys()].map((name) => [name, reach(name)]));
  const lines = [];
  for (const [name, { imports, starts, packages }] of folders) {
    const label = [name.replace("router/", ""), ...[...packages].sort().map((each) => `(${each})`)].join("\\n");
    lines.push(`"${name}" [label="${label}" fillcolor="${name.startsWith("router/") ? "#dbeafe" : "#f3f4f6"}"]`);
    for (const next of imports) {
      // An edge that others imply is left out; an edge that closes a circle is always drawn.
      const circle = reached.get(next).has(name);
      if (circle) lines.push(`"${name}" -> "${next}" [color="#dc2626" penwidth=2 constraint=false]`);
      else if (![...imports].some((other) => other !== next && reached.get(other).has(next)))
        lines.push(`"${name}" -> "${next}"`);
    }
    for (const next of starts)
      if (!imports.has(next) && ![...starts].some((other) => other !== next && reached.get(other).has(next)))
        lines.push(`"${name}" -> "${next}" [style=dashed]`);
  }
  const inRouter = [...folders.keys()].filter((name) => name.startsWith("router/")).map((name) => `"${name}"`);
  return `digraph imports {
    graph [fontname="Helvetica" fontsize=13 bgcolor=white nodesep=0.3 ranksep=0.35 pad=0.2]
    node [shape=box style="rounded,filled" color="#6b7280" fontname="Helvetica" fontsize=12 margin="0.2,0.08"]
    edge [color="#6b7280" arrowsize=0.6]
    ${lines.join("\n    ")}
    subgraph cluster_router {
      graph [label="router" labeljust=l style=rounded color="#93c5fd"]
      ${inRouter.join("; ")}
    }
  }`;
}
