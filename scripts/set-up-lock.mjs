// One set-up at a time in one clone: `npm start` in one terminal and `npm test` in another must not both install.
import { linkSync, mkdirSync, readFileSync, renameSync, rmSync, utimesSync, statSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const HEARTBEAT_MS = 2_000;
/** A holder on another host (or in another container) without a heartbeat for this long is gone. */
const SILENT_MS = 20_000;

/**
 * Runs `work` while holding the lock file at `path`; waits while another process holds it, calling `onWait` once with
 * its process id. A lock whose holder died is taken over.
 */
export async function withLock(path, work, { onWait = () => {}, pollMs = 100 } = {}) {
  mkdirSync(dirname(path), { recursive: true });
  const mine = `${path}.${process.pid}`;
  for (let waited = false; ; ) {
    // Links a complete file, so that a half-written lock is never read.
    writeFileSync(mine, JSON.stringify({ pid: process.pid, host: hostname() }));
    try {
      linkSync(mine, path);
      break;
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
    } finally {
      rmSync(mine, { force: true });
    }
    const holder = readHolder(path);
    if (holder === undefined) continue;
    if (!isAlive(holder)) {
      takeAway(path, holder);
      continue;
    }
    if (!waited) onWait(holder.pid);
    waited = true;
    await sleep(pollMs);
  }
  const heart = setInterval(() => {
    const now = new Date();
    try {
      utimesSync(path, now, now);
    } catch {
      // The lock was removed by hand, so there is nothing to keep alive.
    }
  }, HEARTBEAT_MS);
  heart.unref();
  const release = () => rmSync(path, { force: true });
  process.once("exit", release);
  try {
    return await work();
  } finally {
    clearInterval(heart);
    process.off("exit", release);
    release();
  }
}

function readHolder(path) {
  try {
    const text = readFileSync(path, "utf8");
    return { ...JSON.parse(text), text, beatAtMs: statSync(path).mtimeMs };
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    return { pid: 0, host: "", text: "", beatAtMs: 0 };
  }
}

function isAlive({ pid, host, beatAtMs }) {
  if (host !== hostname()) return Date.now() - beatAtMs < SILENT_MS;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM";
  }
}

/** If two processes find the same dead lock, the second must not remove the new lock of the first. */
function takeAway(path, holder) {
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if (error.code === "ENOENT") return;
    throw error;
  }
  if (holder.text !== "" && readFileSync(aside, "utf8") !== holder.text) linkSync(aside, path);
  rmSync(aside, { force: true });
}
