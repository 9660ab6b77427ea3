// Programs of others that tests use: found where they are, fetched into the user's cache where tests may do so.
import { execFile } from "node:child_process";
import { access, cp, mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const exec = promisify(execFile);
export const CACHE = join(process.env["XDG_CACHE_HOME"] ?? join(homedir(), ".cache"), "tandem");

const GRPCURL_VERSION = "v1.9.4";
export const CONSUL_VERSION = "v1.22.0";
const OPENAI_PYTHON_VERSION = "3.54.0";
export const NODE_VERSIONS = { 20: "20.20.2", 22: "22.23.3", 24: "24.21.0" } as const;
const GRPCIO_VERSION = "1.85.1";
const GO_PLUGINS = {
  "protoc-gen-go": "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12",
  "protoc-gen-go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2",
};
const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const FOREIGN_GO = join(ROOT, "test/live/foreign/go");
const PROTOBUF_PYTHON_VERSION = "7.36.2";

/** Tests may install things only when asked to: CI=true or `npm test -- --all`. */
export const MAY_FETCH = process.env["CI"] === "true" || process.env["TANDEM_TEST_ALL"] === "1";

/** Path of grpcurl, or why there is none. */
export async function grpcurl(): Promise<{ path: string } | { missing: string }> {
  const bin = join(CACHE, "bin");
  const found = await firstOf([process.env["GRPCURL"], ...searchPath("grpcurl"), join(bin, "grpcurl")]);
  if (found !== undefined) return { path: found };
  if (!MAY_FETCH) return { missing: "grpcurl is not installed" };
  await mkdir(bin, { recursive: true });
  await exec("go", ["install", `github.com/fullstorydev/grpcurl/cmd/grpcurl@${GRPCURL_VERSION}`], {
    env: { ...process.env, GOBIN: bin },
  });
  return { path: join(bin, "grpcurl") };
}

let consulBuild: Promise<void> | undefined;

/** Path of Consul, or why there is none. Building it takes minutes, once. */
export async function consul(): Promise<{ path: string } | { missing: string }> {
  const bin = join(CACHE, "bin");
  const found = await firstOf([process.env["CONSUL"], ...searchPath("consul"), join(bin, "consul")]);
  if (found !== undefined) return { path: found };
  if (!MAY_FETCH) return { missing: "Consul is not installed (CI=true or `npm test -- --all` builds it)" };
  if (
    !(await exec("go", ["version"]).then(
      () => true,
      () => false,
    ))
  )
    return { missing: "Consul is not installed, nor Go to build it" };
  await (consulBuild ??= buildConsul(bin));
  return { path: join(bin, "consul") };
}

/** Of the public module, since binaries of Consul are not on every mirror. */
async function buildConsul(bin: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), "tandem-consul-build-"));
  const sinceMs = performance.now();
  const say = (what: string): void =>
    console.log(`  Consul ${CONSUL_VERSION}: ${what} (${Math.round((performance.now() - sinceMs) / 1000)} s)`);
  const ticking = setInterval(() => say("still building"), 30_000);
  try {
    await mkdir(bin, { recursive: true });
    await writeFile(
      join(folder, "go.mod"),
      `module build\n\ngo 1.25\n\nrequire github.com/hashicorp/consul ${CONSUL_VERSION}\n`,
    );
    say("building it, once, for the tests; some minutes");
    // Written aside and moved, so that a build which is cut short is not taken for a Consul.
    const part = join(bin, `consul.${process.pid}`);
    await exec("go", ["build", "-trimpath", "-o", part, "github.com/hashicorp/consul"], {
      cwd: folder,
      env: { ...process.env, GOFLAGS: "-mod=mod", CGO_ENABLED: "0", GONOSUMDB: "github.com/hashicorp/*" },
      maxBuffer: 64 * 1024 * 1024,
    });
    await rename(part, join(bin, "consul"));
    say("built");
  } finally {
    clearInterval(ticking);
    await rm(folder, { recursive: true, force: true });
  }
}

/** Path of a Python that has the openai package, or why there is none. */
export function pythonWithOpenai(): Promise<{ path: string } | { missing: string }> {
  return pythonWith("openai", `openai-python-${OPENAI_PYTHON_VERSION}`, [`openai==${OPENAI_PYTHON_VERSION}`]);
}

