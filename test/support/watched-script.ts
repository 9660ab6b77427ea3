// Scripts that run under a watchdog, in processes of their own.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { text } from "node:stream/consumers";
import { within } from "./waits.ts";

const WATCHDOG = JSON.stringify(new URL("../../dist/services/common/watchdog.js", import.meta.url).href);

/** How the script ends under a watchdog. Runs dist/: from the source there is no thread. */
export async function endOfWatched(script: string, limitMib = 0) {
  const source = `import { startWatchdog } from ${WATCHDOG}; startWatchdog("router", ${limitMib}); ${script}`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", source], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const all = Promise.all([once(child, "exit"), text(child.stdout), text(child.stderr)]);
  const [[code, signal], stdout, stderr] = await within(all, "the end of the process", 50_000).finally(() => {
    child.kill("SIGKILL");
  });
  return { ending: (signal ?? code) as string | number, stdout, stderr };
}
