// Processes of the GPU run: `tandem up`, a bare vLLM, a wrapper. Each in a group of its own, so that one signal ends all
// of it; nothing outlives the run.
import { spawn } from "node:child_process";
import { createWriteStream, existsSync, readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const CLI = [
  new URL("../dist/clients/cli/main.js", import.meta.url),
  new URL("../../dist/clients/cli/main.js", import.meta.url),
]
  .map((url) => fileURLToPath(url))
  .find((path) => existsSync(path));
const running = new Set();
process.once("exit", () => running.forEach((child) => signal(child, "SIGKILL")));
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) process.once(name, () => process.exit(1));

const given = new Set();

/** Below the ports that the system picks itself, above those at which Tandem and vLLM start: nobody takes it meanwhile. */
export async function freePort() {
  for (;;) {
    const port = 22_500 + Math.floor(Math.random() * 9_500);
    if (given.has(port)) continue;
    const server = createServer();
    const free = await new Promise((done) =>
      server.once("error", () => done(false)).listen(port, "127.0.0.1", () => done(true)),
    );
    if (!free) continue;
    await new Promise((done) => server.close(done));
    given.add(port);
    return port;
  }
}

/** Runs until `stop`; output goes to `log`. */
export function start(command, args, log, env = {}) {
  const child = spawn(command, args, {
    detached: true,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...env },
  });
  running.add(child);
  const file = createWriteStream(log);
  child.stdout.pipe(file);
  child.stderr.pipe(file);
  const ended = new Promise((done) => child.once("close", () => (running.delete(child), done())));
  return {
    child,
    ended,
    log,
    async stop() {
      if (!running.has(child)) return;
      signal(child, "SIGINT");
      const force = setTimeout(() => signal(child, "SIGKILL"), 15_000);
      await ended;
      clearTimeout(force);
      signal(child, "SIGKILL");
    },
  };
}

function signal(child, name) {
  try {
    process.kill(-child.pid, name);
  } catch {
    // Nobody is left of it.
  }
}

export async function until(what, look, limitMs, server) {
  for (const endMs = Date.now() + limitMs; Date.now() < endMs; await sleep(200)) {
    if (server !== undefined && !running.has(server.child))
      throw new Error(`${what}: the process ended; ${tail(server.log)}`);
    if (
      await Promise.resolve()
        .then(look)
        .catch(() => false)
    )
      return;
  }
  throw new Error(`${what}: not so within ${limitMs / 1000} s; ${server === undefined ? "" : tail(server.log)}`);
}

/** The processes that `pid` started, and theirs. From /proc: not every machine has ps. */
export function below(pid) {
  const parents = readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      try {
        const stat = readFileSync(`/proc/${name}/stat`, "utf8");
        return [
          {
            pid: Number(name),
            parent: Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]),
            args: readFileSync(`/proc/${name}/cmdline`, "utf8").replaceAll("\0", " ").trim(),
          },
        ];
      } catch {
        return [];
      }
    })
    .sort((a, b) => a.pid - b.pid);
  const family = (one) =>
    parents.filter(({ parent }) => parent === one).flatMap((found) => [found, ...family(found.pid)]);
  return family(pid);
}

export const tail = (log, lines = 12) => readFileSync(log, "utf8").trim().split("\n").slice(-lines).join("\n");

export function tandem(args, log, env) {
  return start(process.execPath, [CLI, ...args], log, env);
}

/** Text of `tandem doctor --json`, parsed. */
export async function doctor(url, token, log) {
  const run = tandem(["doctor", "--json", "--router", url], log, { TANDEM_TOKEN: token });
  await run.ended;
  return JSON.parse(readFileSync(log, "utf8")).diagnoses;
}

export async function instances(url, token) {
  const answer = await fetch(`${url}/tandem.router.v1.RouterService/ListInstances`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${token}` },
    body: "{}",
  });
  return (await answer.json()).instances ?? [];
}