/** Path of a Python that has gRPC's C core and protobuf, or why there is none. */
export function pythonWithGrpcio(): Promise<{ path: string } | { missing: string }> {
  const packages = [`grpcio==${GRPCIO_VERSION}`, `protobuf==${PROTOBUF_PYTHON_VERSION}`];
  return pythonWith("grpc, google.protobuf", `grpcio-${GRPCIO_VERSION}`, packages);
}

/** Path of the instance in Go (test/live/foreign/go), built from the contracts, or why there is none. */
export async function foreignGo(): Promise<{ path: string } | { missing: string }> {
  if (!(await exec("go", ["version"]).then(yes, no))) return { missing: "Go is not installed" };
  const bin = join(CACHE, "bin");
  const plugins = Object.entries(GO_PLUGINS);
  const has = await Promise.all(plugins.map(([name]) => access(join(bin, name)).then(yes, no)));
  if (has.includes(false) && !MAY_FETCH) return { missing: "protoc-gen-go is not installed" };
  for (const [index, [, module]] of plugins.entries())
    if (!has[index]) await exec("go", ["install", module], { env: { ...process.env, GOBIN: bin } });
  const folder = join(CACHE, "foreign-go");
  await cp(FOREIGN_GO, folder, { recursive: true });
  const template = {
    version: "v2",
    inputs: [{ directory: "proto" }],
    managed: { enabled: true, override: [{ file_option: "go_package_prefix", value: "foreign/gen" }] },
    plugins: plugins.map(([name]) => ({
      local: join(bin, name),
      out: join(folder, "gen"),
      opt: "paths=source_relative",
    })),
  };
  const paths = ["instance", "prefill", "decode"].map((name) => `--path=proto/tandem/${name}`);
  await exec("node_modules/.bin/buf", ["generate", `--template=${JSON.stringify(template)}`, ...paths], { cwd: ROOT });
  const env = { ...process.env, CGO_ENABLED: "0", ...(MAY_FETCH ? {} : { GOPROXY: "off" }) };
  const built = await exec("go", ["build", "-o", "instance", "."], { cwd: folder, env }).catch((error: Error) => error);
  if (!(built instanceof Error)) return { path: join(folder, "instance") };
  if (MAY_FETCH) throw built;
  return { missing: "grpc for Go is not in the module cache" };
}

const yes = (): boolean => true;
const no = (): boolean => false;

async function pythonWith(
  modules: string,
  name: string,
  packages: readonly string[],
): Promise<{ path: string } | { missing: string }> {
  const venv = join(CACHE, name);
  const python = join(venv, "bin", "python");
  const works = () =>
    exec(python, ["-c", `import ${modules}`]).then(
      () => true,
      () => false,
    );
  if (await works()) return { path: python };
  if (!MAY_FETCH) return { missing: `${packages[0]} for Python is not installed` };
  await mkdir(CACHE, { recursive: true });
  await exec("python3", ["-m", "venv", venv]);
  await exec(python, ["-m", "pip", "install", "-q", ...packages]);
  return { path: python };
}

/** Path of Node in this major version, or why there is none. npm has Node's own binaries as packages of their platform. */
export async function node(major: keyof typeof NODE_VERSIONS): Promise<{ path: string } | { missing: string }> {
  if (process.versions.node.startsWith(`${major}.`)) return { path: process.execPath };
  const version = NODE_VERSIONS[major];
  const name = `node-${process.platform}-${process.arch}`;
  const folder = join(CACHE, `node-${version}`);
  const path = join(folder, "node_modules", name, "bin", "node");
  const works = () =>
    exec(path, ["--version"]).then(
      () => true,
      () => false,
    );
  if (await works()) return { path };
  if (!MAY_FETCH) return { missing: `Node ${major} is not installed` };
  if (process.platform !== "linux") return { missing: `Node ${major} is not installed, and fetched on Linux only` };
  await mkdir(folder, { recursive: true });
  await exec("npm", ["install", "--prefix", folder, "--no-save", "--ignore-scripts", `${name}@${version}`]);
  return { path };
}

function searchPath(name: string): string[] {
  return (process.env["PATH"] ?? "").split(delimiter).map((folder) => join(folder, name));
}

async function firstOf(paths: readonly (string | undefined)[]): Promise<string | undefined> {
  for (const path of paths) {
    if (
      path !== undefined &&
      path !== "" &&
      (await access(path).then(
        () => true,
        () => false,
      ))
    )
      return path;
  }
  return undefined;
}
